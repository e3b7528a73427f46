"""The command line given what it cannot use, or can only just: bad input, full disks, folders of others."""

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio

from .conftest import Cli, SmallDisk

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
    kib: int, cli: Cli, picture: str, raster_model: str, small_disk: SmallDisk
) -> None:
    """It is too small for the store, the export or the preview; then it is not."""
    small_disk.resize(f"{kib}k")
    out = small_disk.folder / "out"
    code, _, err = cli("segment", picture, "-m", raster_model, "-o", out)
    assert code == 2
    assert err.splitlines()[-1].startswith("lmseg: ")
    assert "free some space" in err.splitlines()[-1]
    left = [p for p in out.iterdir() if p.suffix != ".zarr"]
    for path in left:
        assert path.name in ("picture_labels.tif", "picture_labels.tif.aux.xml")
    small_disk.resize("20m")
    assert cli("segment", picture, "-m", raster_model, "-o", out)[0] == 0
    with rasterio.open(out / "picture_labels.tif") as labels:
        assert labels.read(1).max() < 4


def test_an_output_of_another_run_is_kept(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    assert cli("segment", picture, "-m", raster_model, "-o", tmp_path / "out")[0] == 0
    before = (tmp_path / "out" / "picture_labels.tif").read_bytes()
    code, _, err = cli("segment", picture, "-m", raster_model, "-o", tmp_path / "out", "--overlap", "0.5")
    assert (code, err.count("\n")) == (2, 1)
    assert "tiles" in err
    assert "--fresh" in err
    assert (tmp_path / "out" / "picture_labels.tif").read_bytes() == before
    assert cli("segment", picture, "-m", raster_model, "-o", tmp_path / "out", "--overlap", "0.5", "--fresh")[0] == 0


def test_a_refused_output_of_a_second_source_leaves_nothing_of_the_first(
    cli: Cli, picture: str, raster_model: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    second = shutil.copy(picture, tmp_path / "second.tif")
    assert cli("segment", second, "-m", raster_model, "-o", out, "--overlap", "0.5")[0] == 0
    before = sorted(out.iterdir())
    code, _, err = cli("segment", picture, second, "-m", raster_model, "-o", out)
    assert code == 2
    assert "second.zarr" in err
    assert sorted(out.iterdir()) == before


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
