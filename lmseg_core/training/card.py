"""The model card, in the form of the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lmseg_core.config import LMSegConfig
from lmseg_core.training.settings import Settings


def write_card(path: Path, settings: Settings, report: Mapping[str, Any]) -> None:
    """Write what the model is, what it learned from, and what was measured; `report` is that of the training.

    The folder of `path` holds the model."""
    told, figures = settings.card, report["figures"]
    config = LMSegConfig.from_pretrained(path.parent)
    head = {
        "license": told.licence,
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["lmseg", *told.tags],
    }
    name = settings.output.name
    rows = [_row(entry.value, entry.name, figures[f"iou_{entry.value}"]) for entry in config.classes]
    language = settings.model.language_model
    tile = " x ".join(map(str, config.tile))
    own = "the training data" if settings.model.start is None else f"{Path(settings.model.start).name}, its start"
    statistics = {None: own, "fixed": "the training data", "image": "the whole image"}[settings.data.normalise]
    windows = settings.optimise.batch * settings.optimise.accumulate
    bridge = f"{language.blocks} blocks of {Path(language.name).name}, {language.tune}" if language else "none"
    bands = "1 band" if config.in_channels == 1 else f"{config.in_channels} bands"
    shown = {name: f"{value:.3f}" for name, value in figures.items()}
    text = f"""---
{yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False).strip()}
---

# {name}

{told.about.strip()}

| | |
| --- | --- |
| input | {bands} ({", ".join(config.bands)}), {config.ndim}D, tiles of {tile} |
| normalised by | mean and standard deviation of {statistics} |
| language model | {bridge} |
| weights | {report["weights"]:,}, stored as {settings.model.save_as} |
| weights that were trained | {report["trained"]:,} |
| training | {report["steps"]} steps of {windows} windows, {report["seconds"] / 60:.0f} minutes |
| settings | digest {settings.digest} |

## Data

{told.data.strip()}

## Figures

On the validation data in windows side by side, all pixels together: mean IoU {shown["mean_iou"]}, mean Dice
{shown["mean_dice"]}, of the classes but the first {shown["foreground_dice"]}, pixel accuracy {shown["pixel_accuracy"]}.

| value | class | IoU | Dice |
| ---: | --- | ---: | ---: |
{chr(10).join(rows)}

## Limits

{told.limits.strip()}
"""
    path.write_text(text)


def _row(value: int, name: str, iou: float) -> str:
    return f"| {value} | {name} | {iou:.3f} | {2 * iou / (1 + iou):.3f} |"
