"""Areas of interest."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from rasterio.warp import transform_bounds, transform_geom

from tests.tiling.files import NORTH_UP, TRANSFORMS, UTM, affine_of, rotation
from tests.tiling.refusals import refused
from tests.tiling.strategies import boxes
from tiling.area import Area, area_of_bounds, area_of_box, area_of_geojson
from tiling.box import Box
from tiling.space import Space

WKT = CRS.from_user_input(UTM).to_wkt()
SHAPE = (200, 300)


def space_of(transform=NORTH_UP, shape=SHAPE, crs=WKT) -> Space:
    return Space(shape, (tuple(transform[:3]), tuple(transform[3:6])), crs)


def around(x: float, y: float, radius: float, corners: int, seed: int = 0) -> dict:
    """A star-shaped polygon in pixels of a 10 m image, in UTM."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    lengths = radius * rng.uniform(0.4, 1, corners)
    points = np.stack([x + lengths * np.cos(angles), y + lengths * np.sin(angles)], axis=1)
    ring = [NORTH_UP @ tuple(p) for p in points]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def in_utm(*polygons: dict) -> str:
    features = [{"type": "Feature", "properties": {}, "geometry": p} for p in polygons]
    crs = {"type": "name", "properties": {"name": UTM}}
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})


@given(boxes(SHAPE))
def test_bounds_of_whole_pixels_are_those_pixels(box):
    (y0, x0), (y1, x1) = box.start, box.stop
    (west, north), (east, south) = NORTH_UP @ (x0, y0), NORTH_UP @ (x1, y1)
    assert area_of_bounds(space_of(), (west, south, east, north)) == Area(box)


@given(boxes(SHAPE))
def test_bounds_in_another_crs_hold_all_of_their_pixels_and_hardly_more(box):
    (y0, x0), (y1, x1) = box.start, box.stop
    (west, north), (east, south) = NORTH_UP @ (x0, y0), NORTH_UP @ (x1, y1)
    there = transform_bounds(UTM, "EPSG:4326", west, south, east, north, densify_pts=50)
    found = area_of_bounds(space_of(), there, "EPSG:4326").box
    assert box in found
    back = transform_bounds("EPSG:4326", UTM, *there, densify_pts=50)
    (x0, y0), (x1, y1) = ~NORTH_UP @ (back[0], back[3]), ~NORTH_UP @ (back[2], back[1])
    assert found in (Box((int(np.floor(y0)) - 1, int(np.floor(x0)) - 1), (int(y1) + 2, int(x1) + 2)))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.data())
def test_the_mask_of_polygons_is_rasterio_s_of_the_whole_image_in_any_block(seed, data):
    shape = (1300, 1500)  # larger than the cells that polygons are burnt in
    polygons = [around(700, 600, 650, 9, seed), around(1300, 1200, 90, 5, seed + 1)]
    area = area_of_geojson(space_of(shape=shape), in_utm(*polygons))
    whole = geometry_mask(polygons, shape, NORTH_UP, invert=True)
    box = data.draw(boxes(shape))
    assert np.array_equal(area.mask(space_of(shape=shape), box), whole[box.slices])
    rows, columns = whole.any(axis=1).nonzero()[0], whole.any(axis=0).nonzero()[0]
    assert Box((int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)) in area.box


def test_holes_stay_out_and_several_polygons_add_up():
    outer, inner = around(100, 100, 80, 24), around(100, 100, 20, 24)
    ring = {"type": "Polygon", "coordinates": [*outer["coordinates"], *inner["coordinates"]]}
    other = {"type": "MultiPolygon", "coordinates": [around(250, 50, 30, 7)["coordinates"]]}
    area = area_of_geojson(space_of(), in_utm(ring, other))
    expected = geometry_mask([ring, other], SHAPE, NORTH_UP, invert=True)
    assert np.array_equal(area.mask(space_of(), Box.whole(SHAPE)), expected)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_polygons_on_any_kind_of_transform(name):
    transform = TRANSFORMS[name]
    ring = [transform @ p for p in ((20, 30), (150, 41), (170, 120), (33, 160), (20, 30))]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    space = space_of(transform)
    area = area_of_geojson(space, in_utm(polygon))
    expected = geometry_mask([polygon], SHAPE, transform, invert=True)
    mask = area.mask(space, Box.whole(SHAPE))
    # Rotated edges may round another way on a pixel's very centre.
    assert np.count_nonzero(mask != expected) <= 2
    assert expected.any()


