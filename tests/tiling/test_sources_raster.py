"""Rasters as GDAL and rasterio see them."""

import pickle

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given, settings
from rasterio.enums import ColorInterp

import tiling
from tests.tiling.files import NORTH_UP, TRANSFORMS, write_tiff
from tests.tiling.rasters import SHAPE, WHOLE, noise
from tests.tiling.refusals import refused
from tests.tiling.strategies import boxes
from tiling.box import Box

DTYPES = ["uint8", "int8", "uint16", "int16", "int32", "float32"]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The same pixels in the ways that files are laid out."""
    folder = tmp_path_factory.mktemp("layouts")
    values = noise()
    options = {
        "strips": {},
        "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 32, "compress": "deflate"},
        "by band": {"interleave": "band", "compress": "lzw"},
        "cog": {"driver": "COG", "compress": "deflate"},
        "png": {"driver": "PNG"},
    }
    files = {name: write_tiff(folder / f"{name}.tif", values, **more) for name, more in options.items()}
    return values, files | {"vrt": _vrt(files["tiled"])}


def _vrt(file):
    vrt = file.with_suffix(".vrt")
    rasterio.shutil.copy(file, vrt, driver="VRT")
    return vrt


@pytest.mark.parametrize("name", ["strips", "tiled", "by band", "cog", "png", "vrt"])
@settings(max_examples=10)
@given(boxes(SHAPE))
def test_reading_a_box_is_slicing_the_whole_image(layouts, name, box):
    values, files = layouts
    pixels = tiling.open(files[name]).read(box)
    assert np.array_equal(pixels.values, values[(slice(None), *box.slices)])
    assert pixels.valid.all()
    assert pixels.nonfinite == 0


@pytest.mark.parametrize("dtype", [*DTYPES, "uint32", "float64"])
def test_values_keep_their_type_and_those_too_wide_become_float32(tmp_path, dtype):
    values = noise(2, dtype)
    source = tiling.open(write_tiff(tmp_path / "a.tif", values))
    assert source.dtype.name == (dtype if dtype in DTYPES else "float32")
    pixels = source.read(WHOLE)
    assert pixels.values.dtype == source.dtype
    assert np.array_equal(pixels.values, values)


def test_jpeg_2000_reads_as_rasterio_reads_it(tmp_path):
    with rasterio.Env() as environment:
        if "JP2OpenJPEG" not in environment.drivers():
            pytest.skip("this GDAL writes no JPEG 2000")
    file = write_tiff(tmp_path / "a.jp2", noise(), driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    source = tiling.open(file)
    with rasterio.open(file) as image:
        assert np.array_equal(source.read(WHOLE).values, image.read())
        assert source.space.affine == (tuple(image.transform[:3]), tuple(image.transform[3:6]))
        assert source.space.crs == image.crs.to_wkt()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_transform_is_rasterio_s_bit_for_bit(tmp_path, name):
    file = write_tiff(tmp_path / "a.tif", noise(), transform=TRANSFORMS[name])
    space = tiling.open(file).space
    with rasterio.open(file) as image:
        assert (*space.affine[0], *space.affine[1]) == image.transform[:6]
        assert image.transform.almost_equals(TRANSFORMS[name], 1e-9)


def test_no_crs_is_an_empty_one(tmp_path):
    source = tiling.open(write_tiff(tmp_path / "a.tif", noise(), crs=None))
    assert source.space.crs == ""
    assert np.array_equal(source.read(WHOLE).values, noise())


def test_a_source_travels_to_workers_small(tmp_path):
    source = tiling.open(write_tiff(tmp_path / "a.tif", noise()))
    sent = pickle.dumps(source)
    assert len(sent) < 10_000
    assert pickle.loads(sent) == source


def test_threads_may_read_one_source_at_once(layouts):
    from concurrent.futures import ThreadPoolExecutor

    values, files = layouts
    source = tiling.open(files["tiled"])
    parts = list(WHOLE.split((37, 41)))
    with ThreadPoolExecutor(4) as pool:
        for part, pixels in zip(parts, pool.map(source.read, parts), strict=True):
            assert np.array_equal(pixels.values, values[(slice(None), *part.slices)])


# --- bands ---


def test_bands_are_chosen_in_the_order_given_and_may_repeat(layouts):
    values, files = layouts
    for bands in ((2,), (3, 1), (1, 3), (2, 2, 1)):
        source = tiling.open(files["tiled"], bands=bands)
        assert source.channels == len(bands)
        assert np.array_equal(source.read(WHOLE).values, values[[b - 1 for b in bands]])


@pytest.mark.parametrize("band", [0, 4, -1])
def test_a_band_that_is_not_there_is_refused(layouts, band):
    file = layouts[1]["tiled"]
    with refused(file, f"no band {band}", "from 1 to 3"):
        tiling.open(file, bands=(1, band))


def test_band_names_are_the_file_s(tmp_path):
    file = write_tiff(tmp_path / "a.tif", noise())
    with rasterio.open(file, "r+") as image:
        image.set_band_description(2, "near infrared")
    assert tiling.open(file, bands=(2, 1)).names == ("near infrared", "")


def test_several_files_are_one_stack(tmp_path):
    values = noise(4)
    files = [
        write_tiff(tmp_path / "rgb.tif", values[:3]),
        write_tiff(tmp_path / "nir.tif", values[3:].astype("uint16")),
    ]
    source = tiling.open(",".join(map(str, files)))
    assert (source.channels, source.dtype) == (4, np.uint16)
    assert np.array_equal(source.read(WHOLE).values, values)
    mixed = tiling.open(",".join(map(str, files)), bands=(4, 1, 3))
    assert np.array_equal(mixed.read(WHOLE).values, values[[3, 0, 2]])


@pytest.mark.parametrize("crs", ["EPSG:32633", None])
@settings(max_examples=15)
@given(box=boxes(SHAPE))
def test_a_coarser_band_is_repeated_onto_the_first_file_s_grid(tmp_path_factory, crs, box):
    folder = tmp_path_factory.mktemp("stack")
    fine, coarse = noise(1), noise(1, shape=(SHAPE[0] // 2, SHAPE[1] // 2), seed=1)
    write_tiff(folder / "fine.tif", fine, crs=crs)
    write_tiff(folder / "coarse.tif", coarse, crs=crs, transform=NORTH_UP @ Affine.scale(2))
    pixels = tiling.open(f"{folder / 'fine.tif'},{folder / 'coarse.tif'}").read(box)
    expected = np.concatenate([fine, coarse.repeat(2, axis=1).repeat(2, axis=2)])
    assert np.array_equal(pixels.values, expected[(slice(None), *box.slices)])
    assert pixels.valid.all()


@settings(max_examples=15)
@given(boxes(SHAPE))
def test_a_finer_band_is_sampled_the_same_way_whatever_box_is_read(tmp_path_factory, box):
    folder = tmp_path_factory.mktemp("stack")
    write_tiff(folder / "coarse.tif", noise(1))
    write_tiff(folder / "fine.tif", noise(1, shape=(450, 510), seed=1), transform=NORTH_UP @ Affine.scale(1 / 3))
    source = tiling.open(f"{folder / 'coarse.tif'},{folder / 'fine.tif'}")
    whole = source.read(WHOLE).values
    assert np.array_equal(whole[1], noise(1, shape=(450, 510), seed=1)[0, 1::3, 1::3])
    assert np.array_equal(source.read(box).values, whole[(slice(None), *box.slices)])


@pytest.mark.parametrize("kind", ["plain", "mask", "nodata", "alpha"])
def test_pixels_that_a_coarser_file_does_not_have_are_missing(tmp_path, kind):
    mask = np.random.default_rng(2).random((40, 50)) < 0.7
    coarse = np.where(mask, noise(1, shape=(40, 50), seed=1) + 1, 0).astype(np.uint8)
    options = {"mask": {"mask": mask}, "nodata": {"nodata": 0}, "alpha": {"alpha": "YES"}}.get(kind, {})
    values = np.concatenate([coarse, 255 * mask[None]]).astype(np.uint8) if kind == "alpha" else coarse
    a = write_tiff(tmp_path / "a.tif", noise(1) + 1, **({"nodata": 0} if kind == "nodata" else {}))
    b = write_tiff(tmp_path / "b.tif", values, transform=NORTH_UP @ Affine.scale(2), **options)
    pixels = tiling.open(f"{a},{b}").read(WHOLE)
    inside = np.zeros(SHAPE, bool)
    inside[:80, :100] = True if kind == "plain" else mask.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(pixels.values[1][inside], coarse[0].repeat(2, axis=0).repeat(2, axis=1)[inside[:80, :100]])
    # By nodata values alone a pixel is missing only where all bands are.
    assert np.array_equal(pixels.valid, np.ones(SHAPE, bool) if kind == "nodata" else inside)


def test_files_in_different_crs_are_refused(tmp_path):
    a, b = write_tiff(tmp_path / "a.tif", noise()), write_tiff(tmp_path / "b.tif", noise(), crs="EPSG:32634")
    with refused(b, "another CRS", "gdalwarp"):
        tiling.open(f"{a},{b}")


def test_an_existing_file_with_a_comma_in_its_name_is_one_file(tmp_path):
    assert tiling.open(write_tiff(tmp_path / "a,b.tif", noise())).channels == 3


# --- what is missing ---


def test_a_pixel_is_missing_where_every_band_holds_nodata(tmp_path):
    values = noise()
    values[:, 10:20, 30:40] = 7
    values[0, 50:60] = 7
    expected = ~(values == 7).all(axis=0)
    source = tiling.open(write_tiff(tmp_path / "a.tif", values, nodata=7))
    assert np.array_equal(source.read(WHOLE).valid, expected)
    assert not expected.all()
    box = Box((5, 25), (30, 60))
    assert np.array_equal(source.read(box).valid, expected[box.slices])


def test_a_nodata_value_that_is_nan(tmp_path):
    values = noise(2, "float32")
    values[:, :30] = np.nan
    values[1, 40] = np.nan
    pixels = tiling.open(write_tiff(tmp_path / "a.tif", values, nodata=np.nan)).read(WHOLE)
    missing = np.isnan(values).any(axis=0)
    assert np.array_equal(pixels.valid, ~missing)
    # Missing by the tag is no news; NaN in one band of a pixel is.
    assert pixels.nonfinite == SHAPE[1]
    assert np.isfinite(pixels.values).all()


def test_a_nodata_value_that_float32_rounds(tmp_path):
    values = noise(1, "float32")
    values[:, 3:9] = np.float32(-3.4028234663852886e38)
    pixels = tiling.open(write_tiff(tmp_path / "a.tif", values, nodata=-3.4028234663852886e38)).read(WHOLE)
    assert np.array_equal(np.nonzero(~pixels.valid.all(axis=1))[0], np.arange(3, 9))


def test_nan_and_infinity_are_masked_counted_once_a_pixel_and_never_passed_on(tmp_path):
    values = noise(3, "float32")
    values[0, 5, 5] = values[2, 5, 5] = np.nan
    values[1, 7, 3] = np.inf
    values[1, 8, 3] = -np.inf
    pixels = tiling.open(write_tiff(tmp_path / "a.tif", values)).read(WHOLE)
    assert np.array_equal(pixels.valid, np.isfinite(values).all(axis=0))
    assert pixels.nonfinite == 3
    assert (pixels.values[:, ~pixels.valid] == 0).all()
    assert np.array_equal(pixels.values[:, pixels.valid], values[:, pixels.valid])


def test_an_internal_mask_is_believed(tmp_path):
    mask = np.random.default_rng(1).random(SHAPE) < 0.7
    source = tiling.open(write_tiff(tmp_path / "a.tif", noise(), mask=mask))
    assert np.array_equal(source.read(WHOLE).valid, mask)


def test_a_mask_file_beside_the_image_is_believed(tmp_path):
    mask = np.random.default_rng(1).random(SHAPE) < 0.7
    file = write_tiff(tmp_path / "a.tif", noise())
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(file, "r+") as image:
        image.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists()
    assert np.array_equal(tiling.open(file).read(WHOLE).valid, mask)


def test_a_world_file_beside_the_image_places_it(tmp_path):
    file = write_tiff(tmp_path / "a.png", noise(), driver="PNG", crs=None, transform=None)
    for side in tmp_path.glob("*.aux.xml"):
        side.unlink()
    (tmp_path / "a.pgw").write_text("10\n0\n0\n-10\n499985\n5300035\n")
    assert tiling.open(file).space.affine == (tuple(NORTH_UP[:3]), tuple(NORTH_UP[3:6]))


def test_an_alpha_band_is_a_mask_and_no_channel(tmp_path):
    values = np.concatenate([noise(), np.full((1, *SHAPE), 255, np.uint8)])
    values[3, 40:50, 60:90] = 0
    file = write_tiff(tmp_path / "a.tif", values, photometric="RGB", alpha="YES")
    with rasterio.open(file) as image:
        assert image.colorinterp[3] == ColorInterp.alpha
    source = tiling.open(file)
    assert source.channels == 3
    pixels = source.read(WHOLE)
    assert np.array_equal(pixels.values, values[:3])
    assert np.array_equal(pixels.valid, values[3] > 0)
    assert np.array_equal(tiling.open(file, bands=(2,)).read(WHOLE).valid, values[3] > 0)


# --- fingerprints ---


def test_the_fingerprint_changes_with_the_bytes_and_the_choice_of_bands(tmp_path):
    file = write_tiff(tmp_path / "a.tif", noise())
    first = tiling.open(file).fingerprint
    assert tiling.open(file).fingerprint == first
    assert tiling.open(file, bands=(1, 2)).fingerprint != first
    write_tiff(file, noise(seed=1))
    assert tiling.open(file).fingerprint != first
