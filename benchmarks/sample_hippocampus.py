"""The bundled hippocampus model: anterior and posterior hippocampus in T1-weighted MR at about 1 mm."""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch.nn import functional as F

from lmseg_core import Confusion, LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor
from lmseg_core.training.plain import Sample, batches, save, train

TILE = (40, 48, 40)  # z, y, x: what prediction uses
WINDOW = (32, 48, 32)  # what training uses; smaller, so that a step is cheap


def train_model(source: Path, target: Path, steps: int) -> None:
    """Train on the `train` cases below `source`, measure on its `val` cases, and save to `target`."""
    config = LMSegConfig(
        ndim=3,
        in_channels=1,
        widths=(16, 32, 64, 96),
        tile=TILE,
        bands=("T1",),
        id2label={0: "background", 1: "anterior hippocampus", 2: "posterior hippocampus"},
        colours=("#000000", "#e6a532", "#3278c8"),
    )
    model = LMSegForSemanticSegmentation(config)
    model.to(memory_format=torch.channels_last_3d)
    train(model, batches(read_cases(source / "train"), augmented, 2, seed=0), steps)
    save(model.to(memory_format=torch.contiguous_format), LMSegImageProcessor(mode="image"), target)
    figures = measure(model, read_cases(source / "val"))
    sys.stdout.write(json.dumps(figures) + "\n")


def read_cases(folder: Path) -> list[Sample]:
    """Read all cases in (z, y, x) order, each normalised by the mean and standard deviation of its whole image."""
    cases = []
    for path in sorted((folder / "images").glob("*.nii*")):
        image = nibabel.load(path).get_fdata(dtype=np.float32).T
        labels = np.asanyarray(nibabel.load(folder / "labels" / path.name).dataobj).T.astype(np.uint8)
        image = (image - image.mean()) / image.std()
        cases.append(Sample(torch.from_numpy(image.copy())[None], torch.from_numpy(labels.copy())))
    return cases


def measure(model: LMSegForSemanticSegmentation, cases: list[Sample]) -> dict[str, float]:
    """Return the Dice of each class, averaged over the cases."""
    scores = []
    for case in cases:
        with torch.inference_mode():
            prediction = model(case.image[None]).logits.argmax(1)[0]
        confusion = Confusion(3)
        confusion.add(prediction.numpy(), case.labels.numpy())
        scores.append(confusion.dice)
    anterior, posterior = np.nanmean(scores, axis=0)[1:]
    return {"anterior": anterior, "posterior": posterior, "mean": (anterior + posterior) / 2, "cases": len(cases)}


def augmented(case: Sample, generator: torch.Generator) -> Sample:
    """Return a randomly moved, turned, scaled and mirrored window of WINDOW with other contrast, noise and blur.

    The crops end where the neighbouring tissue begins. What lies beyond is made up: the mirrored crop (across the
    midline it resembles the other side), or a constant, as skull-stripping leaves it.
    """
    grid = _grid(case.labels.shape, generator)
    beyond = "reflection" if _chance(0.6, generator) else "zeros"
    empty = float(case.image.min()) if _chance(0.5, generator) else 0.0
    image = F.grid_sample(case.image[None] - empty, grid, padding_mode=beyond, align_corners=False)[0] + empty
    labels = F.grid_sample(
        case.labels[None, None].float(), grid, mode="nearest", padding_mode=beyond, align_corners=False
    )
    return Sample(_appearance(image, generator), labels[0, 0].to(torch.uint8))


def _grid(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return where each voxel of the window lies in the crop, (1, *WINDOW, 3) in grid_sample's units."""
    scale = 1 / (_uniform(0.85, 1.3, generator) * _uniform(0.9, 1.1, generator, 3))
    flip = torch.tensor([1.0, 1.0, -1.0 if _chance(0.5, generator) else 1.0])  # left and right
    matrix = _rotation(_uniform(-0.25, 0.25, generator, 3)) * (scale * flip)
    axes = [torch.arange(n) - (n - 1) / 2 for n in WINDOW]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (*WINDOW, 3), z y x from the centre
    size = torch.tensor(shape, dtype=torch.float32)
    shift = (torch.rand(3, generator=generator) - 0.5) * size * 0.8
    where = voxels @ matrix.T + shift
    return (where * 2 / size).flip(-1)[None]  # z y x -> x y z


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    skew = torch.zeros(3, 3)
    skew[0, 1], skew[0, 2], skew[1, 2] = angles
    return torch.linalg.matrix_exp(skew - skew.T)


def _appearance(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change gamma, contrast, brightness, noise and sharpness of a normalised image (1, *WINDOW)."""
    low, high = image.min(), image.max()
    gamma = float(torch.exp(_uniform(-0.4, 0.4, generator)))
    image = low + (high - low) * ((image - low) / (high - low).clamp_min(1e-3)) ** gamma
    if _chance(0.5, generator):
        image = _blur(image, float(_uniform(0.4, 1.3, generator)))
    image = image * _uniform(0.75, 1.35, generator) + _uniform(-0.4, 0.4, generator)
    return image + torch.randn(image.shape, generator=generator) * _uniform(0.0, 0.15, generator)


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    offsets = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        shape, padding = [1] * 5, [0] * 3
        shape[axis + 2], padding[axis] = 7, 3
        reach = [amount for n in reversed(padding) for amount in (n, n)]
        image = F.conv3d(F.pad(image[None], reach, mode="replicate"), kernel.view(shape))[0]
    return image


def _uniform(low: float, high: float, generator: torch.Generator, count: int = 1) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _chance(share: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < share)
