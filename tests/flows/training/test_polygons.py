"""Polygons as labels, against GDAL's own rasteriser and warper."""

import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
from shapely import Point, Polygon, box, to_wkb
from shapely.geometry import mapping
from shapely.geometry import shape as as_shape

import tiling
from flows.training.polygons import PolygonLabels
from tests.flows.training.small import PLACE, pixels, write_raster
from tiling import InputError

WEST, NORTH = 441730, 4176460
NAMES = ("water", "wood")
# Two that overlap, the later one above; neither follows the pixels.
SHAPES = [
    Polygon([(WEST + 33, NORTH - 21), (WEST + 248, NORTH - 57), (WEST + 171, NORTH - 333)]),
    box(WEST + 114, NORTH - 266, WEST + 306, NORTH - 98),
]


# FlatGeobuf sorts features by place for its index, and the order says which lies above.
def write(path: Path, shapes: list[Any], values: list[Any], crs: str | None = "EPSG:32618") -> str:
    kind = np.array(values, dtype=object if isinstance(values[0], str) else None)
    pyogrio.raw.write(
        path, np.array([None if s is None else to_wkb(s) for s in shapes], dtype=object), [kind], ["kind"],
        geometry_type="Unknown", crs=crs, **({"SPATIAL_INDEX": "NO"} if path.suffix == ".fgb" else {}),
    )  # fmt: skip
    return str(path)


@pytest.fixture
def image(tmp_path: Path) -> tiling.sources.Source:
    return tiling.open(write_raster(tmp_path / "a.tif", pixels()))


def burnt(shapes: list[Any], values: list[int]) -> Any:
    pairs = zip(shapes, values, strict=True)
    return rasterio.features.rasterize(pairs, (40, 40), fill=255, transform=PLACE["transform"], dtype=np.uint8)


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".shp", ".fgb"])
@pytest.mark.parametrize("crs", ["EPSG:32618", "EPSG:4326"])
def test_polygons_land_where_gdal_puts_them(
    ending: str, crs: str, image: tiling.sources.Source, tmp_path: Path
) -> None:
    if ending == ".geojson" and crs != "EPSG:4326":
        pytest.skip("GeoJSON knows one CRS")
    moved = [as_shape(rasterio.warp.transform_geom("EPSG:32618", crs, mapping(shape))) for shape in SHAPES]
    path = write(tmp_path / f"fields{ending}", moved, ["wood", "water"], crs)
    labels = PolygonLabels.open(path, image, "kind", NAMES, {})
    whole = labels.read((slice(0, 40), slice(0, 40)))
    np.testing.assert_array_equal(whole, burnt(SHAPES, [1, 0]))
    assert set(np.unique(whole)) == {0, 1, 255}
    again = pickle.loads(pickle.dumps(labels))  # as a process that reads gets it
    for window in ((slice(0, 7), slice(3, 40)), (slice(11, 30), slice(9, 28)), (slice(36, 40), slice(36, 40))):
        np.testing.assert_array_equal(again.read(window), whole[window])


def test_the_rasteriser_of_gdal_agrees(image: tiling.sources.Source, tmp_path: Path) -> None:
    try:
        subprocess.run(["gdal_rasterize", "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("GDAL's programs are not installed")
    path = write(tmp_path / "fields.gpkg", SHAPES, [1, 0])
    write_raster(tmp_path / "out.tif", np.full((40, 40), 255, np.uint8))
    subprocess.run(["gdal_rasterize", "-q", "-a", "kind", path, tmp_path / "out.tif"], check=True)
    labels = PolygonLabels.open(path, image, "kind", NAMES, {})
    with rasterio.open(tmp_path / "out.tif") as out:
        np.testing.assert_array_equal(labels.read((slice(0, 40), slice(0, 40))), out.read(1))


def test_numbers_are_mapped_and_features_without_geometry_left_out(
    image: tiling.sources.Source, tmp_path: Path
) -> None:
    path = write(tmp_path / "fields.gpkg", [SHAPES[0], None, SHAPES[1]], [41, 41, 17])
    labels = PolygonLabels.open(path, image, "kind", NAMES, {41: 1, 17: 255})
    np.testing.assert_array_equal(labels.read((slice(0, 40), slice(0, 40))), burnt(SHAPES, [1, 255]))


def far() -> Any:
    return box(WEST + 90_000, NORTH, WEST + 91_000, NORTH + 900)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize(
    ("shapes", "values", "changes", "words"),
    [
        (SHAPES, ["wood", "lake"], {}, "the class 'lake', which is not in model.classes: water, wood"),
        (SHAPES, [0, 2], {}, "the class 2; model.classes has 0 to 1"),
        (SHAPES, [0.0, 0.5], {}, "the class .*0.5"),
        (SHAPES, ["wood", "wood"], {"attribute": "sort"}, "no attribute 'sort'; it has kind"),
        (SHAPES, ["wood", "wood"], {"attribute": None}, "name the attribute"),
        (SHAPES, ["wood", "wood"], {"crs": None}, r"fields.gpkg has no CRS, and .*a.tif has one"),
        ([Point(WEST, NORTH)], ["wood"], {}, "has a Point as feature 1; give polygons"),
        ([far()], ["wood"], {}, "no polygon that lies on .*a.tif; check its CRS"),
    ],
)
def test_what_cannot_be_labels_is_refused(
    shapes: list[Any], values: list[Any], changes: dict[str, Any], words: str, image: tiling.sources.Source,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = write(tmp_path / "fields.gpkg", shapes, values, changes.get("crs", "EPSG:32618"))
    with pytest.raises(InputError, match=words) as caught:
        PolygonLabels.open(path, image, changes.get("attribute", "kind"), NAMES, {})
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(image: tiling.sources.Source, tmp_path: Path) -> None:
    (tmp_path / "text.gpkg").write_text("this is no vector file")
    for name in ("text.gpkg", "no.gpkg"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            PolygonLabels.open(str(tmp_path / name), image, "kind", NAMES, {})
