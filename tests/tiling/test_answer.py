"""Sums of scores become labels, beside whole-array numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling.answer import SCALE, Answer
from tiling.box import Box
from tiling.classes import ClassTable

BOX = Box((10, 20), (16, 29))
OUTPUTS = ("probability", "uncertainty")


def table(count: int) -> ClassTable:
    """Classes whose values are not their numbers."""
    return ClassTable.of([(count - i, f"class {i}", "#808080", None) for i in range(count)])


def sums(count: int, box: Box = BOX, levels: int = 3) -> np.ndarray:
    """Sums of few values: many pixels have several classes of the same."""
    return np.random.default_rng(count).integers(0, levels, (count, *box.shape)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 7, 256, 300])
@pytest.mark.parametrize("as_array", ["numpy", "torch"])
def test_a_label_is_that_of_the_first_class_with_the_largest_sum(count, as_array):
    total, classes = sums(count), table(count)
    given = total if as_array == "numpy" else pytest.importorskip("torch").from_numpy(total)
    answer = Answer.blank(BOX, classes, ())
    answer.fill((BOX, given, None), np.ones(BOX.shape, bool), classes)
    assert np.array_equal(answer.labels, np.array(classes.values)[total.argmax(axis=0)])


@given(st.integers(0, 2**32 - 1), st.data())
def test_slabs_fill_what_they_have_of_the_box_and_only_where_it_is_wanted(seed, data):
    rng, classes = np.random.default_rng(seed), table(3)
    wanted = rng.random(BOX.shape) < 0.8
    start = tuple(data.draw(st.integers(a - 4, b + 4)) for a, b in zip(BOX.start, BOX.stop, strict=True))
    slab = Box(start, tuple(a + data.draw(st.integers(1, 8)) for a in start))
    total, weight = rng.random((3, *slab.shape), np.float32), rng.integers(1, 9, slab.shape).astype(np.float32)
    total /= total.sum(axis=0) / weight
    answer = Answer.blank(BOX, classes, OUTPUTS)
    answer.fill((slab, total, weight), wanted, classes)

    whole = np.full((3, 50, 50), np.nan)
    whole[(slice(None), *slab.slices)] = total / weight
    share = whole[(slice(None), *BOX.slices)]
    filled = wanted & ~np.isnan(share[0])
    assert np.array_equal(answer.labels[filled], np.array(classes.values)[share[:, filled].argmax(axis=0)])
    assert (answer.labels[~filled] == classes.nodata).all()
    assert np.abs(answer.probability[:, filled] - SCALE * share[:, filled]).max(initial=0) <= 0.51
    entropy = -(share * np.log(share)).sum(axis=0) / np.log(3)
    assert np.abs(answer.uncertainty[filled] - SCALE * entropy[filled]).max(initial=0) <= 0.51
    assert (answer.probability[:, ~filled] == 255).all()
    assert (answer.uncertainty[~filled] == 255).all()


def test_an_answer_takes_what_another_has_of_its_box():
    classes, other = table(2), Box((14, 20), (19, 29))
    answer, ahead = (Answer.blank(box, classes, OUTPUTS) for box in (BOX, other))
    for values in ahead.labels, ahead.probability, ahead.uncertainty:
        values[...] = np.arange(values.size).reshape(values.shape)
    answer.take(ahead)
    assert np.array_equal(answer.labels[4:], ahead.labels[:2])
    assert np.array_equal(answer.probability[:, 4:], ahead.probability[:, :2])
    assert np.array_equal(answer.uncertainty[4:], ahead.uncertainty[:2])
    assert (answer.labels[:4] == classes.nodata).all()
    assert (answer.probability[:, :4] == 255).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(wrong):
    total, classes = sums(3), table(3)
    total[1, 2, 3] = wrong
    with pytest.raises(ValueError, match="not finite"):
        Answer.blank(BOX, classes, ()).fill((BOX, total, None), np.ones(BOX.shape, bool), classes)


def test_pixels_are_counted_by_class_and_without_one():
    classes = table(3)
    answer = Answer.blank(BOX, classes, ())
    answer.labels[0], answer.labels[1] = classes.values[0], classes.values[2]
    assert answer.counts(classes) == [9, 0, 9, 4 * 9]
