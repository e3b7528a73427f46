"""Windows against whole arrays: the same ones every time, aligned, and read from where they lie."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from lmseg_core.errors import ModelError
from lmseg_core.training import census
from lmseg_core.training.settings import Settings
from lmseg_core.training.windows import Box, Example, GridWindows, InMemory, RandomWindows, Window, cached

NAMES = ("water", "wood", "town")
EVERYTHING = {
    "quarter_turns": True,
    "rotate": 30,
    "scale": [0.7, 1.4],
    "shift": 0.5,
    "brightness": 0.3,
    "contrast": 0.2,
    "gamma": 0.3,
    "noise": 0.1,
    "blur": 1,
    "band_dropout": 0.2,
    "source_dropout": 0.3,
    "cutmix": 0.5,
}


def _settings(window: tuple[int, ...], balance: float = 0.5, seed: int = 0, **augment: Any) -> Settings:
    """Return settings of a training that changes windows only as it is told."""
    pairs = [{"image": "image", "label": "label"}]
    return Settings.model_validate(
        {
            "output": "out",
            "seed": seed,
            "model": {"ndim": len(window), "classes": [{"name": name} for name in NAMES]},
            "data": {"train": pairs, "validation": pairs, "window": window, "balance": balance},
            "augment": {"flip": [], **augment},
        }
    )


def _random(shape: tuple[int, ...], name: str = "a", bands: int = 3, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 20, (bands, *shape)).astype(np.float32)
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    return Example(name, InMemory(image), InMemory(labels), (100.0,) * bands, (20.0,) * bands)


def _ramp(shape: tuple[int, ...]) -> Example:
    """Return an example whose bands are the indices of each pixel and, last, 1: where a window has 0, it is outside."""
    image = np.stack([*np.indices(shape), np.ones(shape)]).astype(np.int32)
    labels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    bands = len(image)
    return Example("ramp", InMemory(image), InMemory(labels), (0.0,) * bands, (1.0,) * bands)


def _windows(examples: list[Example], settings: Settings, length: int = 40) -> RandomWindows:
    return RandomWindows(examples, census.take(examples, 3, NAMES), settings, length)


def _equal(first: Window, second: Window) -> bool:
    return (
        first["example"] == second["example"]
        and torch.equal(first["labels"], second["labels"])
        and torch.equal(first["pixel_values"].nan_to_num(9), second["pixel_values"].nan_to_num(9))
    )


@dataclass
class Lazy:
    """Pixels that are made where they are read, and counted."""

    shape: tuple[int, ...]
    make: Callable[[Box], NDArray[Any]]
    boxes: list[Box] = field(default_factory=list)

    def read(self, box: Box) -> NDArray[Any]:
        spatial = self.shape[-len(box) :]
        assert all(0 <= part.start < part.stop <= size for part, size in zip(box, spatial, strict=True))
        self.boxes.append(box)
        return self.make(box)

    @property
    def pixels(self) -> int:
        return max(int(np.prod([part.stop - part.start for part in box])) for box in self.boxes)


def _shape(box: Box) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in box)


@pytest.mark.parametrize("shape", [(60, 70), (14, 20, 18)])
def test_are_the_same_for_any_number_of_workers_and_after_a_restart(shape: tuple[int, ...]) -> None:
    examples = [replace(_random(shape, seed=i), sources=(1, 2)) for i in range(2)]
    windows = _windows(examples, _settings((16, 24, 12)[: len(shape)], **EVERYTHING), 12)
    assert len(windows) == 12
    here = [windows[i] for i in range(12)]
    assert len({round(float(w["pixel_values"].nan_to_num(0).sum()), 3) for w in here}) == 12
    for workers in (0, 1, 2):
        start = "spawn" if workers else None
        loaded = list(DataLoader(windows, batch_size=None, num_workers=workers, multiprocessing_context=start))
        assert all(map(_equal, here, loaded))
    restarted = pickle.loads(pickle.dumps(windows))
    rest = DataLoader(Subset(restarted, range(7, 12)), batch_size=None)
    assert all(map(_equal, here[7:], rest))
    other = _windows(examples, _settings((16, 24, 12)[: len(shape)], seed=1, **EVERYTHING), 12)
    assert not any(map(_equal, here, (other[i] for i in range(12))))


def test_are_batched_as_a_network_takes_them() -> None:
    windows = _windows([_random((60, 70))], _settings((16, 24)))
    batch = next(iter(DataLoader(windows, batch_size=4)))
    assert batch["pixel_values"].shape == (4, 3, 16, 24)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].shape == (4, 16, 24)
    assert batch["labels"].dtype == torch.uint8
    assert batch["example"].tolist() == [0, 0, 0, 0]
    with pytest.raises(IndexError):
        windows[40]


@pytest.mark.parametrize("shape", [(40, 50), (12, 16, 18)])
@pytest.mark.parametrize("window", [(16, 16, 16), (24, 10, 30)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flip": ["x", "y"]},
        {"flip": ["x", "y"], "quarter_turns": True, "shift": 0.5},
        {"quarter_turns": True, "cutmix": 1.0},
    ],
)
def test_crops_flips_and_turns_are_exact(
    shape: tuple[int, ...], window: tuple[int, ...], changes: dict[str, Any]
) -> None:
    example = _ramp(shape)
    windows = _windows([example], _settings(window[: len(shape)], **changes))
    for item in (windows[i] for i in range(20)):
        *index, inside = item["pixel_values"].numpy().astype(int)
        inside = inside > 0
        labels = example.labels.read(tuple(map(slice, shape)))
        assert (item["pixel_values"].numpy()[:, ~inside] == 0).all()
        assert (item["labels"].numpy()[~inside] == 255).all()
        np.testing.assert_array_equal(item["labels"].numpy()[inside], labels[tuple(axis[inside] for axis in index)])


@pytest.mark.parametrize("shape", [(60, 70), (24, 26, 28)])
@pytest.mark.parametrize("changes", [{"rotate": 40}, {"scale": [0.5, 2]}, {"rotate": 180, "scale": [0.8, 1.2]}])
def test_image_and_labels_stay_aligned_when_resampled(shape: tuple[int, ...], changes: dict[str, Any]) -> None:
    example = _ramp(shape)
    labels = example.labels.read(tuple(map(slice, shape)))
    windows = _windows([example], _settings((20, 16, 16)[: len(shape)], shift=0.5, quarter_turns=True, **changes))
    for item in (windows[i] for i in range(20)):
        # A ramp keeps its values under linear interpolation: each pixel says where it was read.
        place, inside = item["pixel_values"].numpy()[:-1], item["pixel_values"].numpy()[-1] > 0.9999
        inside &= (np.abs(place - np.floor(place) - 0.5) > 0.01).all(0)  # not halfway between two pixels
        assert inside.any()
        nearest = np.rint(place[:, inside]).astype(int)
        np.testing.assert_array_equal(item["labels"].numpy()[inside], labels[tuple(nearest)])


@pytest.mark.parametrize("shape", [(60, 70), (24, 26, 28)])
def test_the_last_share_is_as_in_the_file(shape: tuple[int, ...]) -> None:
    example = _ramp(shape)
    labels = example.labels.read(tuple(map(slice, shape)))
    changes = {"flip": ["x", "y"], "rotate": 30, "scale": [0.8, 1.2], "blur": 0.8}
    restless, settling = (
        _windows([example], _settings((20, 16, 16)[: len(shape)], settle=settle, **changes)) for settle in (0.0, 0.25)
    )
    assert all(_equal(restless[i], settling[i]) for i in range(30))
    assert not any(_equal(restless[i], settling[i]) for i in range(30, 40))
    for item in (settling[i] for i in range(30, 40)):
        index = item["pixel_values"].numpy()[:-1]
        np.testing.assert_array_equal(index, np.rint(index))
        np.testing.assert_array_equal(item["labels"].numpy(), labels[tuple(index.astype(int))])


def test_lie_inside_the_image_unless_they_may_not() -> None:
    examples = [_random((30, 30))]
    turned = {"rotate": 180, "scale": [0.8, 1.25]}
    inside = _windows(examples, _settings((16, 16), **turned), 200)
    assert all((inside[i]["labels"] != 255).all() for i in range(200))
    beyond = _windows(examples, _settings((16, 16), shift=0.5, **turned), 200)
    share = np.mean([bool((beyond[i]["labels"] == 255).any()) for i in range(200)])
    assert 0.3 < share < 0.6
    assert all((beyond[i]["labels"] != 255).float().mean() >= 0.15 for i in range(200))


def test_small_images_are_padded() -> None:
    example = _random((10, 40))
    items = [_windows([example], _settings((16, 16)))[i] for i in range(10)]
    for item in items:
        assert int((item["labels"] != 255).sum()) == 10 * 16
        assert (item["pixel_values"][:, item["labels"] == 255] == 0).all()
    assert len({int(torch.nonzero(item["labels"][:, 0] != 255)[0]) for item in items}) > 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float64, ">u2"])
def test_normalises_each_band(dtype: Any) -> None:
    image = np.arange(2 * 8 * 8).reshape(2, 8, 8).astype(dtype)
    example = replace(_random((8, 8), bands=2), image=InMemory(image), mean=(10.0, 70.0), std=(2.0, 0.0))
    values = _windows([example], _settings((8, 8)))[0]["pixel_values"].numpy()
    expected = (image.astype(float) - [[[10]], [[70]]]) / [[[2]], [[1e-6]]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"rotate": 30}])
def test_invalid_pixels_of_a_band_become_its_mean(changes: dict[str, Any]) -> None:
    image = np.full((2, 40, 40), 200.0, np.float32)
    image[0, :, :20], image[0, 0, 20] = np.nan, np.inf
    example = replace(_random((40, 40), bands=2), image=InMemory(image), mean=(100.0,) * 2, std=(50.0,) * 2)
    values = torch.stack([_windows([example], _settings((16, 16), **changes))[i]["pixel_values"] for i in range(30)])
    assert torch.isfinite(values).all()
    assert (values[:, 0] == 0).any()
    torch.testing.assert_close(values[:, 1], torch.full_like(values[:, 1], 2.0))


def test_examples_are_drawn_by_their_pixels() -> None:
    examples = [_random((20, 20), "small", seed=1), _random((40, 30), "large", seed=2)]
    windows = _windows(examples, _settings((4, 4), balance=0), 2000)
    share = np.mean([windows[i]["example"] for i in range(2000)])
    assert share == pytest.approx(0.75, abs=0.04)


def test_rare_classes_are_drawn_as_often_as_common_ones() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[:100] = 1
    labels[150:154, 20:24] = 2  # 0.04 % of the pixels
    examples = [_random((50, 50), "without"), replace(_random((200, 200), "with"), labels=InMemory(labels))]
    examples[0] = replace(examples[0], labels=InMemory(np.zeros((50, 50), np.uint8)))
    seen = {}
    for balance in (0.0, 0.5, 1.0):
        windows = _windows(examples, _settings((8, 8), balance=balance, rotate=20), 600)
        seen[balance] = np.mean([bool((windows[i]["labels"] == 2).any()) for i in range(600)])
    assert seen[0.0] < 0.02
    assert seen[0.5] == pytest.approx(1 / 6, abs=0.05)
    assert seen[1.0] == pytest.approx(1 / 3, abs=0.06)


def test_reads_no_more_than_a_window_covers() -> None:
    size = 100_000
    image = Lazy((3, size, size), lambda box: np.ones((3, *_shape(box)), np.uint16))
    labels = Lazy((size, size), lambda box: np.ones(_shape(box), np.uint8))
    example = Example("huge", image, labels, (0.0,) * 3, (1.0,) * 3)
    places = np.array([[0, 0], [size // 2, 7], [size - 1, size - 1]], np.int32)
    nowhere = np.empty((0, 2), np.int32)
    counted = census.Census(np.array([[0, size * size, 0]]), ((nowhere, places, nowhere),))
    plain = RandomWindows([example], counted, _settings((64, 32), quarter_turns=True, flip=["x"]), 50)
    assert all(plain[i]["labels"].eq(1).all() for i in range(50))
    assert image.pixels == labels.pixels == 64 * 32
    turned = RandomWindows([example], counted, _settings((64, 32), rotate=90, scale=[0.5, 1], shift=0.5), 50)
    assert all(turned[i]["labels"].eq(1).any() for i in range(50))
    largest = 2 * np.hypot(64, 32) + 3  # the diagonal at half the size, and a pixel on each side
    assert image.pixels <= largest**2
    assert len(image.boxes) == 100


def test_windows_without_any_label_are_drawn_again() -> None:
    labels = np.full((300, 300), 255, np.uint8)
    labels[3, 290] = 1
    example = replace(_random((300, 300)), labels=InMemory(labels))
    windows = _windows([example], _settings((8, 8), balance=0, rotate=45, scale=[0.5, 2]), 30)
    assert all((windows[i]["labels"] == 1).any() for i in range(30))


def test_labels_that_vanish_are_an_error() -> None:
    example = _random((20, 20), "scene.tif")
    counted = census.take([example], 3, NAMES)
    gone = replace(example, labels=InMemory(np.full((20, 20), 255, np.uint8)))
    with pytest.raises(ModelError, match=r"scene\.tif are 255"):
        RandomWindows([gone], counted, _settings((8, 8)), 5)[0]


def test_a_missing_source_is_nan_and_never_all_are() -> None:
    example = replace(_random((20, 20), bands=3), sources=(1, 2))
    windows = _windows([example], _settings((8, 8), source_dropout=0.5), 200)
    missing = [tuple(windows[i]["pixel_values"].isnan().all((1, 2)).tolist()) for i in range(200)]
    assert set(missing) == {(False, False, False), (True, False, False), (False, True, True)}
    assert np.mean([any(bands) for bands in missing]) == pytest.approx(0.5, abs=0.1)
    alone = _windows([replace(example, sources=(3,))], _settings((8, 8), source_dropout=1.0), 20)
    assert not any(alone[i]["pixel_values"].isnan().any() for i in range(20))


def test_cutmix_pastes_another_window() -> None:
    flat = [
        replace(
            _random((20, 20), bands=1), image=InMemory(np.full((1, 20, 20), value, np.uint8)), mean=(0.0,), std=(1.0,)
        )
        for value in (1, 2)
    ]
    windows = _windows(flat, _settings((10, 10), cutmix=1.0), 100)
    mixed = [windows[i]["pixel_values"].unique().tolist() for i in range(100)]
    assert 0.3 < np.mean([values == [1, 2] for values in mixed]) < 0.6


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.data())
def test_grid_windows_count_each_pixel_once(data: st.DataObject) -> None:
    ndim = data.draw(st.sampled_from((2, 3)))
    axes = st.lists(st.integers(1, 12), min_size=ndim, max_size=ndim).map(tuple)
    shapes, window = data.draw(st.lists(axes, min_size=1, max_size=3)), data.draw(axes)
    examples = [_ramp(shape) for shape in shapes]
    windows = GridWindows(examples, window)
    counts = [np.zeros(shape, int) for shape in shapes]
    for i in range(len(windows)):
        item = windows[i]
        *index, inside = item["pixel_values"].numpy().astype(int)
        kept = item["labels"].numpy() != 255
        assert inside[kept].all()
        where = tuple(axis[kept] for axis in index)
        np.add.at(counts[item["example"]], where, 1)
        truth = examples[item["example"]].labels.read(tuple(map(slice, shapes[item["example"]])))
        np.testing.assert_array_equal(item["labels"].numpy()[kept], truth[where])
        assert item["labels"].shape == window
        # All of the window that can be is filled with the image, which gives the last ones their context.
        assert inside.sum() == np.prod(np.minimum(window, shapes[item["example"]]))
    assert all((count == 1).all() for count in counts)
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_grid_windows_read_only_themselves() -> None:
    image = Lazy((1, 100_000, 100_000), lambda box: np.ones((1, *_shape(box)), np.uint8))
    labels = Lazy((100_000, 100_000), lambda box: np.ones(_shape(box), np.uint8))
    windows = GridWindows([Example("huge", image, labels, (0.0,), (1.0,))], (256, 256))
    assert len(windows) == 391**2
    assert int((windows[len(windows) - 1]["labels"] == 1).sum()) == (100_000 - 390 * 256) ** 2
    assert image.pixels == labels.pixels == 256 * 256


def test_the_smallest_sources_are_kept_in_memory() -> None:
    def lazy(size: int) -> Example:
        image = Lazy((2, size, size), lambda box: np.full((2, *_shape(box)), size, np.uint16))
        labels = Lazy((size, size), lambda box: np.zeros(_shape(box), np.uint8))
        return Example(str(size), image, labels, (0.0, 0.0), (1.0, 1.0))

    examples = [lazy(20), lazy(10), lazy(30)]  # images of 1600, 400 and 3600 bytes, labels of 400, 100 and 900
    held = cached(examples, 1800)
    assert [type(example.image) for example in held] == [Lazy, InMemory, Lazy]
    assert [type(example.labels) for example in held] == [InMemory, InMemory, InMemory]
    image = held[1].image.read((slice(0, 10), slice(2, 4)))
    assert image.dtype == np.uint16
    assert image.shape == (2, 10, 2)
    assert (image == 10).all()
    assert cached(examples, 0) == examples


def test_a_window_of_other_axes_is_refused() -> None:
    message = r"ct has 3 axes \(8, 8, 8\); data.window \[4, 4\] has 2"
    example = _random((8, 8, 8), "ct")
    with pytest.raises(ModelError, match=message):
        _windows([example], _settings((4, 4)))
    with pytest.raises(ModelError, match=message):
        GridWindows([example], (4, 4))
