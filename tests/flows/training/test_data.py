"""What training reads, against the files read whole by rasterio and nibabel."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
from nibabel.orientations import axcodes2ornt, ornt_transform

from lmseg_core.training import census
from lmseg_core.training.windows import Example, RandomWindows
from tests.flows.training.small import NAMES, bright, opened, pixels, write_config, write_pair, write_raster
from tiling import Box, InputError
from tiling.predict import Oriented
from tiling.sources.raster import RasterSource

WHOLE = (slice(0, 40), slice(0, 40))


def test_a_raster_and_its_labels_are_what_rasterio_reads(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (example,) = opened(tmp_path, "a.tif", "a_labels.tif")
    with rasterio.open(tmp_path / "a.tif") as image, rasterio.open(tmp_path / "a_labels.tif") as labels:
        np.testing.assert_array_equal(example.image.read(WHOLE), image.read())
        np.testing.assert_array_equal(example.labels.read((slice(3, 9), slice(30, 40))), labels.read(1)[3:9, 30:40])
        np.testing.assert_allclose(example.mean, image.read().mean((1, 2)))
        np.testing.assert_allclose(example.std, image.read().std((1, 2)))
    assert (example.image.shape, example.labels.shape, example.sources) == ((2, 40, 40), (40, 40), ())


def test_sources_of_one_place_become_bands_in_their_order(tmp_path: Path) -> None:
    write_pair(tmp_path)
    heights = np.random.default_rng(1).normal(300, 50, (40, 40)).astype(np.float32)
    write_raster(tmp_path / "dem.tif", heights)
    (example,) = opened(tmp_path, ["a.tif", "dem.tif"], "a_labels.tif", bands=[[2], [1]])
    np.testing.assert_array_equal(example.image.read(WHOLE), np.stack([pixels()[1].astype(np.float32), heights]))
    assert example.sources == (1, 1)
    (example,) = opened(tmp_path, ["a.tif", "dem.tif"], "a_labels.tif")
    assert example.sources == (2, 1)
    (example,) = opened(tmp_path, "a.tif", "a_labels.tif", bands=[2, 1])
    np.testing.assert_array_equal(example.image.read(WHOLE), pixels()[::-1])


def test_values_become_classes_and_others_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", pixels())
    raw = np.random.default_rng(0).choice([10, 20, 99, 255], (40, 40)).astype(np.uint8)
    write_raster(tmp_path / "l.tif", raw)
    (example,) = opened(tmp_path, "a.tif", "l.tif", values={10: 0, 20: 1}, ignore=[99])
    expected = np.select([raw == 10, raw == 20], [0, 1], 255)
    np.testing.assert_array_equal(example.labels.read(WHOLE), expected)
    (example,) = opened(tmp_path, "a.tif", "l.tif", values={10: 0, 20: 1})
    with pytest.raises(InputError, match=r"l\.tif has the label 99, which data\.values does not list"):
        example.labels.read(WHOLE)


def test_missing_pixels_are_not_learned_from(tmp_path: Path) -> None:
    image = pixels().astype(np.float32)
    image[:, :5] = -1
    image[0, 7, 7] = math.nan
    write_raster(tmp_path / "a.tif", image, nodata=-1)
    labels = bright(pixels()).astype(np.int16)
    labels[20:22] = -9
    write_raster(tmp_path / "l.tif", labels, nodata=-9)
    (example,) = opened(tmp_path, "a.tif", "l.tif")
    missing = np.isnan(example.image.read(WHOLE))
    assert missing[:, :5].all()
    assert missing[0, 7, 7]
    assert missing.sum() <= 2 * 5 * 40 + 2
    read = example.labels.read(WHOLE)
    assert (read[20:22] == 255).all()
    np.testing.assert_array_equal(np.delete(read, (20, 21), 0), np.delete(labels, (20, 21), 0))
    np.testing.assert_allclose(example.mean[1], image[1, 5:][~missing[1, 5:]].mean(), rtol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_a_volume_is_read_as_nibabel_turns_it_and_as_it_is_predicted(tmp_path: Path, codes: str) -> None:
    rng = np.random.default_rng(0)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    for name, values in (("t1", rng.integers(0, 999, (7, 9, 11))), ("t1_seg", rng.integers(0, 2, (7, 9, 11)))):
        straight = nibabel.Nifti1Image(values.astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
        nibabel.save(straight.as_reoriented(turn), tmp_path / f"{name}.nii.gz")
    (example,) = opened(tmp_path, "t1.nii.gz", "t1_seg.nii.gz", window=[4, 4, 4])
    assert example.labels.shape == (11, 9, 7)
    box = (slice(2, 11), slice(0, 5), slice(1, 6))
    for pixels_of, name in ((example.image.read(box)[0], "t1"), (example.labels.read(box), "t1_seg")):
        canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / f"{name}.nii.gz"))
        np.testing.assert_array_equal(pixels_of, np.asarray(canonical.dataobj).T[box])

    class Echo:
        """A model that gives back what it sees."""

        channels, ndim, tile, batch, classes, digest = 1, 3, (11, 9, 7), 1, (), ""

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def place(self, values: Any, valid: Any) -> Any:
            return values

        def __call__(self, batch: Any) -> Any:
            self.seen.append(batch)
            return batch

    source = example.image.sources[0]  # type: ignore[attr-defined]  # images are ImagePixels here
    model = Echo()
    raw = source.read(Box.whole(source.space.shape)).values
    Oriented(model, source.space.affine)(raw[None])
    everything = tuple(slice(0, n) for n in example.labels.shape)
    np.testing.assert_array_equal(model.seen[0][0], example.image.read(everything))


def _crop(path: Path, **profile: Any) -> None:
    write_raster(path, np.zeros((30, 40), np.uint8), **profile)


BAD: dict[str, tuple[Callable[[Path], list[Example]], str]] = {
    "another size": (
        lambda t: (_crop(t / "l.tif"), opened(t, "a.tif", "l.tif"))[1],
        r"a\.tif has shape \(40, 40\) and .*l\.tif \(30, 40\); crop",
    ),
    "another CRS": (
        lambda t: (
            write_raster(t / "l.tif", bright(pixels()), crs="EPSG:32619"),
            opened(t, "a.tif", "l.tif"),
        )[1],
        "EPSG:32618.*EPSG:32619.*warp",
    ),
    "another place": (
        lambda t: (
            write_raster(t / "l.tif", bright(pixels()), transform=rasterio.Affine(10, 0, 441735, 0, -10, 4176460)),
            opened(t, "a.tif", "l.tif"),
        )[1],
        r"0\.5 pixels apart; warp",
    ),
    "another source elsewhere": (
        lambda t: (
            write_raster(t / "r.tif", pixels(), transform=rasterio.Affine(20, 0, 441730, 0, -20, 4176460)),
            opened(t, ["a.tif", "r.tif"], "a_labels.tif"),
        )[1],
        "r.tif lie at different places",
    ),
    "labels of three bands": (
        lambda t: (write_raster(t / "l.tif", pixels(bands=3)), opened(t, "a.tif", "l.tif"))[1],
        "3 bands; give a label map with one",
    ),
    "no such band": (lambda t: opened(t, "a.tif", "a_labels.tif", bands=[3]), r"a\.tif.*no band 3"),
    "fractions": (
        lambda t: (
            write_raster(t / "l.tif", np.full((40, 40), 0.5, np.float32)),
            opened(t, "a.tif", "l.tif")[0].labels.read(WHOLE),
        )[-1],
        "fractions",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=lambda name: name.replace(" ", "-"))
def test_what_does_not_belong_together_is_refused(case: str, tmp_path: Path) -> None:
    write_pair(tmp_path)
    action, words = BAD[case]
    with pytest.raises(InputError, match=words) as caught:
        action(tmp_path)
    assert "\n" not in str(caught.value)


def test_windows_of_a_large_raster_are_read_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics sample, the labels are counted in pieces, and a window costs its own pixels."""
    from lmseg_core.training.settings import read_settings

    side = 6000
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256, "sparse_ok": True}
    write_raster(tmp_path / "a.tif", np.zeros((side, side), np.uint8), **tiled)
    labels = np.zeros((side, side), np.uint8)
    labels[:100] = 1
    write_raster(tmp_path / "l.tif", labels, compress="deflate", **tiled)
    reads: list[tuple[str, int]] = []
    read = RasterSource.read

    def counting(self: RasterSource, box: Box) -> Any:
        reads.append((Path(self.uri).name, math.prod(box.shape)))
        return read(self, box)

    monkeypatch.setattr(RasterSource, "read", counting)
    found = opened(tmp_path, "a.tif", "l.tif")
    assert {name for name, _ in reads} == {"a.tif"}
    assert sum(count for _, count in reads) <= 64 * 512**2 < side**2 / 2
    counted = census.take(found, 2, NAMES)
    assert max(count for _, count in reads) <= 2048**2
    reads.clear()
    windows = RandomWindows(found, counted, read_settings(write_config(tmp_path)), 20)
    for index in range(20):
        windows[index]
    assert len(reads) == 40
    assert {count for _, count in reads} == {16 * 16}
