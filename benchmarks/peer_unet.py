"""Our network beside MONAI's U-Net: as many weights, the same windows in the same order, the same recipe.

    python benchmarks/peer_unet.py TILES [--steps 2000] [--seed 0]

TILES is what benchmarks/dubai_tiles.py writes; the recipe is docs/configs/dubai.yaml. Both are scored on the whole
validation tile. Prints a table and adds the figures to peer_unet.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import monai
import torch
from torch import Tensor, nn

from flows.training.data import examples
from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation
from lmseg_core.model import LMSegOutput
from lmseg_core.training.network import build, class_names
from lmseg_core.training.run import train
from lmseg_core.training.settings import read_settings

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
CHANNELS = (21, 42, 84, 168, 264)  # five levels, as ours has with its stem; the widths match the number of weights


class MonaiUNet(LMSegForSemanticSegmentation):
    """MONAI's residual U-Net, where our encoder and decoder are."""

    def __init__(self, config: LMSegConfig) -> None:
        super().__init__(config)
        del self.encoder, self.decoder, self.head
        self.network = monai.networks.nets.UNet(
            spatial_dims=config.ndim, in_channels=config.in_channels, out_channels=len(config.classes),
            channels=CHANNELS, strides=(2,) * (len(CHANNELS) - 1), num_res_units=2, norm="batch",
        )  # fmt: skip

    def parts(self) -> dict[str, nn.Module]:
        return {"decoder": self.network}

    def forward(self, pixel_values: Tensor, **_: Any) -> LMSegOutput:
        return LMSegOutput(logits=self.network(pixel_values))

    def _init_weights(self, module: nn.Module) -> None:
        """MONAI's own."""


def main() -> None:
    """Train both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder of the trainings, where they resume")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = {
            name: trained(name, options.tiles, options.steps, options.seed, options.runs or Path(scratch))
            for name in ("lmseg", "MONAI U-Net")
        }
    entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    entries.append({"steps": options.steps, "seed": options.seed, "figures": rows})
    RESULTS.write_text(json.dumps(entries, indent=1) + "\n")
    sys.stdout.write(
        "| network | weights | mean IoU | pixel accuracy | training |\n| --- | ---: | ---: | ---: | ---: |\n"
    )
    for name, row in rows.items():
        sys.stdout.write(
            f"| {name} | {row['weights'] / 1e6:.2f} M | {row['mean_iou']:.4f} | {row['pixel_accuracy']:.4f} | "
            f"{row['seconds'] / 60:.0f} min |\n"
        )


def trained(name: str, tiles: Path, steps: int, seed: int, runs: Path) -> dict[str, float]:
    """Train one of the two on the recipe."""
    changes = {
        "data.root": str(tiles), "output": str(runs / name.replace(" ", "-")), "seed": seed, "optimise.steps": steps,
    }  # fmt: skip
    settings = read_settings(ROOT / "docs" / "configs" / "dubai.yaml", changes)
    names = class_names(settings.model)
    torch.manual_seed(seed)
    network = None if name == "lmseg" else MonaiUNet(build(settings).config)
    training, validation = (
        examples(settings.data, part, names) for part in (settings.data.train, settings.data.validation)
    )
    report = train(settings, training, validation, network=network)
    return {**report.figures, "weights": report.weights, "seconds": report.seconds}


if __name__ == "__main__":
    main()
