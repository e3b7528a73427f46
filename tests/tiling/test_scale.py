"""The ground under a pixel, beside GDAL's own way to metres, and whether a model was tested with it."""

import math

import nibabel
import numpy as np
import pytest
import rasterio.warp
from rasterio.crs import CRS

import tiling
from tiling import Box
from tiling.scale import Scale, pixel_sides
from tiling.space import Space


def raster(crs: str, pixel: float, corner: tuple[float, float], shape: tuple[int, int] = (100, 100)) -> Space:
    x, y = corner
    return Space(shape, ((pixel, 0.0, x), (0.0, -pixel, y)), CRS.from_user_input(crs).to_wkt() if crs else "")


@pytest.mark.parametrize(
    ("crs", "pixel", "corner"),
    [
        ("EPSG:32618", 10.0, (441_730.0, 4_176_460.0)),
        ("EPSG:4326", 1e-4, (24.9, 60.2)),
        ("EPSG:4326", 1e-4, (18.4, -33.9)),
        ("EPSG:4326", 1e-4, (179.995, 0.005)),  # across the antimeridian
        ("EPSG:3857", 10.0, (2_776_000.0, 8_438_000.0)),
        ("EPSG:3413", 30.0, (-200_000.0, -2_200_000.0)),
        ("EPSG:2263", 100.0, (980_000.0, 200_000.0)),  # feet
        ("EPSG:27700", 25.0, (530_000.0, 180_000.0)),  # another ellipsoid
        ("EPSG:32618+5773", 10.0, (441_730.0, 4_176_460.0)),  # with heights
    ],
)
def test_sides_are_metres_on_the_ground(crs: str, pixel: float, corner: tuple[float, float]) -> None:
    space = raster(crs, pixel, corner)
    sides = pixel_sides(space, Box.whole(space.shape))
    assert sides is not None
    y, x = 50, 50
    points = [space.to_world(index) for index in ((y, x - 0.5), (y, x + 0.5), (y - 0.5, x), (y + 0.5, x))]
    wkt = CRS.from_wkt(space.crs)
    (longitude,), (latitude,) = rasterio.warp.transform(wkt, "EPSG:4326", *([v] for v in space.to_world((y, x))))
    flat = CRS.from_proj4(f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +datum=WGS84")  # true around its middle
    xs, ys = (np.array(v) for v in rasterio.warp.transform(wkt, flat, *zip(*points, strict=True)))
    across, down = (math.hypot(xs[i + 1] - xs[i], ys[i + 1] - ys[i]) for i in (0, 2))
    assert sides == pytest.approx((down, across), rel=2e-3)


def test_the_middle_of_the_area_counts() -> None:
    tall = raster("EPSG:4326", 0.01, (10.0, 80.0), (8000, 10))
    north, south = (pixel_sides(tall, Box((top, 0), (top + 10, 10))) for top in (0, 7900))
    assert north is not None
    assert south is not None
    assert north[1] / south[1] == pytest.approx(math.cos(math.radians(80)) / math.cos(math.radians(1)), rel=0.01)


@pytest.mark.parametrize("crs", ["", 'LOCAL_CS["desk",UNIT["metre",1]]'])
def test_without_the_earth_there_is_no_size(crs: str) -> None:
    space = Space((100, 100), ((10.0, 0.0, 0.0), (0.0, -10.0, 0.0)), crs)
    assert pixel_sides(space, Box.whole(space.shape)) is None


def test_outside_the_projection_there_is_no_size() -> None:
    space = raster("EPSG:32618", 10.0, (1e9, 1e9))
    assert pixel_sides(space, Box.whole(space.shape)) is None


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "AIL"])
def test_sides_of_a_voxel_are_in_the_model_s_order(axes: str, tmp_path) -> None:
    image = nibabel.Nifti1Image(np.zeros((8, 9, 10), np.int16), np.diag([0.5, 1.0, 3.0, 1.0]))
    codes = nibabel.orientations.axcodes2ornt(axes)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes))
    nibabel.save(turned, tmp_path / "a.nii")
    space = tiling.open(tmp_path / "a.nii").space
    assert pixel_sides(space, Box.whole(space.shape)) == pytest.approx((3.0, 1.0, 0.5))


@pytest.mark.parametrize(
    ("sides", "covered"),
    [
        ((1.0, 1.0, 1.0), True),
        ((0.8, 1.0, 1.25), True),
        ((0.79995, 1.0, 1.0), True),  # as headers round
        ((0.79, 1.0, 1.0), False),
        ((1.0, 1.0, 1.3), False),
        ((0.5, 0.5, 0.5), False),
        ((1000.0, 1000.0, 1000.0), False),
    ],
)
def test_a_range_is_of_each_axis(sides: tuple[float, ...], covered: bool) -> None:
    assert Scale((1.0, 1.0, 1.0), (0.8, 1.25)).covers(sides) is covered
