"""A plain training loop for small models: random windows, AdamW, a cosine schedule."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmseg_core.model import LMSegForSemanticSegmentation
from lmseg_core.processor import LMSegImageProcessor

SeededWindow = Callable[["Sample", torch.Generator], "Sample"]


class Sample(NamedTuple):
    """A normalised image (C, *S) float32 and its labels (*S) uint8, 255 = ignore."""

    image: Tensor
    labels: Tensor


def random_window(tile: Sequence[int]) -> SeededWindow:
    """Return a function that cuts a random window of shape `tile` and flips it along random axes."""

    def cut(sample: Sample, generator: torch.Generator) -> Sample:
        index: list[slice] = []
        for size, want in zip(sample.labels.shape, tile, strict=True):
            start = _below(size - want + 1, generator)
            index.append(slice(start, start + want))
        image, labels = sample.image[(slice(None), *index)], sample.labels[tuple(index)]
        axes = [axis for axis in range(-len(tile), 0) if _below(2, generator)]
        return Sample(image.flip(axes), labels.flip(axes))

    return cut


def batches(samples: Sequence[Sample], window: SeededWindow, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of windows for ever: (B, C, *tile) float32 and (B, *tile) uint8.

    Samples are drawn by their number of pixels, so that each pixel is seen about as often.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.tensor([float(sample.labels.numel()) for sample in samples])
    while True:
        drawn = torch.multinomial(pixels, size, replacement=True, generator=generator).tolist()
        windows = [window(samples[index], generator) for index in drawn]
        yield torch.stack([w.image for w in windows]), torch.stack([w.labels for w in windows])


def train(
    model: LMSegForSemanticSegmentation,
    data: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    rate: float = 2e-3,
) -> None:
    """Train in place, with AdamW and a cosine schedule after a short warm-up; a progress line goes to stderr."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cosine(step, steps))
    began, mean = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        images, labels = next(data)
        loss = model(pixel_values=images, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        mean = loss.item() if step == 1 else 0.95 * mean + 0.05 * loss.item()
        left = (time.monotonic() - began) / step * (steps - step)
        sys.stderr.write(f"\rstep {step}/{steps}  loss {mean:.3f}  {left:.0f} s left  ")
    sys.stderr.write("\n")
    model.train(False)


def save(model: LMSegForSemanticSegmentation, processor: LMSegImageProcessor, folder: Path) -> None:
    """Write a model folder that `Predictor` reads, with weights in float16: half the size, computed in float32.

    The model is rounded in place to what was written, so that figures measured after are those of the file.
    """
    nn.Module.to(model, torch.float16)
    model.save_pretrained(folder)
    nn.Module.to(model, torch.float32)
    processor.save_pretrained(folder)


def _cosine(step: int, steps: int) -> float:
    warm = min(100, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * step / steps))


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