def test_geojson_without_a_crs_is_longitude_and_latitude_from_text_or_file(tmp_path):
    polygon = around(100, 100, 80, 12)
    degrees = transform_geom(UTM, "EPSG:4326", polygon)
    file = tmp_path / "area.geojson"
    file.write_text(json.dumps(degrees))
    area = area_of_geojson(space_of(), str(file))
    assert area == area_of_geojson(space_of(), json.dumps(degrees))
    expected = geometry_mask([polygon], SHAPE, NORTH_UP, invert=True)
    mask = area.mask(space_of(), Box.whole(SHAPE))
    assert np.count_nonzero(mask != expected) <= 0.001 * expected.sum()


def test_a_geometry_collection_gives_its_polygons():
    polygon = around(100, 100, 80, 12)
    collection = {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [0, 0]}, polygon]}
    feature = {"type": "Feature", "geometry": collection, "properties": None}
    crs = {"crs": {"properties": {"name": UTM}}}
    assert area_of_geojson(space_of(), json.dumps(feature | crs)) == area_of_geojson(space_of(), in_utm(polygon))


def test_a_box_needs_no_mask():
    assert Area(Box.whole(SHAPE)).mask(space_of(), Box.whole(SHAPE)) is None


def test_an_area_survives_json():
    area = area_of_geojson(space_of(), in_utm(around(100, 100, 80, 12)))
    assert Area.from_json(json.loads(json.dumps(area.to_json()))) == area


@given(boxes((6, 7, 8)), st.booleans())
def test_a_box_in_millimetres_holds_the_voxels_it_touches(box, swapped):
    affine = affine_of(np.diag([-1.0, 1, 1]))
    space = Space((6, 7, 8), tuple(map(tuple, affine[:3])))
    low = np.array(space.to_world(tuple(a - 0.5 for a in box.start)))
    high = np.array(space.to_world(tuple(b - 0.5 for b in box.stop)))
    first, second = (high, low) if swapped else (low, high)
    assert area_of_box(space, (*first, *second)) == Area(box)


def test_a_box_in_an_oblique_volume_holds_every_voxel_centre_inside_it():
    space = Space((20, 30, 40), tuple(map(tuple, affine_of(rotation(23))[:3])))
    middle = np.array(space.to_world((10, 15, 20)))
    box = area_of_box(space, (*(middle - 6), *(middle + 6))).box
    for index in np.ndindex(20, 30, 40):
        if (np.abs(np.array(space.to_world(index)) - middle) <= 6).all():
            assert Box(index, tuple(i + 1 for i in index)) in box


@pytest.mark.parametrize(
    "bounds", [(10, 0, 0, 10), (0, 10, 10, 0), (0, 0, 0, 10), (0, 0, float("nan"), 10), (0, 0, float("inf"), 10)]
)
def test_bounds_out_of_order_are_refused(bounds):
    with refused(tuple(bounds), "west south east north"):
        area_of_bounds(space_of(), bounds)


def test_bounds_beside_the_image_are_refused():
    with refused("(0, 0) to (10, 10)", "misses the image", "499980"):
        area_of_bounds(space_of(), (0, 0, 10, 10))
    with refused("misses the image"):
        area_of_bounds(space_of(), (100, 10, 101, 11), "EPSG:4326")


@pytest.mark.parametrize("bounds", [(-10, 91, 10, 120), (0, 0, 1e9, 1e9), (-190, -100, 190, 100)])
def test_bounds_that_are_nowhere_in_the_image_s_crs_are_refused(bounds):
    with refused("EPSG:4326"):
        area_of_bounds(space_of(), bounds, "EPSG:4326")


