"""The census against numpy on whole arrays."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lmseg_core.errors import ModelError
from lmseg_core.training import census
from lmseg_core.training.windows import Example, InMemory

NAMES = ("water", "wood", "town")


def _example(labels: NDArray[np.generic], name: str = "scene.tif") -> Example:
    return Example(name, InMemory(np.zeros((1, *labels.shape), np.uint8)), InMemory(labels), (0.0,), (1.0,))


@pytest.mark.parametrize("shape", [(2100, 2500), (130, 20, 140)])  # more than a piece on some axes
def test_counts_and_places_are_numpys(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), shape, p=[0.7, 0.1, 0.2])
    labels[-1, -3:] = 2
    examples = [_example(labels), _example(np.ones((4, 5)[: len(shape)] + (6,) * (len(shape) - 2), np.int64))]
    taken = census.take(examples, 3, NAMES, keep=500)
    expected = [[int((e.labels.read((slice(None),) * len(shape)) == k).sum()) for k in range(3)] for e in examples]
    np.testing.assert_array_equal(taken.counts, expected)
    np.testing.assert_allclose(taken.share, np.sum(expected, 0) / np.sum(expected))
    for value, positions in enumerate(taken.positions[0]):
        assert len(positions) == min(500, expected[0][value])
        assert (labels[tuple(positions.T)] == value).all()
        assert len(np.unique(positions, axis=0)) == len(positions)
    assert [len(positions) for positions in taken.positions[1]] == [0, expected[1][1], 0]
    again = pickle.loads(pickle.dumps(census.take(examples, 3, NAMES, keep=500)))
    assert all(map(np.array_equal, again.positions[0], taken.positions[0]))
    taken.check(NAMES)


def test_places_are_drawn_evenly_over_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(census._PIECE, 2, 32)
    labels = np.zeros((80, 80), np.uint8)  # nine pieces, of three sizes
    taken = census.take([_example(labels)], 1, ["all"], keep=4000)
    places = taken.positions[0][0]
    assert len(places) == 4000
    seen = np.histogram2d(*places.T, bins=([0, 32, 64, 80], [0, 32, 64, 80]))[0]
    even = 4000 * np.outer([0.4, 0.4, 0.2], [0.4, 0.4, 0.2])
    assert ((seen - even) ** 2 / even).sum() < 26.1  # chi square, 8 degrees of freedom: 1 in 1000 is beyond


@pytest.mark.parametrize(
    ("value", "dtype"), [(3, np.uint8), (254, np.uint8), (-1, np.int16), (256, np.uint16), (70_000, np.int32)]
)
def test_a_value_that_is_no_class_is_refused(value: int, dtype: type) -> None:
    labels = np.zeros((10, 10), dtype)
    labels[7, 3] = value
    message = (
        rf"^the labels of scene\.tif have the value {value}; expected 0\.\.2 \(water .. town\) or 255 .*data\.values"
    )
    with pytest.raises(ModelError, match=message):
        census.take([_example(np.zeros((10, 10), np.uint8), "fine"), _example(labels)], 3, NAMES)


def test_labels_that_are_no_whole_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"scene\.tif are float32"):
        census.take([_example(np.zeros((4, 4), np.float32))], 3, NAMES)


def test_labels_that_say_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match=r"the labels of scene\.tif are all 255"):
        census.take([_example(np.full((4, 4), 255, np.uint8))], 3, NAMES)


def test_an_image_of_another_shape_is_refused() -> None:
    example = replace(_example(np.zeros((4, 5), np.uint8)), image=InMemory(np.zeros((3, 4, 6))))
    with pytest.raises(ModelError, match=r"scene\.tif has an image of shape \(4, 6\) and labels of shape \(4, 5\)"):
        census.take([example], 3, NAMES)


def test_a_class_that_never_occurs_is_refused() -> None:
    taken = census.take([_example(np.full((4, 4), 1, np.uint8))], 3, NAMES)
    with pytest.raises(ModelError, match=r"no pixel of water, town; take .* out of model\.classes"):
        taken.check(NAMES)
