"""Exports of rasters, as GDAL and rasterio open them."""

import importlib.util
import json
import shutil
import subprocess
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from rasterio.windows import transform as transform_of

import tiling
from tests.tiling.files import NORTH_UP, TRANSFORMS, UTM, write_tiff
from tests.tiling.predictors import Mixing, Picture
from tests.tiling.refusals import refused
from tiling import Box, Grid

PART = Box((11, 7), (83, 60))


def labelled(folder, labels, n_classes=5, *, part=None, outputs=(), predict=None, **options):
    """A source file whose pixels are its labels, and the finished run over it."""
    file = write_tiff(folder / "source.tif", labels[None], **options)
    source = tiling.open(file)
    grid = Grid.regular(source.space.shape, 16, 0.25, 64 if max(labels.shape) < 300 else 512, part)
    predict = predict or Picture(1, grid.tile, n_classes=n_classes)
    store = tiling.create(folder / "run.zarr", source, grid, predict, outputs=outputs)
    tiling.segment(source, predict, store)
    return file, store


def noise(shape=(90, 70), n=5, seed=0):
    return np.random.default_rng(seed).integers(0, n, shape).astype(np.uint8)


@pytest.mark.parametrize("part", [None, PART])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_crs_and_transform_are_the_source_s_bit_for_bit(tmp_path, name, part):
    source, store = labelled(tmp_path, noise(), transform=TRANSFORMS[name], part=part)
    out = tiling.export(store, tmp_path / "labels.tif")[0]
    with rasterio.open(source) as given, rasterio.open(out) as image:
        assert image.crs.to_wkt() == given.crs.to_wkt()
        if part is None:
            assert tuple(image.transform) == tuple(given.transform)
            assert image.shape == given.shape
        else:
            (y, x), (height, width) = part.start, part.shape
            expected = transform_of(Window(x, y, width, height), given.transform)
            assert tuple(image.transform)[:6] == pytest.approx(tuple(expected)[:6], rel=1e-15)
            assert image.transform[:2] + image.transform[3:5] == given.transform[:2] + given.transform[3:5]
            assert image.shape == part.shape
        assert np.array_equal(image.read(1), noise()[(part or Box.whole(given.shape)).slices])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("part", [None, PART])
def test_a_marker_lies_on_the_same_world_coordinate(tmp_path, name, part):
    labels = np.zeros((90, 70), np.uint8)
    marker = np.array([[3, 0, 0, 0], [3, 0, 0, 4], [3, 3, 2, 2]], np.uint8)
    labels[31:34, 20:24] = marker
    source, store = labelled(tmp_path, labels, transform=TRANSFORMS[name], part=part)
    out = tiling.export(store, tmp_path / "labels.tif")[0]
    with rasterio.open(source) as given, rasterio.open(out) as image:
        for (dy, dx), value in np.ndenumerate(marker):
            place = given.xy(31 + dy, 20 + dx)
            assert next(image.sample([place]))[0] == value
            assert np.allclose(image.xy(*image.index(*place)), place, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "crs",
    [
        None,
        "EPSG:4326",
        "EPSG:3857",
        "EPSG:2056",
        "+proj=laea +lat_0=47.5 +lon_0=13.5 +x_0=400000 +y_0=400000 +ellps=GRS80 +units=m",
        "+proj=sinu +lon_0=0 +R=6371007.181 +units=m",
    ],
)
def test_any_crs_or_none_is_copied(tmp_path, crs):
    source, store = labelled(tmp_path, noise(), crs=crs)
    out = tiling.export(store, tmp_path / "labels.tif")[0]
    with rasterio.open(source) as given, rasterio.open(out) as image:
        assert image.crs == given.crs
        assert (image.crs is None) == (crs is None)
        assert tuple(image.transform) == tuple(given.transform)


