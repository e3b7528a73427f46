"""Each change of a window against numpy, scipy and what the settings promise."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from lmseg_core.training import augment
from lmseg_core.training.settings import AugmentSettings


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _settings(**changes: Any) -> AugmentSettings:
    return AugmentSettings.model_validate({"flip": [], **changes})


def _image(shape: tuple[int, ...] = (3, 24, 20)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def test_nothing_is_changed_unless_asked() -> None:
    generator = _generator()
    before = generator.get_state()
    image = _image()
    assert np.array_equal(augment.geometry(_settings(), 3, generator), np.eye(3))
    assert augment.intensity(image, _settings(), generator) is image
    assert not augment.chance(0, generator)
    assert torch.equal(before, generator.get_state())


def test_flips_each_axis_half_the_time() -> None:
    generator, settings = _generator(), _settings(flip=["x", "z"])
    drawn = np.stack([augment.geometry(settings, 3, generator) for _ in range(400)])
    assert (drawn == np.abs(drawn) * np.sign(drawn)).all()
    z, y, x = drawn[:, 0, 0], drawn[:, 1, 1], drawn[:, 2, 2]
    assert (y == 1).all()
    assert np.mean(z == -1) == pytest.approx(0.5, abs=0.08)
    assert np.mean(x == -1) == pytest.approx(0.5, abs=0.08)
    assert np.mean(x * z == -1) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("ndim", [2, 3])
def test_quarter_turns_are_numpys_in_the_plane(ndim: int) -> None:
    generator, settings = _generator(), _settings(quarter_turns=True)
    image = _image((2, 4, 5, 6)[: ndim + 1])
    seen = set()
    for _ in range(40):
        matrix = augment.geometry(settings, ndim, generator)
        assert augment.is_exact(matrix)
        turned = augment.reorder(image, matrix)
        turns = [k for k in range(4) if np.array_equal(turned, np.rot90(image, k, (-2, -1)))]
        assert len(turns) == 1
        assert augment.reach(matrix, turned.shape[1:]) == tuple(image.shape[1:])
        seen.add(turns[0])
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("ndim", [2, 3])
def test_rotations_and_zooms_keep_their_limits(ndim: int) -> None:
    generator = _generator()
    turned = np.stack([augment.geometry(_settings(rotate=30), ndim, generator) for _ in range(300)])
    np.testing.assert_allclose(
        turned @ turned.transpose(0, 2, 1), np.broadcast_to(np.eye(ndim), turned.shape), atol=1e-12
    )
    angles = np.degrees(np.arctan2(turned[:, -1, -2], turned[:, -1, -1]))
    if ndim == 2:
        assert np.abs(angles).max() <= 30
    assert np.abs(angles).max() > 25
    zoomed = np.stack([augment.geometry(_settings(scale=[0.5, 2]), ndim, generator) for _ in range(300)])
    zooms = 1 / zoomed[:, 0, 0]
    np.testing.assert_allclose(zoomed, np.eye(ndim) / zooms[:, None, None])
    assert 0.5 <= zooms.min() < 0.6
    assert 1.8 < zooms.max() <= 2
    assert np.mean(zooms < 1) == pytest.approx(0.5, abs=0.1)


def test_a_share_of_windows_is_resampled_and_the_others_only_flipped() -> None:
    generator, settings = _generator(), _settings(flip=["x"], rotate=30, scale=[0.5, 2], resample=0.3)
    drawn = [augment.geometry(settings, 3, generator) for _ in range(1000)]
    kept = [matrix for matrix in drawn if augment.is_exact(matrix)]
    assert len(kept) / len(drawn) == pytest.approx(0.7, abs=0.05)
    assert np.mean([matrix[2, 2] == -1 for matrix in kept]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("shape", [(30, 40), (14, 18, 16)])
def test_resampling_is_scipys(shape: tuple[int, ...]) -> None:
    window = (12, 10, 8)[: len(shape)]
    settings = _settings(flip=["x", "y"], rotate=50, scale=[0.5, 2], quarter_turns=True)
    image = _image((2, *shape))
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8))
    for seed in range(5):
        matrix = augment.geometry(settings, len(shape), _generator(seed))
        centre = np.array(shape) / 2.3
        grid = augment.sampling_grid(matrix, centre.tolist(), shape, window)
        offset = centre - matrix @ ((np.array(window) - 1) / 2)
        expected = [
            ndimage.affine_transform(band, matrix, offset, window, order=1, mode="grid-constant") for band in image
        ]
        np.testing.assert_allclose(augment.resample(image, grid), expected, atol=1e-4)
        nearest = ndimage.affine_transform(
            labels.numpy(), matrix, offset, window, order=0, mode="grid-constant", cval=255
        )
        # Places that round to halfway between two pixels may fall to either.
        assert np.mean(augment.resample_labels(labels, grid).numpy() == nearest) > 0.99


def test_reach_holds_the_window() -> None:
    diagonal = np.array([[1, -1], [1, 1]]) / math.sqrt(2)
    assert augment.reach(diagonal, (10, 20)) == (22, 22)
    assert augment.reach(np.eye(3), (4, 5, 6)) == (4, 5, 6)
    assert augment.reach(np.eye(2) / 0.1, (3, 7)) == (30, 70)


@pytest.mark.parametrize("shape", [(3, 24, 20), (2, 9, 12, 10)])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_blur_is_scipys(shape: tuple[int, ...], sigma: float) -> None:
    image = _image(shape)
    radius = math.ceil(3 * sigma)
    expected = [ndimage.gaussian_filter(band, sigma, mode="nearest", radius=radius) for band in image.numpy()]
    np.testing.assert_allclose(augment.blur(image, sigma), expected, atol=1e-5)
    assert torch.equal(augment.blur(image, 0), image)


def test_half_the_windows_stay_sharp() -> None:
    generator, image = _generator(), _image((1, 6, 6))
    sharp = [augment.intensity(image, _settings(blur=1), generator) is image for _ in range(300)]
    assert np.mean(sharp) == pytest.approx(0.5, abs=0.08)


def test_brightness_and_contrast_differ_by_band() -> None:
    generator, image = _generator(), _image()
    offsets = torch.stack([augment.intensity(image, _settings(brightness=0.4), generator) - image for _ in range(100)])
    assert float((offsets - offsets[..., :1, :1]).abs().max()) < 1e-6
    assert 0.35 < float(offsets.abs().max()) <= 0.4 + 1e-6
    assert len(offsets[0, :, 0, 0].unique()) == 3
    factors = torch.stack([augment.intensity(image, _settings(contrast=0.3), generator) / image for _ in range(100)])
    torch.testing.assert_close(factors, factors[..., :1, :1].expand_as(factors))
    assert 0.25 < float((factors - 1).abs().max()) <= 0.3 + 1e-5


def test_gamma_keeps_the_range_and_the_order_of_each_band() -> None:
    generator, image = _generator(), _image()
    exponents = []
    for _ in range(50):
        changed = augment.intensity(image, _settings(gamma=0.5), generator)
        torch.testing.assert_close(changed.amin((1, 2)), image.amin((1, 2)))
        torch.testing.assert_close(changed.amax((1, 2)), image.amax((1, 2)))
        assert (np.diff(changed[0].flatten()[image[0].flatten().argsort()]) >= 0).all()
        low, high = image[0].min(), image[0].max()
        ratio = torch.log((changed[0] - low) / (high - low)) / torch.log((image[0] - low) / (high - low))
        exponents.append(float(ratio.nanmedian().log()))
    assert 0.4 < np.abs(exponents).max() <= 0.5 + 1e-3
    constant = torch.full((1, 4, 4), 7.0)
    torch.testing.assert_close(augment.intensity(constant, _settings(gamma=0.5), generator), constant)


def test_noise_is_drawn_again_from_the_same_seed() -> None:
    image = torch.zeros(1, 100, 100)
    settings = _settings(noise=0.5)
    first, again, other = (augment.intensity(image, settings, _generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    deviations = [float(augment.intensity(image, settings, _generator(seed)).std()) for seed in range(100)]
    assert 0.45 < max(deviations) < 0.52
    assert np.mean(deviations) == pytest.approx(0.25, abs=0.05)


def test_bands_are_blanked_but_never_all() -> None:
    generator, image = _generator(), _image() + 10
    blank = np.array(
        [
            (augment.intensity(image, _settings(band_dropout=0.6), generator) == 0).all(-1).all(-1).tolist()
            for _ in range(300)
        ]
    )
    assert not blank.all(1).any()
    # A window that would lose all three keeps them: 0.6 less 0.6^3.
    np.testing.assert_allclose(blank.mean(0), 0.6 - 0.6**3, atol=0.09)
    assert (augment.intensity(image, _settings(band_dropout=1), generator) == image).all()


def test_the_window_that_is_passed_in_stays() -> None:
    image, labels = _image(), torch.zeros(24, 20, dtype=torch.uint8)
    kept = image.clone()
    everything = _settings(blur=1, gamma=0.3, contrast=0.2, brightness=0.2, noise=0.1, band_dropout=0.3)
    for seed in range(10):
        augment.intensity(image, everything, _generator(seed))
        augment.drop_source(image, (1, 2), _generator(seed))
        augment.cutmix(image, labels, (-image, labels + 1), _generator(seed))
    assert torch.equal(image, kept)
    assert not labels.any()


def test_a_source_is_lost_whole() -> None:
    image = _image((5, 4, 4))
    lost = [augment.drop_source(image, (2, 1, 2), _generator(seed)).isnan().all(-1).all(-1) for seed in range(60)]
    patterns = {tuple(bands.tolist()) for bands in lost}
    assert patterns == {(1, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 1)}


@pytest.mark.parametrize("shape", [(30, 40), (16, 20, 12)])
def test_cutmix_pastes_one_box_of_image_and_labels(shape: tuple[int, ...]) -> None:
    generator = _generator()
    first = torch.zeros(2, *shape), torch.zeros(shape, dtype=torch.uint8)
    other = torch.ones(2, *shape), torch.ones(shape, dtype=torch.uint8)
    shares = []
    for _ in range(200):
        image, labels = augment.cutmix(*first, other, generator)
        assert all(torch.equal(band, labels.float()) for band in image)
        pasted = torch.nonzero(labels)
        if len(pasted):
            sides = pasted.amax(0) - pasted.amin(0) + 1
            assert int(sides.prod()) == len(pasted)
        shares.append(float(labels.float().mean()))
    # Even in 0..1 before the border cuts; at most half of each axis is cut off.
    assert 0.2 < np.mean(shares) < 0.5
    assert max(shares) > 0.6
