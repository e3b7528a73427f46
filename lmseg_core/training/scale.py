"""The pixels a network is trained on, for its configuration."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from lmseg_core.config import LMSegConfig
from lmseg_core.description import TESTED
from lmseg_core.training.windows import Example


def set_scale(config: LMSegConfig, examples: Sequence[Example], given: dict[str, Any]) -> None:
    """Write `spacing` or `resolution` and the range of the examples' pixels into a configuration.

    None where an example does not know the size of its pixels. given: fields that the settings name, which stay.
    """
    name = "resolution" if config.ndim == 2 else "spacing"
    if name in given:
        return
    config.spacing = config.resolution = config.tested_range = None
    sides = [example.scale for example in examples]
    if not sides or not all(sides):
        return
    if config.ndim == 2:
        own = [median(math.sqrt(math.prod(pair)) for pair in sides)]
        config.resolution = own[0]
    else:
        own = [median(axis) for axis in zip(*sides, strict=True)]
        config.spacing = own
    factors = [side / own[axis % len(own)] for one in sides for axis, side in enumerate(one)]
    config.tested_range = list(given.get("tested_range", (min(TESTED[0], *factors), max(TESTED[1], *factors))))