def test_pixel_indices_without_any_georeference_stay_so(tmp_path):
    _, store = labelled(tmp_path, noise(), crs=None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotGeoreferencedWarning)  # which the command's own note says in words
        out = tiling.export(store, tmp_path / "labels.tif")[0]
    with rasterio.open(out) as image:
        assert image.crs is None
        assert image.transform == rasterio.Affine.identity()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An export with overviews: 1200 x 1100 pixels in patches, some without data."""
    folder = tmp_path_factory.mktemp("large")
    labels = noise((24, 22), seed=4).repeat(50, axis=0).repeat(50, axis=1)
    labels[np.random.default_rng(0).random(labels.shape) < 0.2] = 1
    values = labels.copy()
    values[:400, 700:900] = 99
    file = write_tiff(folder / "source.tif", values[None], nodata=99)
    source = tiling.open(file)
    grid = Grid.regular(source.space.shape, 128, 0, 600)
    predict = Picture(1, grid.tile, n_classes=5)
    store = tiling.create(folder / "run.zarr", source, grid, predict)
    tiling.segment(source, predict, store)
    return np.where(values == 99, 255, labels), tiling.export(store, folder / "labels.tif")


def test_it_is_a_valid_cloud_optimised_geotiff(large):
    if importlib.util.find_spec("rio_cogeo"):
        from rio_cogeo.cogeo import cog_validate

        valid, errors, warnings = cog_validate(large[1][0], strict=True, quiet=True)
        assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(large[1][0]) as image:
        assert image.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert image.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "DEFLATE"
        assert image.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR", "1") == "1"
        assert image.block_shapes == [(512, 512)]
        assert image.overviews(1)


def test_labels_are_uint8_with_nodata_255_and_every_pixel_as_it_was(large):
    with rasterio.open(large[1][0]) as image:
        assert (image.dtypes, image.nodata, image.count) == (("uint8",), 255, 1)
        assert np.array_equal(image.read(1), large[0])


def test_overviews_hold_only_labels_that_occur_in_what_they_stand_for(large):
    with rasterio.open(large[1][0]) as image:
        for level, factor in enumerate(image.overviews(1)):
            with rasterio.open(large[1][0], overview_level=level) as overview:
                small = overview.read(1)
            assert set(np.unique(small)) <= set(np.unique(large[0]))
            for row, column in np.random.default_rng(level).integers((0, 0), small.shape, (500, 2)):
                # GDAL's sizes of overviews are rounded up, so that a pixel stands for about `factor` of them.
                rows = slice(max(0, row * factor - factor), (row + 2) * factor)
                columns = slice(max(0, column * factor - factor), (column + 2) * factor)
                assert small[row, column] in large[0][rows, columns]


def test_the_palette_has_the_classes_colours(large):
    with rasterio.open(large[1][0]) as image:
        assert image.colorinterp[0] == ColorInterp.palette
        colors = image.colormap(1)
    for c in tiling.ClassTable.numbered(5):
        assert colors[c.value] == (*c.rgb, 255)
    assert colors[255][3] == 0


def test_class_names_and_attribute_table_lie_beside_it(large):
    image, side = large[1]
    assert side.name == image.name + ".aux.xml"
    band = ElementTree.parse(side).getroot().find("PAMRasterBand")
    names = [c.text or "" for c in band.find("CategoryNames")]
    table = tiling.ClassTable.numbered(5)
    assert names[:5] == [c.name for c in table]
    rat = band.find("GDALRasterAttributeTable")
    assert rat.get("tableType") == "thematic"
    fields = [(f.findtext("Name"), f.findtext("Type"), f.findtext("Usage")) for f in rat.findall("FieldDefn")]
    assert fields == [
        ("Value", "0", "5"),
        ("Class", "2", "2"),
        ("Red", "0", "6"),
        ("Green", "0", "7"),
        ("Blue", "0", "8"),
    ]
    rows = [[f.text for f in row.findall("F")] for row in rat.findall("Row")]
    assert rows == [[str(c.value), c.name, *map(str, c.rgb)] for c in table]


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="gdalinfo is not installed")
def test_gdalinfo_tells_names_table_palette_and_nodata(large):
    done = subprocess.run(["gdalinfo", "-json", large[1][0]], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    band = said["bands"][0]
    assert band["noDataValue"] == 255
    assert band["colorInterpretation"] == "Palette"
    assert said["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert "GDALRasterAttributeTable" in done.stdout or "rat" in band or "rat" in said
    plain = subprocess.run(["gdalinfo", large[1][0]], capture_output=True, text=True, check=True).stdout
    assert "Categories:" in plain
    assert "0: class 0" in plain
    assert "GDALRasterAttributeTable" in plain


def test_names_with_marks_of_xml_come_through(tmp_path):
    class Odd(Picture):
        @property
        def classes(self):
            return [
                (0, "sand & <gravel>", "#aabbcc", None),
                (1, '"Wald" & größer', "#00ff00", None),
                (7, "", "#000000", None),
            ]

    labels = noise(n=2)
    _, store = labelled(tmp_path, labels, predict=Odd(1, (16, 16), n_classes=3))
    _, side = tiling.export(store, tmp_path / "labels.tif")
    names = [c.text or "" for c in ElementTree.parse(side).getroot().iter("Category")]
    assert names[:2] == ["sand & <gravel>", '"Wald" & größer']
    rows = [[f.text for f in row.findall("F")][:2] for row in ElementTree.parse(side).getroot().iter("Row")]
    assert rows[:2] == [["0", "sand & <gravel>"], ["1", '"Wald" & größer']]
    assert rows[2][0] == "7"


def test_more_than_254_classes_are_uint16_with_nodata_65535(tmp_path):
    labels = np.random.default_rng(0).integers(0, 300, (90, 70)).astype(np.uint16)
    _, store = labelled(tmp_path, labels, 300)
    image, side = tiling.export(store, tmp_path / "labels.tif")
    with rasterio.open(image) as opened:
        assert (opened.dtypes, opened.nodata) == (("uint16",), 65535)
        assert np.array_equal(opened.read(1), labels)
    assert len(list(ElementTree.parse(side).getroot().iter("Row"))) == 300


def test_probability_and_uncertainty_are_scaled_bands_with_names(tmp_path):
    predict = Mixing(1, (16, 16))
    _, store = labelled(tmp_path, noise(n=200), outputs=("probability", "uncertainty"), predict=predict)
    whole = Box.whole((90, 70))
    with rasterio.open(tiling.export(store, tmp_path / "prob.tif", "probability")[0]) as image:
        assert image.count == 3
        assert image.descriptions == ("class 0", "class 1", "class 2")
        assert image.scales == (1 / 254,) * 3
        assert image.nodata == 255
        assert np.array_equal(image.read(), store.read(whole, "probability"))
        assert np.allclose(image.read().sum(axis=0) / 254, 1, atol=0.01)
        assert tuple(image.transform) == tuple(NORTH_UP)
    with rasterio.open(tiling.export(store, tmp_path / "unc.tif", "uncertainty")[0]) as image:
        assert np.array_equal(image.read(1), store.read(whole, "uncertainty"))
        assert image.crs == CRS.from_user_input(UTM)


# --- what goes wrong ---


def test_an_export_replaces_an_earlier_one_and_leaves_nothing_else(tmp_path):
    _, store = labelled(tmp_path, noise())
    folder = tmp_path / "new" / "deep"
    for _ in range(2):
        files = tiling.export(store, folder / "labels.tif")
        assert sorted(f.name for f in folder.iterdir()) == ["labels.tif", "labels.tif.aux.xml"]
        assert sorted(files) == sorted(folder.iterdir())


def test_a_file_in_place_of_the_folder_is_refused_and_left(tmp_path):
    _, store = labelled(tmp_path, noise())
    (tmp_path / "out").write_text("me")
    with refused(tmp_path / "out", "cannot be written", "another folder"):
        tiling.export(store, tmp_path / "out" / "labels.tif")
    assert (tmp_path / "out").read_text() == "me"


def test_a_folder_in_place_of_the_file_is_refused_and_nothing_half_written(tmp_path):
    _, store = labelled(tmp_path, noise())
    (tmp_path / "out" / "labels.tif" / "mine").mkdir(parents=True)
    with refused("labels.tif", "is a folder"):
        tiling.export(store, tmp_path / "out" / "labels.tif")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["labels.tif"]
    assert (tmp_path / "out" / "labels.tif" / "mine").is_dir()


def test_an_export_that_fails_midway_leaves_the_earlier_one(tmp_path):
    _, store = labelled(tmp_path, noise())
    out = tmp_path / "out" / "labels.tif"
    tiling.export(store, out)
    before = out.read_bytes()
    for chunk in (tmp_path / "run.zarr" / "labels" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"spoilt")
    with pytest.raises(Exception, match=r".+"):
        tiling.export(store, out)
    assert out.read_bytes() == before
    assert sorted(f.name for f in out.parent.iterdir()) == ["labels.tif", "labels.tif.aux.xml"]


def test_an_unfinished_run_is_not_exported(tmp_path):
    _, store = labelled(tmp_path, noise())
    store.forget([0])
    with refused("run.zarr", "lacks 1 of 4 blocks", "lmseg segment"):
        tiling.export(store, tmp_path / "labels.tif")
    assert not (tmp_path / "labels.tif").exists()


@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz", "labels.png", "labels"])
def test_an_ending_that_does_not_fit_is_refused(tmp_path, name):
    _, store = labelled(tmp_path, noise())
    with refused(name, "use .tif"):
        tiling.export(store, tmp_path / name)


def test_an_array_that_was_not_asked_for_is_refused(tmp_path):
    _, store = labelled(tmp_path, noise())
    with refused("no probability", "--probability"):
        tiling.export(store, tmp_path / "prob.tif", "probability")
