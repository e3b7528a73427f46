"""Random changes of a training window, in 2D and 3D.

Images are normalised float32 tensors (C, *S), labels uint8 tensors (*S) with 255 = ignore; axes are (y, x) or
(z, y, x). Every draw comes from the generator that is passed in, so that a window can be made again.

A change of geometry is one matrix (D, D) that takes an offset from the centre of the window, in pixels, to the
offset from the same centre in the image. Flips, turns, rotation and zoom multiply into it, and pixels are resampled
at most once.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lmseg_core.loss import IGNORE
from lmseg_core.mirror import AXES
from lmseg_core.training.settings import AugmentSettings

Matrix = NDArray[np.float64]


def chance(share: float, generator: torch.Generator) -> bool:
    """Return True in `share` of the calls; a share of 0 draws nothing."""
    return share > 0 and float(torch.rand((), generator=generator)) < share


def below(limit: int, generator: torch.Generator) -> int:
    """Return an integer of 0..limit-1, all equally likely."""
    return int(torch.randint(limit, (), generator=generator))


def between(low: float, high: float, generator: torch.Generator) -> float:
    """Return a number of low..high, all equally likely."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def geometry(settings: AugmentSettings, ndim: int, generator: torch.Generator) -> Matrix:
    """Return the matrix (ndim, ndim) of a random flip, quarter turn, rotation and zoom."""
    matrix = np.eye(ndim)
    for axis in (AXES[name] for name in settings.flip):
        if chance(0.5, generator):
            matrix[axis, axis] = -1
    if settings.quarter_turns:
        turn = np.eye(ndim)
        # Whole numbers, where a cosine of 90 degrees would leave 6e-17 and force a resampling.
        turn[-2:, -2:] = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), below(4, generator))
        matrix = matrix @ turn
    # At 1 nothing is drawn: a training without the setting keeps the windows it had.
    if settings.resample < 1 and not chance(settings.resample, generator):
        return matrix
    if settings.rotate:
        for first, second in [(-2, -1)] if ndim == 2 else [(-2, -1), (-3, -1), (-3, -2)]:
            angle = math.radians(between(-settings.rotate, settings.rotate, generator))
            rotation = np.eye(ndim)
            rotation[first, first] = rotation[second, second] = math.cos(angle)
            rotation[first, second], rotation[second, first] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ rotation
    smallest, largest = settings.scale
    if smallest != 1 or largest != 1:
        # Even in the logarithm: half the size is as likely as twice the size.
        matrix = matrix / math.exp(between(math.log(smallest), math.log(largest), generator))
    return matrix


def is_exact(matrix: Matrix) -> bool:
    """Return whether the matrix only reorders pixels: flips and quarter turns."""
    return np.array_equal(matrix, np.rint(matrix))


