"""Outlines against distance transforms of whole arrays, MONAI, SimpleITK, and figures worked out by hand."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lmseg_core.surface import UNKNOWN, Surfaces

Labels = np.ndarray[Any, np.dtype[np.uint8]]


def whole(p: Labels, t: Labels, tolerance: float, *, closed: bool, spacing: Any = None, most: int = 2**23) -> Surfaces:
    surfaces = Surfaces(p.shape, np.diag(spacing or [1.0] * p.ndim), tolerance, closed=closed, most=most)
    surfaces.add(p, t, tuple(slice(0, n) for n in p.shape), (0,) * p.ndim)
    return surfaces


def in_pieces(p: Labels, t: Labels, side: int, like: Surfaces) -> Surfaces:
    surfaces = Surfaces(p.shape, like.steps, like.tolerance, closed=like.closed)
    for start in product(*(range(0, n, side) for n in p.shape)):
        stop = [min(a + side, n) for a, n in zip(start, p.shape, strict=True)]
        low = [max(0, a - h) for a, h in zip(start, surfaces.halo, strict=True)]
        high = [min(n, b + h) for b, h, n in zip(stop, surfaces.halo, p.shape, strict=True)]
        seen = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, low, strict=True))
        surfaces.add(p[seen], t[seen], inner, low)
    return surfaces


def surface_by_erosion(mask: Any, known: Any, closed: bool) -> Any:
    """What erosion by a cross takes away; what is unknown takes nothing away."""
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    return mask & ~ndimage.binary_erosion(mask | ~known, cross, border_value=0 if closed else 1)


def blobs(seed: int, shape: tuple[int, ...], classes: int = 3) -> tuple[Labels, Labels]:
    """Two label maps that differ somewhat, with unknown places."""
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(classes)]
    other = [s + 0.3 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for s in smooth]
    p, t = (np.argmax(s, axis=0).astype(np.uint8) for s in (other, smooth))
    t[ndimage.gaussian_filter(rng.normal(size=shape), 1) > 0.3] = UNKNOWN
    return p, t


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(23, 31), (9, 11, 13)]), st.booleans(), st.sampled_from([0.5, 1, 2.5]))
def test_figures_equal_distance_transforms(seed: int, shape: tuple[int, ...], closed: bool, tolerance: float) -> None:
    p, t = blobs(seed, shape)
    spacing = [2.5, 0.8, 1.1][-len(shape) :]
    known = t != UNKNOWN
    surfaces = whole(p, t, tolerance, closed=closed, spacing=spacing)
    for value in range(3):
        a, b = (surface_by_erosion((x == value) & known, known, closed) for x in (p, t))
        if not a.any() or not b.any():
            continue
        to_b, to_a = (ndimage.distance_transform_edt(~s, sampling=spacing) for s in (b, a))
        precision, recall = (to_b[a] <= tolerance).mean(), (to_a[b] <= tolerance).mean()
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
        near = (to_b[a] <= tolerance).sum() + (to_a[b] <= tolerance).sum()
        assert surfaces.outlines.boundary_f1[value] == pytest.approx(expected)
        assert surfaces.outlines.nsd[value] == pytest.approx(near / (a.sum() + b.sum()))
        assert surfaces.hd95()[value] == pytest.approx(max(np.percentile(to_b[a], 95), np.percentile(to_a[b], 95)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(23, 31), (9, 11, 13)]),
    st.booleans(),
    st.sampled_from([0.5, 1, 3]),
    st.integers(3, 12),
)
def test_pieces_equal_the_whole(
    seed: int, shape: tuple[int, ...], closed: bool, tolerance: float, side: int
) -> None:  # fmt: skip
    p, t = blobs(seed, shape)
    p = np.where(t == UNKNOWN, np.uint8(UNKNOWN), p)
    one = whole(p, t, tolerance, closed=closed, spacing=[1.7, 0.9, 1.2][-len(shape) :])
    many = in_pieces(p, t, side, one)
    np.testing.assert_array_equal(many.outlines.elements, one.outlines.elements)
    np.testing.assert_array_equal(many.outlines.hits, one.outlines.hits)
    np.testing.assert_array_equal(many.hd95(), one.hd95())


def test_sheared_steps_reach_as_far_as_they_should() -> None:
    """With a sheared affine the halo must cover a ball in the world, whose shadow on an axis is wider."""
    p, t = blobs(1, (40, 40))
    one = Surfaces(p.shape, np.array([[1.0, 0.9], [0.0, 0.5]]), 2.0, closed=False)
    one.add(p, t, (slice(0, 40), slice(0, 40)), (0, 0))
    np.testing.assert_array_equal(in_pieces(p, t, 5, one).outlines.hits, one.outlines.hits)


@pytest.mark.parametrize("seed", range(4))
def test_organs_equal_monai(seed: int) -> None:
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.normal(size=(20, 22, 18)), 2) for _ in range(2)]
    t = (noise[0] > 0.05).astype(np.uint8)  # reaches the edges, which MONAI counts as surface
    p = (noise[0] + 0.4 * noise[1] > 0.05).astype(np.uint8)
    spacing = [3.0, 1.0, 0.7]
    surfaces = whole(p, t, 1.0, closed=True, spacing=spacing)
    mine, true = (torch.from_numpy(np.stack([1 - x, x])[None].astype(np.float32)) for x in (p, t))
    distance = metrics.compute_hausdorff_distance(mine, true, percentile=95, spacing=spacing)
    agreement = metrics.SurfaceDiceMetric([1.0])(mine, true, spacing=spacing)
    assert surfaces.hd95()[1] == pytest.approx(float(distance), rel=1e-5)
    assert surfaces.outlines.nsd[1] == pytest.approx(float(agreement), rel=1e-5)


def test_distances_equal_signed_maurer_maps() -> None:
    p, t = (sphere(c, 8, (3.0, 1.0, 1.0)) for c in (30.0, 33.0))
    surfaces = whole(p, t, 1.0, closed=True, spacing=[3.0, 1.0, 1.0])
    contours, reach = [], []
    for labels in (p, t):
        image = sitk.GetImageFromArray(labels)
        image.SetSpacing((1.0, 1.0, 3.0))  # ITK counts x first
        contour = sitk.LabelContour(image)
        distance = sitk.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True)
        contours.append(sitk.GetArrayFromImage(contour) > 0)
        reach.append(np.abs(sitk.GetArrayFromImage(distance)))
    expected = max(np.percentile(reach[1][contours[0]], 95), np.percentile(reach[0][contours[1]], 95))
    assert surfaces.hd95()[1] == pytest.approx(expected, rel=1e-5)


def sphere(centre: float, radius: float, spacing: tuple[float, ...], shape: tuple[int, ...] = (20, 60, 60)) -> Labels:
    """A ball whose centre lies at `centre` world units along the last axis and in the middle of the others."""
    place = [np.arange(n) * s for n, s in zip(shape, spacing, strict=True)]
    middle = [shape[0] * spacing[0] / 2, shape[1] * spacing[1] / 2, centre]
    squares = [(p - m) ** 2 for p, m in zip(place, middle, strict=True)]
    return (squares[0][:, None, None] + squares[1][:, None] + squares[2] <= radius**2).astype(np.uint8)


def square(row: int, column: int, side: int = 10) -> Labels:
    labels = np.zeros((40, 40), np.uint8)
    labels[row : row + side, column : column + side] = 1
    return labels


def test_shifted_squares_by_hand() -> None:
    """A square moved by three columns: each has 36 outline pixels, and these of them lie on the other or near it."""
    surfaces = whole(square(10, 10), square(10, 13), 0.0, closed=False)
    # The upper and lower sides share seven columns each; a vertical side meets the other's in no more pixel.
    assert surfaces.outlines.elements[:, 1].tolist() == [36, 36]
    assert surfaces.outlines.hits[:, 1].tolist() == [14, 14]
    assert surfaces.outlines.boundary_f1[1] == pytest.approx(14 / 36)
    assert surfaces.hd95()[1] == 3.0
    near = whole(square(10, 10), square(10, 13), 3.0, closed=False)
    assert (near.outlines.boundary_f1[1], near.outlines.nsd[1]) == (1.0, 1.0)


def test_ball_moved_across_thick_slices() -> None:
    """Moving by two slices of 3 mm is 6 mm, however few elements that is."""
    ball = sphere(30.0, 8, (3.0, 1.0, 1.0))
    surfaces = whole(np.roll(ball, 2, axis=0), ball, 6.0, closed=True, spacing=[3.0, 1.0, 1.0])
    assert surfaces.outlines.nsd[1] == 1.0
    assert 3.0 < surfaces.hd95()[1] <= 6.0


def test_missing_classes() -> None:
    p, t = square(10, 10), np.zeros((40, 40), np.uint8)
    t[5:9, 5:9] = 2
    surfaces = whole(p, t, 1.0, closed=False)
    assert [surfaces.outlines.boundary_f1[1], surfaces.outlines.nsd[1], surfaces.hd95()[1]] == [
        0,
        0,
        np.inf,
    ]  # prediction only
    assert [surfaces.outlines.boundary_f1[2], surfaces.outlines.nsd[2], surfaces.hd95()[2]] == [
        0,
        0,
        np.inf,
    ]  # truth only
    assert np.isnan([surfaces.outlines.boundary_f1[3], surfaces.outlines.nsd[3], surfaces.hd95()[3]]).all()  # neither


def test_edge_of_the_image_is_a_surface_of_organs_only() -> None:
    full = np.ones((8, 8), np.uint8)
    assert whole(full, full, 1.0, closed=False).outlines.elements.sum() == 0
    assert whole(full, full, 1.0, closed=True).outlines.elements[:, 1].tolist() == [28, 28]


def test_too_many_elements_leave_out_distances_only() -> None:
    surfaces = whole(square(10, 10), square(10, 13), 0.0, closed=False, most=50)
    assert surfaces.overflowed
    assert np.isnan(surfaces.hd95()[1])
    assert surfaces.outlines.boundary_f1[1] == pytest.approx(14 / 36)
