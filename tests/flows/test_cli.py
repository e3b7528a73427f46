"""The command line as a person meets it."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
from PIL import Image

import tiling

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
    assert out.count("ok ") == 3


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


def test_verify_fails_for_an_unfinished_or_tampered_run(
    cli: Cli, picture: str, raster_model: str, tmp_path: Path
) -> None:
    assert cli("segment", picture, "-m", raster_model, "-o", tmp_path)[0] == 0
    with rasterio.open(tmp_path / "picture_labels.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as labels:
        labels.transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    code, out, _ = cli("verify", tmp_path / "picture.zarr")
    assert code == 1
    assert "FAIL export" in out
    shutil.rmtree(tmp_path / "picture.zarr" / "manifest" / "c")
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


@pytest.mark.parametrize("moment", ["labels", "c"])
def test_a_killed_run_resumes_to_the_same_labels(
    moment: str, cli: Cli, wide: str, raster_model: str, tmp_path: Path
) -> None:
    command = ["segment", wide, "-m", raster_model, "--tile", "256", "--memory", "740MiB", "-o"]
    with subprocess.Popen([*START, *command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL) as process:
        # Once as soon as there is a store, once when the first blocks are in it.
        while process.poll() is None and not any((tmp_path / "killed" / "wide.zarr").rglob(moment)):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9
    left = tiling.open_store(tmp_path / "killed" / "wide.zarr").pending()
    assert left
    assert cli(*command, tmp_path / "killed")[0] == 0
    assert cli(*command, tmp_path / "whole")[0] == 0
    with (
        rasterio.open(tmp_path / "killed" / "wide_labels.tif") as a,
        rasterio.open(tmp_path / "whole" / "wide_labels.tif") as b,
    ):
        np.testing.assert_array_equal(a.read(), b.read())


# --- Bad input -------------------------------------------------------------------------------------------------------

Prepare = Callable[[Path, dict[str, str]], list[str]]


def _tiff(path: Path, values: np.ndarray, **profile: object) -> str:
    profile = {"crs": "EPSG:32618", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)} | profile
    with rasterio.open(
        path, "w", driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2],
        dtype=values.dtype, **profile,
    ) as target:  # fmt: skip
        target.write(values)
    return str(path)


def _cut(source: str | Path, path: Path, share: float) -> str:
    data = Path(source).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return str(path)


def _text(path: Path) -> str:
    path.write_text("this is no image\n")
    return str(path)


def _nifti(path: Path, shape: tuple[int, ...], shift: float = 0) -> str:
    image = nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4))
    image.set_sform(np.eye(4), code=1)
    qform = np.eye(4)
    qform[:3, 3] = shift
    image.set_qform(qform, code=1)
    nibabel.save(image, path)
    return str(path)


def _long_nifti(path: Path) -> str:
    header = nibabel.Nifti2Header()
    header.set_data_shape((40_000, 8, 8))
    header.set_data_dtype(np.uint8)
    header.set_sform(np.eye(4), code=1)
    path.write_bytes(header.binaryblock + b"\0" * (544 - 540) + bytes(40_000 * 64))
    return str(path)


def _empty_nifti(path: Path) -> str:
    header = nibabel.Nifti1Header()
    header.set_data_shape((8, 8, 8))
    raw = bytearray(header.binaryblock)
    struct.pack_into("<h", raw, 44, 0)  # dim[2]
    path.write_bytes(bytes(raw) + b"\0" * 4 + bytes(512))
    return str(path)


def _model_folder(folder: Path, model: str, drop: bool = True, pickle: bool = False) -> str:
    shutil.copytree(model, folder)
    if drop:
        (folder / "model.safetensors").unlink()
    if pickle:
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return str(folder)


# name: (command line after `segment`, words that the one line must hold)
BAD: dict[str, tuple[Prepare, list[str]]] = {
    "missing raster": (lambda t, f: [str(t / "no.tif")], ["no.tif", "does not exist"]),
    "missing volume": (lambda t, f: [str(t / "no.nii.gz")], ["no.nii.gz", "does not exist"]),
    "truncated tiff": (lambda t, f: [_cut(f["picture"], t / "cut.tif", 0.6)], ["cut.tif", "truncated"]),
    "text as tiff": (lambda t, f: [_text(t / "text.tif")], ["text.tif", "cannot be opened"]),
    "text as nifti": (lambda t, f: [_text(t / "text.nii")], ["text.nii", "cannot be opened"]),
    "truncated nifti": (lambda t, f: [_cut(f["brain"], t / "cut.nii.gz", 0.5)], ["cut.nii.gz", "truncated"]),
    "4-D nifti": (lambda t, f: [_nifti(t / "four.nii", (8, 8, 8, 3))], ["four.nii", "4 dimensions"]),
    "no voxels": (lambda t, f: [_empty_nifti(t / "none.nii")], ["none.nii"]),
    "too many bands": (
        lambda t, f: [_tiff(t / "five.tif", np.ones((5, 80, 80), np.uint8)), "-m", f["raster_model"]],
        ["five.tif", "5 bands", "3", "--bands"],
    ),
    "too few bands": (
        lambda t, f: [_tiff(t / "one.tif", np.ones((1, 80, 80), np.uint8)), "-m", f["raster_model"]],
        ["one.tif", "1 bands", "3"],
    ),
    "no such band": (lambda t, f: [f["picture"], "--bands", "1,2,9"], ["picture.tif", "no band 9"]),
    "bands in words": (lambda t, f: [f["picture"], "--bands", "red"], ["--bands", "red"]),
    "area beside the image": (
        lambda t, f: [f["picture"], "-m", f["raster_model"], "--bbox", "0", "0", "5", "5"],
        ["misses the image"],
    ),
    "box beside the volume": (
        lambda t, f: [f["brain"], "--box", "900", "900", "900", "950", "950", "950"],
        ["misses the image"],
    ),
    "empty bounding box": (
        lambda t, f: [f["picture"], "--bbox", "5", "0", "0", "5"],
        ["bounding box", "west"],
    ),
    "forms that disagree": (lambda t, f: [_nifti(t / "two.nii", (20, 20, 20), shift=7)], ["two.nii", "--form"]),
    "side too long for nifti": (
        lambda t, f: [_long_nifti(t / "long.nii")],
        ["long.nii", "40000", "32767"],
    ),
    "tile larger than the image": (
        lambda t, f: [f["picture"], "-m", f["raster_model"], "--tile", "500"],
        ["picture.tif", "500", "--tile 260"],
    ),
    "overlap of one": (lambda t, f: [f["picture"], "--overlap", "1"], ["--overlap", "1"]),
    "too little memory": (
        lambda t, f: [f["picture"], "-m", f["raster_model"], "--memory", "100MiB"],
        ["picture.tif", "--memory"],
    ),
    "memory in words": (lambda t, f: [f["picture"], "--memory", "lots"], ["--memory", "lots", "2GiB"]),
    "volume for a raster model": (
        lambda t, f: [f["brain"], "-m", f["raster_model"]],
        ["mni152_t1.nii.gz", "3D volume", "--model"],
    ),
    "raster for a volume model": (
        lambda t, f: [f["picture"], "-m", f["volume_model"]],
        ["picture.tif", "2D raster", "--model"],
    ),
    "model without weights": (
        lambda t, f: [f["picture"], "-m", _model_folder(t / "bare", f["raster_model"])],
        ["bare", "model.safetensors"],
    ),
    "pickle for weights": (
        lambda t, f: [f["picture"], "-m", _model_folder(t / "old", f["raster_model"], pickle=True)],
        ["pytorch_model.bin", "pickle"],
    ),
    "unknown model": (lambda t, f: [f["picture"], "-m", "land-cover-tinny"], ["land-cover-tinny", "land-cover-tiny"]),
    "option of the other kind": (
        lambda t, f: [f["picture"], "--box", "0", "0", "0", "1", "1", "1"],
        ["picture.tif", "--box", "rasters"],
    ),
    "cuda where there is none": (
        lambda t, f: [f["picture"], "-m", f["raster_model"], "--device", "cuda"],
        ["cuda"],
    ),
    "a bad second source": (
        lambda t, f: [f["picture"], str(t / "no.tif"), "-m", f["raster_model"]],
        ["no.tif", "does not exist"],
    ),
    "two of one name": (
        lambda t, f: [f["picture"], _cut(f["picture"], t / "picture.tif", 1)],
        ["picture", "rename"],
    ),
}


@pytest.mark.parametrize("case", BAD, ids=lambda name: name.replace(" ", "-"))
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, cli: Cli, tmp_path: Path, picture: str, brain: Path, raster_model: str, volume_model: str
) -> None:
    import torch

    if case == "cuda where there is none" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    files = {"picture": picture, "brain": str(brain), "raster_model": raster_model, "volume_model": volume_model}
    prepare, words = BAD[case]
    arguments = prepare(tmp_path, files)
    code, out, err = cli("segment", *arguments, "-o", tmp_path / "out")
    assert code == 2, err
    assert err.startswith("lmseg: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_usage_errors_are_exit_two(cli: Cli, picture: str) -> None:
    assert cli("segment", picture)[0] == 2
    assert cli("segment", picture, "-o", "x", "--no-such-option")[0] == 2


def test_an_output_folder_that_is_a_file(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    code, _, err = cli("segment", picture, "-m", raster_model, "-o", tmp_path / "file" / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be written" in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kib", [40, 100, 180])
def test_a_full_disk_is_one_line_and_leaves_no_half_written_file(
    kib: int, cli: Cli, picture: str, raster_model: str, tmp_path: Path
) -> None:
    """A small file system that is too small for the store, the export or the preview; then one that is not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        code, _, err = cli("segment", picture, "-m", raster_model, "-o", disk / "out")
        assert code == 2
        assert err.splitlines()[-1].startswith("lmseg: ")
        assert "free some space" in err.splitlines()[-1]
        left = [p for p in (disk / "out").iterdir() if p.suffix != ".zarr"]
        for path in left:
            assert path.name in ("picture_labels.tif", "picture_labels.tif.aux.xml")
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert cli("segment", picture, "-m", raster_model, "-o", disk / "out")[0] == 0
        with rasterio.open(disk / "out" / "picture_labels.tif") as labels:
            assert labels.read(1).max() < 4
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_output_of_another_run_is_kept(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    assert cli("segment", picture, "-m", raster_model, "-o", tmp_path / "out")[0] == 0
    before = (tmp_path / "out" / "picture_labels.tif").read_bytes()
    code, _, err = cli("segment", picture, "-m", raster_model, "-o", tmp_path / "out", "--overlap", "0.5")
    assert (code, err.count("\n")) == (2, 1)
    assert "tiles" in err
    assert "--fresh" in err
    assert (tmp_path / "out" / "picture_labels.tif").read_bytes() == before
    assert cli("segment", picture, "-m", raster_model, "-o", tmp_path / "out", "--overlap", "0.5", "--fresh")[0] == 0


def test_a_foreign_folder_is_left_alone(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    (tmp_path / "picture.zarr").mkdir()
    (tmp_path / "picture.zarr" / "thesis.txt").write_text("years of work")
    for extra in ([], ["--fresh"]):
        assert cli("segment", picture, "-m", raster_model, "-o", tmp_path, *extra)[0] == 2
    assert (tmp_path / "picture.zarr" / "thesis.txt").read_text() == "years of work"


def test_no_crs_is_a_note(cli: Cli, raster_model: str, tmp_path: Path) -> None:
    plain = _tiff(tmp_path / "plain.tif", np.ones((3, 90, 90), np.uint8), crs=None, transform=None)
    code, _, err = cli("segment", plain, "-m", raster_model, "-o", tmp_path / "out")
    assert code == 0
    assert "plain.tif has no CRS" in err


def test_pixels_that_are_not_finite_become_nodata_and_are_told(cli: Cli, raster_model: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 90, 90)).astype(np.float32)
    values[0, 10:13, 20:24] = np.nan
    values[2, 50, 50] = np.inf
    code, out, err = cli("segment", _tiff(tmp_path / "holes.tif", values), "-m", raster_model, "-o", tmp_path / "out")
    assert code == 0, err
    assert "13 pixels were NaN or infinite" in out
    with rasterio.open(tmp_path / "out" / "holes_labels.tif") as labels:
        missing = labels.read(1) == 255
    np.testing.assert_array_equal(missing, ~np.isfinite(values).all(axis=0))


def test_a_gzip_of_several_members_is_read_to_its_end(cli: Cli, brain: Path, volume_model: str, tmp_path: Path) -> None:
    data = gzip.decompress(brain.read_bytes())
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(data[:5_000_000]) + gzip.compress(data[5_000_000:]))
    assert cli("info", tmp_path / "two.nii.gz")[0] == 0
    (tmp_path / "half.nii.gz").write_bytes(gzip.compress(data[:5_000_000]))
    assert cli("info", tmp_path / "half.nii.gz")[0] == 2
