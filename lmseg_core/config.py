"""The configuration of the network, as transformers keeps it in `config.json`."""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from lmseg_core.classes import SegmentClass
from lmseg_core.errors import ModelError

_COLOUR = re.compile(r"#[0-9a-f]{6}")


class LMSegConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Shape of an LMSeg network, and what its channels and classes are.

    ndim: 2 or 3 spatial axes. in_channels: bands. widths: channels of each encoder stage; stage i works at
    1/2**i of the resolution. blocks: residual blocks a stage. tile: default window of prediction in pixels,
    one a spatial axis. bands: name of each input channel. colours ("#rrggbb") and codes (SNOMED CT or None):
    one a class, in the order of `id2label`. lm_config: a transformers configuration as a dict, or None for no
    language model; lm_blocks: how many of its last blocks are used. Raises ModelError where these contradict
    each other.
    """

    model_type = "lmseg"

    def __init__(
        self,
        ndim: int = 2,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 1,
        tile: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        colours: Sequence[str] | None = None,
        codes: Sequence[str | None] | None = None,
        lm_config: dict[str, Any] | None = None,
        lm_blocks: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ndim = ndim
        self.in_channels = in_channels
        self.widths = list(widths)
        self.blocks = blocks
        self.tile = list(tile) if tile is not None else [256] * 2 if ndim == 2 else [64] * 3
        self.bands = list(bands) if bands is not None else [f"band {i + 1}" for i in range(in_channels)]
        count = len(self.id2label or {})
        self.colours = list(colours) if colours is not None else [_spread(i, count) for i in range(count)]
        self.codes = list(codes) if codes is not None else [None] * count
        self.lm_config = lm_config
        self.lm_blocks = lm_blocks
        self._check(count)

    @property
    def classes(self) -> tuple[SegmentClass, ...]:
        """The class table, in the order of the label values 0..K-1."""
        names = {int(value): name for value, name in (self.id2label or {}).items()}
        return tuple(
            SegmentClass(value, names[value], self.colours[value], self.codes[value]) for value in sorted(names)
        )

    def _check(self, count: int) -> None:
        if self.ndim not in (2, 3):
            raise ModelError(f"config.json has ndim {self.ndim}; set it to 2 for rasters or 3 for volumes.")
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ModelError(f"config.json has widths {self.widths}; give at least two positive stage widths.")
        if sorted(self.id2label or {}) != list(range(count)):
            raise ModelError(f"config.json has id2label {self.id2label}; number the classes 0, 1, 2, ...")
        lists: list[tuple[str, Sequence[Any], int]] = [
            ("tile", self.tile, self.ndim),
            ("bands", self.bands, self.in_channels),
            ("colours", self.colours, count),
            ("codes", self.codes, count),
        ]
        for name, values, wanted in lists:
            if len(values) != wanted:
                raise ModelError(f"config.json has {len(values)} {name} ({values}); give exactly {wanted}.")
        wrong = [colour for colour in self.colours if not _COLOUR.fullmatch(colour)]
        if wrong:
            raise ModelError(f'config.json has colour "{wrong[0]}"; write it as "#rrggbb" in lower case.')


def _spread(index: int, count: int) -> str:
    """Return a grey for each class that was given no colour, from black to white."""
    level = round(255 * index / max(count - 1, 1))
    return f"#{level:02x}{level:02x}{level:02x}"
