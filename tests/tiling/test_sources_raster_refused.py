"""Rasters that are refused: what is no image, and files cut short."""

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

import tiling
from tests.tiling.files import write_tiff
from tests.tiling.rasters import SHAPE, WHOLE, noise
from tests.tiling.refusals import refused


def test_a_missing_file_is_refused(tmp_path):
    with refused(tmp_path / "no.tif", "does not exist", "check the path"):
        tiling.open(tmp_path / "no.tif")
    a = write_tiff(tmp_path / "a.tif", noise())
    with refused(tmp_path / "no.tif", "does not exist"):
        tiling.open(f"{a},{tmp_path / 'no.tif'}")


@pytest.mark.parametrize("content", [b"", b"hello, I am text\n" * 40, b"II*\0", bytes(1000)])
def test_a_file_that_is_no_image_is_refused(tmp_path, content):
    file = tmp_path / "a.tif"
    file.write_bytes(content)
    with refused(file, "cannot be opened as an image", "raster that GDAL reads"):
        tiling.open(file)


def test_a_folder_is_refused(tmp_path):
    with refused(tmp_path, "cannot be opened"):
        tiling.open(tmp_path)


def test_a_volume_s_option_is_refused_for_a_raster(tmp_path):
    file = write_tiff(tmp_path / "a.tif", noise())
    with refused(file, "sform", "--form"):
        tiling.open(file, form="sform")


def test_complex_numbers_are_refused(tmp_path):
    file = write_tiff(tmp_path / "a.tif", noise(1, "complex64"))
    with refused(file, "complex", "amplitude"):
        tiling.open(file)


def test_an_image_of_alpha_only_is_refused(tmp_path):
    file = write_tiff(tmp_path / "a.tif", noise(1))
    with rasterio.open(file, "r+") as image:
        image.colorinterp = [ColorInterp.alpha]
    with refused(file, "only an alpha band"):
        tiling.open(file)


def test_a_container_of_several_images_asks_for_one(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    for name in "ab":
        group.create_array(name, data=np.zeros((4, 5), np.uint8))
    with refused("a.zarr", "subdatasets"):
        tiling.open(tmp_path / "a.zarr")


CUTS = {
    "strips": {},
    "one strip": {"blockysize": 150},
    "compressed strips": {"compress": "lzw"},
    "tiles": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "compressed tiles": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"},
    "tiles by band": {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "band", "compress": "zstd"},
    "cog": {"driver": "COG", "compress": "deflate", "blocksize": 128},
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_truncated_tiff_is_refused_and_never_silently_wrong(tmp_path, name, masked):
    file = tmp_path / "a.tif"
    mask = np.random.default_rng(1).random(SHAPE) < 0.7 if masked else None
    write_tiff(tmp_path / "b.tif", noise(), mask=mask, **({} if name == "cog" else CUTS[name]))
    if name == "cog":
        rasterio.shutil.copy(tmp_path / "b.tif", file, **CUTS[name])
    else:
        (tmp_path / "b.tif").rename(file)
    whole = file.read_bytes()
    good = tiling.open(file).read(WHOLE)
    n = len(whole)
    cuts = {1, 4, 8, 100, 300, 1000, *range(n - 400, n, 7), *(n * k // 23 for k in range(1, 23))}
    messages = []
    for cut in sorted(cuts):
        file.write_bytes(whole[:cut])
        try:
            pixels = tiling.open(file).read(WHOLE)
        except tiling.InputError as error:
            messages.append(str(error))
        else:
            assert np.array_equal(pixels.values, good.values), cut
            assert np.array_equal(pixels.valid, good.valid), cut
    assert len(messages) >= len(cuts) - 4
    assert all(str(file) in m and "\n" not in m for m in messages)
