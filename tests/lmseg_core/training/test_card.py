"""The model card: valid metadata, and the figures of the report."""

from collections.abc import Callable
from pathlib import Path

import yaml

from lmseg_core import LMSegConfig
from lmseg_core.training.card import write_card
from lmseg_core.training.settings import Settings

REPORT = {
    "steps": 8,
    "seconds": 120.0,
    "trained": 1000,
    "weights": 2000,
    "figures": {
        "mean_iou": 0.5,
        "mean_dice": 0.625,
        "foreground_dice": 0.75,
        "pixel_accuracy": 0.875,
        "iou_0": 0.25,
        "iou_1": float("nan"),
    },
}


def test_it_says_what_was_told_and_measured(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    card = {
        "about": "Finds bright ground.",
        "licence": "cc-by-4.0",
        "data": "Ours.",
        "limits": "Day only.",
        "tags": ["x"],
    }
    settings = make_settings({"card": card, "optimise.accumulate": 2})
    LMSegConfig(in_channels=2, bands=["a", "b"], id2label={0: "below", 1: "above"}).save_pretrained(tmp_path)
    write_card(tmp_path / "README.md", settings, REPORT)
    _, head, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["license"], told["pipeline_tag"], told["tags"]) == ("cc-by-4.0", "image-segmentation", ["lmseg", "x"])
    for words in (
        "# run", "Finds bright ground.", "Ours.", "Day only.", "2 bands (a, b)", "8 steps of 8 windows, 2 minutes",
        "mean IoU 0.500", "pixel accuracy 0.875", "| 0 | below | 0.250 |", "| 1 | above | nan |", settings.digest,
    ):  # fmt: skip
        assert words in body, words
