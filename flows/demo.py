"""The main job on real samples, with the bundled models."""

from __future__ import annotations

from pathlib import Path

from flows.console import print_report, segment_with_progress
from flows.parameters import RegionParameters, VolumeParameters
from flows.report import Report

SAMPLES = Path(__file__).parent / "samples"
SCENE = SAMPLES / "sentinel2_accomack.tif"
BRAIN = SAMPLES / "mni152_t1.nii.gz"

# Around both hippocampi of the MNI152 brain, in millimetres (RAS+), as the model's training crops are around one.
HIPPOCAMPI = (-44.5, -44.5, -34.5, 43.5, 7.5, 7.5)


def run_demo(output: Path) -> list[Report]:
    """Segments the Sentinel-2 scene and the MNI152 brain into `output`, and prints what was found and written."""
    reports = []
    for parameters in (
        RegionParameters(sources=[str(SCENE)], output=output, model="land-cover-tiny"),
        VolumeParameters(sources=[str(BRAIN)], output=output, model="hippocampus-tiny", box=HIPPOCAMPI),
    ):
        for report in segment_with_progress(parameters):
            print_report(report)
            reports.append(report)
    previews = [str(f) for report in reports for f in report.files if f.suffix == ".png"]
    print("\nLook at", " and ".join(previews))
    return reports
