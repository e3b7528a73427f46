"""Normalisation, with the statistics of the training data or of the whole image: never of a tile."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BaseImageProcessor, BatchFeature

from lmseg_core.errors import ModelError


class LMSegImageProcessor(BaseImageProcessor):
    """Turns raw pixel values into network input, (x * scale - mean) / std for each band.

    mode "fixed": `image_mean` and `image_std` come from the training data, after `scale`. mode "image": they
    are of the image or region at hand, in raw units, and are given with each call; `scale` is not used.
    Statistics of a tile would differ between neighbours and leave seams.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - the base class has a list

    def __init__(
        self,
        mode: Literal["fixed", "image"] = "image",
        scale: float = 1.0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in ("fixed", "image"):
            raise ModelError(f'preprocessor_config.json has mode "{mode}"; use "fixed" or "image".')
        if mode == "fixed" and (image_mean is None or image_std is None or len(image_mean) != len(image_std)):
            raise ModelError(
                f'preprocessor_config.json has mode "fixed" with image_mean {image_mean} and '
                f"image_std {image_std}; give both, one value a band."
            )
        self.mode = mode
        self.scale = scale
        self.image_mean = None if image_mean is None else [float(value) for value in image_mean]
        self.image_std = None if image_std is None else [float(value) for value in image_std]

    def raw_statistics(self) -> tuple[list[float], list[float]] | None:
        """Return mean and standard deviation a band in raw units, or None in mode "image"."""
        if self.mode == "image" or self.image_mean is None or self.image_std is None:
            return None
        return [m / self.scale for m in self.image_mean], [s / self.scale for s in self.image_std]

    def preprocess(
        self,
        images: NDArray[Any] | torch.Tensor | Sequence[NDArray[Any] | torch.Tensor],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Normalise one image (C, *S), or several of one shape, to `pixel_values` (B, C, *S) float32.

        In mode "image", `mean` and `std` are of the whole image each window was cut from, in raw units.
        """
        statistics = self.raw_statistics()
        if statistics is None:
            if mean is None or std is None:
                raise ModelError(
                    'preprocessor_config.json has mode "image"; pass mean= and std= of the whole image, one a band.'
                )
            statistics = list(mean), list(std)
        several = images if isinstance(images, (list, tuple)) else [images]
        tensors = [torch.as_tensor(np.asarray(image, dtype=np.float32)) for image in several]
        return BatchFeature({"pixel_values": normalise(torch.stack(tensors), *statistics)})


def normalise(batch: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (batch - mean) / std a band as float32; `batch` is (B, C, *S) of any dtype, mean and std in its
    units."""
    view = (1, -1, *[1] * (batch.ndim - 2))
    centre = torch.tensor(mean, dtype=torch.float32, device=batch.device).view(view)
    # A band that is constant over the whole image has no spread: it becomes zero, not infinity.
    spread = torch.tensor(std, dtype=torch.float32, device=batch.device).view(view).clamp_min(1e-6)
    return (batch.to(torch.float32) - centre) / spread
