"""Placement in the world."""

import math

import nibabel
import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

import tiling
from tests.tiling.files import AFFINES, TRANSFORMS, write_tiff, write_volume
from tests.tiling.refusals import refused
from tests.tiling.strategies import boxes
from tiling.box import Box
from tiling.space import Space

SHAPE = (6, 7, 8)


def raster(transform: Affine, shape=(30, 40)) -> Space:
    return Space(shape, (tuple(transform[:3]), tuple(transform[3:6])))


@given(st.sampled_from(sorted(TRANSFORMS)), boxes((30, 40)))
def test_a_part_of_a_raster_lies_where_rasterio_puts_its_window(name, box):
    from rasterio.windows import Window
    from rasterio.windows import transform as transform_of

    (y, x), (height, width) = box.start, box.shape
    part = raster(TRANSFORMS[name]).crop(box)
    expected = transform_of(Window(x, y, width, height), TRANSFORMS[name])
    assert np.allclose(np.array(part.affine).ravel(), expected[:6], rtol=1e-14, atol=0)
    assert part.shape == box.shape


@given(st.sampled_from(sorted(TRANSFORMS)), boxes((30, 40)))
def test_numbers_that_do_not_change_keep_every_bit(name, box):
    space = raster(TRANSFORMS[name])
    part = space.crop(box)
    assert [row[:2] for row in part.affine] == [row[:2] for row in space.affine]
    assert space.crop(Box.whole((30, 40))) == space


@given(st.sampled_from(sorted(AFFINES)), boxes(SHAPE))
def test_a_voxel_keeps_its_world_point_when_the_volume_is_cropped(name, box):
    affine = AFFINES[name]
    space = Space(SHAPE, tuple(map(tuple, affine[:3])))
    point = space.to_world(box.start)
    assert np.allclose(space.crop(box).to_world((0, 0, 0)), point, atol=1e-9)
    assert np.allclose(nibabel.affines.apply_affine(affine, box.start[::-1]), point, atol=1e-9)


@pytest.mark.parametrize("units", ["meter", "mm", "micron"])
@pytest.mark.parametrize("forms", ["both", "sform", "qform"])
@given(st.sampled_from(sorted(AFFINES)), boxes(SHAPE))
def test_both_forms_of_a_cropped_volume_lie_where_nibabel_s_slicer_puts_them(tmp_path_factory, units, forms, name, box):
    file = tmp_path_factory.mktemp("v") / "v.nii"
    write_volume(file, np.zeros(SHAPE[::-1], np.uint8), AFFINES[name], forms=forms, units=units)
    (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
    expected = nibabel.load(file).slicer[x0:x1, y0:y1, z0:z1]
    part = tiling.open(file).space.crop(box)
    header = nibabel.Nifti1Header()
    header["pixdim"][:4] = part.forms.pixdim
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = part.forms.quatern
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = part.forms.qoffset
    header["qform_code"] = part.forms.qform_code
    if part.forms.sform_code:
        assert np.allclose(part.forms.sform, expected.affine[:3], atol=1e-4)
    if part.forms.qform_code:
        assert np.allclose(header.get_qform(), expected.affine, atol=1e-4)
    to_mm = {"meter": 1000, "mm": 1, "micron": 0.001}[units]
    assert np.allclose(part.affine, to_mm * expected.affine[:3], atol=1e-4 * to_mm)


@given(st.sampled_from(sorted(AFFINES)), boxes(SHAPE))
def test_the_box_around_a_part_of_a_volume_is_that_part(name, box):
    space = Space(SHAPE, tuple(map(tuple, AFFINES[name][:3])))
    corners = np.array([[a - 0.5, b - 0.5] for a, b in zip(box.start, box.stop, strict=True)])
    points = np.array(np.meshgrid(*corners, indexing="ij")).reshape(3, -1).T
    assert space.box_around(np.array([space.to_world(tuple(p)) for p in points])) == box


@given(st.sampled_from(sorted(TRANSFORMS)), boxes((30, 40)))
def test_the_box_around_a_part_of_a_raster_is_that_part(name, box):
    space = raster(TRANSFORMS[name])
    (y0, x0), (y1, x1) = box.start, box.stop
    corners = [space.to_world(c) for c in ((y0, x0), (y0, x1), (y1, x1), (y1, x0))]
    assert space.box_around(np.array(corners)) == box


def test_part_of_a_pixel_is_the_whole_pixel():
    space = raster(Affine(10, 0, 0, 0, -10, 300))
    assert space.box_around(np.array([[12.0, 281.0], [12.5, 280.5]])) == Box((1, 1), (2, 2))


def test_points_beside_the_image_are_refused_with_both_extents():
    with refused("(1000, 1000) to (1100, 1100)", "(0, 0) to (400, 300)"):
        raster(Affine(10, 0, 0, 0, -10, 300)).box_around(np.array([[1000.0, 1000], [1100, 1100]]))


def test_size_and_spacing_of_an_element():
    space = raster(TRANSFORMS["rotated"])
    assert math.isclose(space.cell, 10.1 * 9.9)
    assert np.allclose(space.spacing, (9.9, 10.1))
    volume = Space(SHAPE, tuple(map(tuple, AFFINES["oblique"][:3])))
    assert math.isclose(volume.cell, 0.8 * 1.1 * 2.5)
    assert np.allclose(volume.spacing, (2.5, 1.1, 0.8))


def test_bounds_are_those_of_rasterio_and_of_voxel_corners(tmp_path):
    import rasterio

    file = write_tiff(tmp_path / "a.tif", np.zeros((1, 30, 40), np.uint8))
    with rasterio.open(file) as image:
        low, high = tiling.open(file).space.bounds()
        assert (*low, *high) == tuple(image.bounds)
    low, high = Space((2, 3, 4), ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 2.0, 10))).bounds()
    assert (low, high) == ((-0.5, -0.5, 9.0), (3.5, 2.5, 13.0))


@given(st.sampled_from(sorted(TRANSFORMS)))
def test_a_raster_s_space_survives_json_to_the_last_bit(name):
    import json

    space = raster(TRANSFORMS[name])
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize("name", AFFINES)
def test_a_volume_s_space_survives_json_to_the_last_bit(tmp_path, name):
    import json

    space = tiling.open(write_volume(tmp_path / "v.nii", np.zeros((3, 4, 5), np.int16), AFFINES[name])).space
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