def test_an_unknown_crs_is_refused():
    with refused("'EPSG:99999999'", "EPSG:4326"):
        area_of_bounds(space_of(), (0, 0, 1, 1), "EPSG:99999999")


def test_bounds_in_a_crs_cannot_be_placed_on_an_image_without_one():
    with refused("no CRS", "EPSG:4326"):
        area_of_bounds(space_of(crs=""), (0, 0, 1, 1), "EPSG:4326")
    assert area_of_bounds(space_of(crs=""), (*(NORTH_UP @ (0, 10)), *(NORTH_UP @ (10, 0)))).box.shape == (10, 10)


@pytest.mark.parametrize("box", [(0, 0, 0, 0, 5, 5), (0, 0, 0, 5, 5, float("nan"))])
def test_an_empty_box_in_millimetres_is_refused(box):
    with refused(tuple(box), "x0 y0 z0 x1 y1 z1"):
        area_of_box(Space((6, 7, 8), tuple(map(tuple, np.eye(4)[:3]))), box)


def test_a_box_in_millimetres_beside_the_volume_is_refused():
    with refused("(100, 100, 100)", "misses the image"):
        area_of_box(Space((6, 7, 8), tuple(map(tuple, np.eye(4)[:3]))), (100, 100, 100, 110, 110, 110))


POLYGON = '{"type": "Polygon", "coordinates": %s}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"type": "FeatureCollection", "features": []}',
        '{"type": "FeatureCollection", "features": [null, 3, {"type": "Feature", "geometry": null}]}',
        '{"type": "Point", "coordinates": [3, 4]}',
        '{"type": "Polygon"}',
        POLYGON % "[]",
        POLYGON % "[[]]",
        POLYGON % "[[[1, 2]]]",
        POLYGON % "null",
        POLYGON % '"everywhere"',
        POLYGON % '[[["a", "b"], ["c", "d"], ["e", "f"]]]',
        POLYGON % "[[1, 2], [3, 4], [5, 6]]",
        POLYGON % "[[[NaN, 2], [3, 4], [5, 6], [NaN, 2]]]",
        POLYGON % "[[[1e99, 2], [3, 4], [5, 6], [1e99, 2]]]",
        POLYGON % "[[[15, 47], [15.1], [15, 47.1], [15, 47]]]",
        '{"type": "MultiPolygon", "coordinates": [3]}',
        '{"type": "Polygon", "crs": {"properties": {"name": "nonsense"}}, "coordinates": [[[1, 2], [3, 4], [5, 6]]]}',
        '{"type": "Polygon", "crs": 7, "coordinates": [[[15, 47], [15.1, 47], [15, 47.1], [15, 47]]]}',
    ],
)
def test_geojson_that_makes_no_sense_is_refused(text):
    with refused():
        area_of_geojson(space_of(), text)


def test_a_null_crs_means_none_was_given():
    degrees = transform_geom(UTM, "EPSG:4326", around(100, 100, 80, 12))
    assert area_of_geojson(space_of(), json.dumps(degrees | {"crs": None})) == area_of_geojson(
        space_of(), json.dumps(degrees)
    )


def test_a_missing_or_binary_geojson_file_is_refused(tmp_path):
    with refused(tmp_path / "no.geojson", "GeoJSON file"):
        area_of_geojson(space_of(), str(tmp_path / "no.geojson"))
    (tmp_path / "b.geojson").write_bytes(bytes(range(256)))
    with refused("b.geojson", "GeoJSON file"):
        area_of_geojson(space_of(), str(tmp_path / "b.geojson"))
    (tmp_path / "t.geojson").write_text("hello")
    with refused("t.geojson", "GeoJSON"):
        area_of_geojson(space_of(), str(tmp_path / "t.geojson"))


def test_polygons_beside_the_image_are_refused():
    with refused("misses the image"):
        area_of_geojson(space_of(), in_utm(around(5000, 5000, 80, 12)))
