"""Normalisation of a training: statistics of its data, of each image, or of the model that it starts from."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lmseg_core import bundled
from lmseg_core.description import PROCESSOR
from lmseg_core.errors import ModelError, first_line
from lmseg_core.processor import LMSegImageProcessor
from lmseg_core.training.settings import Settings
from lmseg_core.training.windows import Example


def choose_processor(settings: Settings, training: Sequence[Example]) -> LMSegImageProcessor:
    """Return the processor of training, validation and the finished model.

    Without `data.normalise` it is the one of `model.start`, whose weights know no other values; that of a new network
    has the statistics of all training data. Raises ModelError where the start has none for these bands.
    """
    mode = settings.data.normalise
    if mode is None and settings.model.start is not None:
        return _of_start(settings.model.start, training[0].image.shape[0])
    if mode == "image":
        return LMSegImageProcessor(mode="image")
    mean, std = _pooled(training)
    return LMSegImageProcessor(mode="fixed", image_mean=mean, image_std=std)


def normalised(processor: LMSegImageProcessor, examples: Sequence[Example]) -> list[Example]:
    """Return the examples with the statistics that the processor uses; each keeps its own in mode "image"."""
    statistics = processor.raw_statistics()
    if statistics is None:
        return list(examples)
    mean, std = (tuple(values) for values in statistics)
    return [replace(example, mean=mean, std=std) for example in examples]


def _of_start(start: str, bands: int) -> LMSegImageProcessor:
    try:
        processor: LMSegImageProcessor = LMSegImageProcessor.from_pretrained(bundled.folder(start))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"model.start {start} has no usable {PROCESSOR} ({first_line(error)}); set data.normalise to fixed "
            "or image."
        ) from None
    statistics = processor.raw_statistics()
    if statistics is not None and len(statistics[0]) != bands:
        raise ModelError(
            f"model.start {start} has statistics of {len(statistics[0])} bands and the images have {bands}; set "
            "data.normalise to fixed or image."
        )
    return processor


def _pooled(examples: Sequence[Example]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a band of all pixels of all examples."""
    share = np.array([math.prod(example.labels.shape) for example in examples], float)
    share /= share.sum()
    means, stds = (np.array([getattr(example, name) for example in examples]) for name in ("mean", "std"))
    mean = share @ means
    std = np.sqrt(share @ (stds**2 + (means - mean) ** 2))
    return tuple(mean.tolist()), tuple(std.tolist())
