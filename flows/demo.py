"""The main job on real samples, with the bundled models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import tiling
from flows.console import print_summary, segment_with_progress
from flows.parameters import Parameters, RegionParameters, VolumeParameters
from tiling import Box, Store
from tiling.extras import missing

SAMPLES = Path(__file__).parent / "samples"
SCENE = SAMPLES / "sentinel2_accomack.tif"
PICTURE = SAMPLES / "yellowstone.jpg"
BRAIN = SAMPLES / "mni152_t1.nii.gz"

# Around both hippocampi of the MNI152 brain, in millimetres (RAS+), as the model's training crops are around one.
HIPPOCAMPI = (-44.5, -44.5, -34.5, 43.5, 7.5, 7.5)

# The volume inside the template's skull, and that of a usual adult.
TEMPLATE_LITRES, ADULT_LITRES = 1.89, 1.5


def run_demo(output: Path) -> None:
    """Segment the bundled samples with each bundled model, and print what was found and written.

    Runs the Prefect flows where Prefect is installed, else the stages that they are made of. Without the extra for
    volumes the brain is left out.
    """
    print("Segmenting a Sentinel-2 scene, an aerial picture and the MNI152 brain: a minute on two cores", flush=True)
    scene = RegionParameters(sources=[str(SCENE)], output=output, model="land-cover-tiny")
    picture = RegionParameters(sources=[str(PICTURE)], output=output, model="aerial-tiny")
    brain = VolumeParameters(sources=[str(BRAIN)], output=output, model="hippocampus-tiny", box=HIPPOCAMPI)
    volumes = () if missing("volumes") else (brain,)
    segment = _by_stages if missing("prefect") else _by_flows
    summaries = segment(scene, picture, *volumes)
    for summary in summaries:
        print_summary(summary)
    print(
        "\naerial-tiny learned from towns in the desert: in Yellowstone it finds trees and open ground,\n"
        "  and takes some shade for buildings"
    )
    if volumes:
        print(_sides(tiling.open_store(summaries[-1]["store"])))
    else:
        print(
            f"\nThe brain was left out: volumes need {' and '.join(missing('volumes'))}; pip install 'lmseg[volumes]'"
        )
    previews = [file for summary in summaries for file in summary["files"] if file.endswith(".png")]
    print("\nLook at", " and ".join(previews))


def _by_stages(*runs: Parameters) -> list[dict[str, Any]]:
    return [report.summary() for parameters in runs for report in segment_with_progress(parameters)]


def _by_flows(*runs: Parameters) -> list[dict[str, Any]]:
    # Without a server of its own Prefect starts one for the moment, which a busy machine is slow to do.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    from flows.segment import segment_region, segment_volume

    summaries: list[Any] = []
    for parameters in runs:
        # A flow that fails raises here: what it returns is its summaries.
        if isinstance(parameters, VolumeParameters):
            summaries += segment_volume(parameters)
        else:
            summaries += segment_region(parameters)
    return summaries


def _sides(store: Store) -> str:
    """The volume of each hippocampus, as it is in the template and at the size of a brain."""
    space = store.out_space
    labels = store.read(Box.whole(space.shape))
    x = [space.to_world((0, 0, i))[0] for i in range(space.shape[2])]
    left, right = (
        np.count_nonzero(labels[..., side]) * space.cell / 1000 for side in (np.less(x, 0), np.greater(x, 0))
    )
    return (
        f"hippocampus: left {left:.2f} ml, right {right:.2f} ml in the template, which is larger than most brains;\n"
        f"  scaled to an adult's {ADULT_LITRES} of its {TEMPLATE_LITRES} litres, "
        f"left {left * ADULT_LITRES / TEMPLATE_LITRES:.2f} ml, right {right * ADULT_LITRES / TEMPLATE_LITRES:.2f} ml"
    )