def reach(matrix: Matrix, window: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the upright box of the image that holds a window of shape `window`."""
    # The small number takes back what rounding adds: 256.00000000000006 is 256 pixels.
    return tuple(math.ceil(size - 1e-9) for size in np.abs(matrix) @ np.asarray(window))


def reorder(box: Tensor, matrix: Matrix) -> Tensor:
    """Return a box (..., *reach) flipped and turned by an exact matrix to (..., *window)."""
    ndim = len(matrix)
    source = np.abs(matrix).argmax(axis=0).tolist()  # axis of the image that each axis of the window runs along
    lead = box.ndim - ndim
    turned = box.permute(*range(lead), *(lead + axis for axis in source))
    return turned.flip([lead + axis for axis in range(ndim) if matrix[source[axis], axis] < 0])


def sampling_grid(matrix: Matrix, centre: Sequence[float], shape: Sequence[int], window: Sequence[int]) -> Tensor:
    """Return where the pixels of a window lie in a region of the image, as `resample` takes it.

    centre: the window's, in pixels of the region, whose shape is `shape`. Returns (1, *window, D) float32.
    """
    size = np.asarray(shape, float)
    scale = matrix * np.asarray(window, float) / size[:, None]
    offset = (2 * np.asarray(centre) + 1) / size - 1
    theta = np.concatenate([scale[::-1, ::-1], offset[::-1, None]], axis=1)  # grid_sample counts axes from x
    return F.affine_grid(torch.from_numpy(theta[None]).float(), [1, 1, *window], align_corners=False)


def resample(region: Tensor, grid: Tensor) -> Tensor:
    """Return an image (C, *S) at the places of `grid`, linearly interpolated and 0 outside."""
    return F.grid_sample(region[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def resample_labels(region: Tensor, grid: Tensor) -> Tensor:
    """Return labels (*S) at the nearest places to `grid`, 255 outside."""
    # Outside is 0 to grid_sample, so labels are counted from 255 down.
    flipped = (IGNORE - region.float())[None, None]
    sampled = F.grid_sample(flipped, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    return (IGNORE - sampled).to(torch.uint8)


def intensity(image: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Return an image with random blur, gamma, contrast, brightness, noise and blank bands, in this order.

    The order is that of a camera: optics, response, gain, offset, noise. Contrast and brightness differ by band.
    """
    view = (-1, *[1] * (image.ndim - 1))
    bands = len(image)
    if settings.blur and chance(0.5, generator):
        image = blur(image, between(0, settings.blur, generator))
    if settings.gamma:
        image = _gamma(image, math.exp(between(-settings.gamma, settings.gamma, generator)))
    if settings.contrast:
        factor = 1 + settings.contrast * (2 * torch.rand(bands, generator=generator) - 1)
        image = image * factor.view(view)
    if settings.brightness:
        offset = settings.brightness * (2 * torch.rand(bands, generator=generator) - 1)
        image = image + offset.view(view)
    if settings.noise:
        noise = torch.randn(image.shape, generator=generator)
        image = torch.add(image, noise, alpha=between(0, settings.noise, generator))
    if settings.band_dropout:
        keep = torch.rand(bands, generator=generator) >= settings.band_dropout
        if keep.any():  # a window without any band teaches nothing
            image = torch.where(keep.view(view), image, 0.0)
    return image


def blur(image: Tensor, sigma: float) -> Tensor:
    """Return an image (C, *S) smoothed by a Gaussian of `sigma` pixels along each spatial axis.

    The border is repeated outwards; the kernel ends at three sigma.
    """
    radius = math.ceil(3 * sigma)
    if not radius:
        return image
    kernel = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    kernel /= kernel[0] + 2 * kernel[1:].sum()
    for axis in range(1, image.ndim):
        size = image.shape[axis]
        padded = image.index_select(axis, torch.arange(-radius, size + radius).clamp(0, size - 1))
        # Shifted sums rather than a convolution: equal bits on any number of threads, and faster on one.
        image = padded.narrow(axis, radius, size) * kernel[0]
        for step in range(1, radius + 1):
            image.add_(padded.narrow(axis, radius - step, size), alpha=kernel[step])
            image.add_(padded.narrow(axis, radius + step, size), alpha=kernel[step])
    return image


def drop_source(image: Tensor, sources: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return an image whose bands of one source, drawn evenly, are NaN: missing, as the network takes it.

    sources: number of bands of each source, in order; two or more, so that one always stays.
    """
    lost = below(len(sources), generator)
    begin = sum(sources[:lost])
    image = image.clone()
    image[begin : begin + sources[lost]] = math.nan
    return image


def cutmix(
    image: Tensor, labels: Tensor, other: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a window with a random box of `other`, an (image, labels) of its shape, pasted in (Yun et al. 2019).

    The box is cut off at the border; before that, its share of the window is even in 0..1.
    """
    side = between(0, 1, generator) ** (1 / labels.ndim)
    box = []
    for size in labels.shape:
        centre = between(0, size, generator)
        box.append(slice(max(0, round(centre - side * size / 2)), min(size, round(centre + side * size / 2))))
    image, labels = image.clone(), labels.clone()
    image[(slice(None), *box)] = other[0][(slice(None), *box)]
    labels[tuple(box)] = other[1][tuple(box)]
    return image, labels


def _gamma(image: Tensor, exponent: float) -> Tensor:
    """Return each band raised to a power between its own smallest and largest value."""
    axes = tuple(range(1, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    spread = (high - low).clamp_min(1e-6)
    return ((image - low) / spread).pow(exponent) * spread + low
