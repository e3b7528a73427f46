"""The command without its extras: what needs none works, what needs one says so before anything is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiling.extras import _PACKAGES

# A missing package is one that Python has None for: finding and importing it fail as they do where it is not installed.
EXTRAS = sorted({*(p for packages in _PACKAGES.values() for p in packages), "peft", "accelerate", "optuna", "pyogrio"})
START = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); from flows.cli import main; main()"


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path, scene: Path, brain: Path) -> Path:
    shutil.copy(scene, tmp_path / "scene.tif")
    shutil.copy(brain, tmp_path / "brain.nii.gz")
    return tmp_path


def test_a_raster_needs_none(folder: Path) -> None:
    done = _run(folder, "segment", "scene.tif", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "scene_labels.tif").is_file()
    done = _run(folder, "verify", "out/scene.zarr")
    assert (done.returncode, done.stderr) == (0, "")
    done = _run(folder, "export", "out/scene.zarr", "again.tif")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["info", "brain.nii.gz"], "NIfTI volumes need nibabel and indexed_gzip; pip install 'lmseg[volumes]'"),
        (["plan", "brain.nii.gz"], "NIfTI volumes need nibabel and indexed_gzip; pip install 'lmseg[volumes]'"),
        (
            ["segment", "brain.nii.gz", "-o", "out"],
            "NIfTI volumes need nibabel and indexed_gzip; pip install 'lmseg[volumes]'",
        ),
        (
            ["segment", "scene.tif", "-o", "out", "--workers", "2"],
            "--workers and --cluster need dask and distributed; pip install 'lmseg[cluster]'",
        ),
        (
            ["segment", "scene.tif", "-o", "out", "--cluster", "tcp://127.0.0.1:1"],
            "--workers and --cluster need dask and distributed; pip install 'lmseg[cluster]'",
        ),
        (["evaluate", "scene.tif", "scene.tif"], "scores need scipy; pip install 'lmseg[evaluate]'"),
        (["finetune", "any.yaml"], "training needs accelerate; pip install 'lmseg[train]'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_missing_extra_is_one_line(arguments: list[str], line: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = _run(folder, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"lmseg: {line}\n")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["info", "scene.tif"], ["plan", "scene.tif"]])
def test_other_commands_need_none(arguments: list[str], folder: Path) -> None:
    done = _run(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_demo_runs_what_is_installed_and_names_the_rest(tmp_path: Path) -> None:
    done = _run(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    written = {file.name for file in (tmp_path / "lmseg-demo").iterdir()}
    assert {"sentinel2_accomack_labels.tif", "yellowstone_labels.tif"} <= written
    assert not any(name.startswith("mni152") for name in written)
    assert "volumes need nibabel and indexed_gzip; pip install 'lmseg[volumes]'" in done.stdout
