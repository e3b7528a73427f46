"""Normalisation, with the statistics of the training data or of the whole image: never of a tile."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

from lmseg_core.blocks import resize
from lmseg_core.description import check_processor
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
        fields = check_processor({"mode": mode, "scale": scale, "image_mean": image_mean, "image_std": image_std})
        self.mode = fields.mode
        self.scale = fields.scale
        self.image_mean = fields.image_mean
        self.image_std = fields.image_std

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

        In mode "image", `mean` and `std` are of the whole image each window was cut from, in raw units. A picture of
        PIL, as transformers' pipelines give them, is a whole image: without `mean` and `std` its own are taken. Raises
        ModelError on another number of bands.
        """
        several = images if isinstance(images, (list, tuple)) else [images]
        given = self.raw_statistics() or (None if mean is None or std is None else (list(mean), list(std)))
        return BatchFeature({"pixel_values": torch.cat([self._normalised(image, given) for image in several])})

    def _normalised(self, image: Any, given: tuple[list[float], list[float]] | None) -> torch.Tensor:
        values = torch.as_tensor(np.asarray(image, dtype=np.float32))
        if isinstance(image, Image.Image):
            values = values.reshape(image.height, image.width, -1).permute(2, 0, 1)  # (H, W[, C]) -> (C, H, W)
            given = given or (values.mean((1, 2)).tolist(), values.std((1, 2), correction=0).tolist())
        if given is None:
            raise ModelError(
                'preprocessor_config.json has mode "image"; pass mean= and std= of the whole image, one a band.'
            )
        if len(values) != len(given[0]):
            raise ModelError(
                f"the image has shape {tuple(values.shape)}; give its {len(given[0])} bands first: (C, *S)."
            )
        return normalise(values[None], *given)

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[Sequence[int]] | torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Return the labels (*S) of each image from the `logits` of a network's output, as transformers' processors do.

        target_sizes: a size for each image to which its logits are interpolated first. Raises ModelError on another
        number of sizes.
        """
        logits: torch.Tensor = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(1))
        if len(target_sizes) != len(logits):
            raise ModelError(f"{len(target_sizes)} target_sizes are given for {len(logits)} images; give one for each.")
        sizes = [tuple(int(n) for n in size) for size in target_sizes]
        return [resize(one[None], size)[0].argmax(0) for one, size in zip(logits, sizes, strict=True)]


def normalise(batch: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (batch - mean) / std a band as float32; `batch` is (B, C, *S) of any dtype, mean and std in its
    units."""
    view = (1, -1, *[1] * (batch.ndim - 2))
    centre = torch.tensor(mean, dtype=torch.float32, device=batch.device).view(view)
    # A band that is constant over the whole image has no spread: it becomes zero, not infinity.
    spread = torch.tensor(std, dtype=torch.float32, device=batch.device).view(view).clamp_min(1e-6)
    return (batch.to(torch.float32) - centre) / spread
