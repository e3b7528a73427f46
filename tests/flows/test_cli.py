"""The command line as a person meets it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
from PIL import Image

from .conftest import Cli

START = [sys.executable, "-c", "from flows.cli import main; main()"]


@pytest.mark.parametrize("arguments", [["--help"], ["info", "{scene}"], ["models"]])
def test_answers_without_loading_torch(arguments: list[str], scene: Path) -> None:
    watch = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    command = [sys.executable, "-c", watch + "from flows.cli import main; main()"]
    done = subprocess.run(
        [*command, *(a.format(scene=scene) for a in arguments)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_ctrl_c_says_how_to_go_on(cli: Cli, scene: Path, tmp_path: Path) -> None:
    arguments = ["segment", str(scene), "-m", "land-cover-tiny", "-o", str(tmp_path)]
    running = subprocess.Popen([*START, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(tmp_path.glob("*.zarr")):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 1
    assert err.splitlines()[-1] == "lmseg: interrupted; run the same command again to resume"
    assert cli(*arguments)[0] == 0


def test_info_says_where_a_raster_lies(cli: Cli, scene: Path) -> None:
    code, out, _ = cli("info", scene, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["kind"] == "raster"
    assert facts["crs"] == "EPSG:32618"
    assert "B04" in facts["bands"]


def test_info_says_where_a_volume_lies(cli: Cli, brain: Path) -> None:
    code, out, _ = cli("info", brain)
    assert code == 0
    assert "RAS" in out
    assert "197 x 233 x 189" in out


def test_plan_writes_nothing(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    code, out, _ = cli("plan", picture, "-m", raster_model, "--json")
    facts = json.loads(out)
    assert code == 0
    # 300 and 260 pixels in tiles of 64 every 48: 6 and 6.
    assert facts["tiles"] == 36
    assert list(tmp_path.iterdir()) == []


def test_a_raster_from_input_to_every_file(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    code, out, err = cli(
        "segment", picture, "-m", raster_model, "-o", tmp_path / "out", "--probability", "--uncertainty"
    )
    assert code == 0, err
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {
        "picture.zarr",
        "picture_labels.tif",
        "picture_labels.tif.aux.xml",
        "picture_prob.tif",
        "picture_uncertainty.tif",
        "picture_preview.png",
        "picture.run.json",
    }
    report = json.loads((tmp_path / "out" / "picture.run.json").read_text())
    with rasterio.open(picture) as source, rasterio.open(tmp_path / "out" / "picture_labels.tif") as labels:
        assert (labels.crs, labels.transform, labels.shape) == (source.crs, source.transform, source.shape)
        found = np.bincount(labels.read(1).ravel(), minlength=256)
    assert [c["pixels"] for c in report["classes"]] == found[:4].tolist()
    # Pixels of 10 m.
    assert [c["measure"] for c in report["classes"]] == pytest.approx((found[:4] * 1e-4).tolist())
    with rasterio.open(tmp_path / "out" / "picture_prob.tif") as probability:
        assert probability.descriptions == tuple(f"class {i}" for i in range(4))
        likeliest = probability.read().astype(int)
    assert np.abs(likeliest.sum(axis=0) - 254).max() <= 2
    assert Image.open(tmp_path / "out" / "picture_preview.png").size[0] > 300
    for file in report["files"]:
        assert file in out

    code, out, _ = cli("verify", tmp_path / "out" / "picture.zarr")
    assert code == 0
    assert out.count("ok ") == 4


def test_a_volume_from_input_to_every_file(cli: Cli, brain: Path, volume_model: str, tmp_path: Path) -> None:
    box = [-40, -45, -35, -10, 0, 10]
    code, _, err = cli("segment", brain, "-m", volume_model, "-o", tmp_path, "--box", *box)
    assert code == 0, err
    seg = nibabel.load(tmp_path / "mni152_t1_seg.nii.gz")
    # A voxel of 1 mm reaches half a millimetre to either side of its centre: a box from centre to centre takes both.
    assert seg.shape == (31, 46, 46)
    assert nibabel.affines.apply_affine(seg.affine, [0, 0, 0]).tolist() == [-40, -45, -35]
    report = json.loads((tmp_path / "mni152_t1.run.json").read_text())
    assert sum(c["measure"] for c in report["classes"]) == pytest.approx(31 * 46 * 46 / 1000)
    assert {c["unit"] for c in report["classes"]} == {"ml"}
    assert cli("verify", tmp_path / "mni152_t1.zarr")[0] == 0


def test_a_finished_run_is_not_computed_again(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    command = ["segment", picture, "-m", raster_model, "-o", tmp_path]
    assert cli(*command)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "picture.zarr").rglob("c/*") if p.is_file()}
    assert before
    assert cli(*command)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_results_lie_in_the_current_folder_where_none_is_named(
    cli: Cli, picture: str, raster_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("segment", picture, "-m", raster_model)[0] == 0
    made = {
        "picture.zarr",
        "picture_labels.tif",
        "picture_labels.tif.aux.xml",
        "picture_preview.png",
        "picture.run.json",
    }
    assert {file.name for file in tmp_path.iterdir() if not file.name.startswith(".")} - {Path(picture).name} == made
    assert cli("verify", "picture.zarr")[0] == 0


def test_verify_fails_for_an_unfinished_or_tampered_run(
    cli: Cli, picture: str, raster_model: str, tmp_path: Path
) -> None:
    assert cli("segment", picture, "-m", raster_model, "-o", tmp_path)[0] == 0
    with rasterio.open(tmp_path / "picture_labels.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as labels:
        labels.transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    code, out, _ = cli("verify", tmp_path / "picture.zarr")
    assert code == 1
    assert "FAIL export" in out
    shutil.rmtree(tmp_path / "picture.zarr" / "record" / "c")
    code, out, _ = cli("verify", tmp_path / "picture.zarr", "--json")
    assert code == 1
    assert {c["name"]: c["passed"] for c in json.loads(out)}["complete"] is False


def test_export_takes_the_format_from_the_ending(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    assert cli("segment", picture, "-m", raster_model, "-o", tmp_path)[0] == 0
    code, out, _ = cli("export", tmp_path / "picture.zarr", tmp_path / "again.tif")
    assert code == 0
    assert str(tmp_path / "again.tif") in out
    code, _, err = cli("export", tmp_path / "picture.zarr", tmp_path / "again.nii")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = cli("export", tmp_path / "picture.zarr", tmp_path / "prob.tif", "--what", "probability")
    assert code == 2
    assert "--probability" in err
