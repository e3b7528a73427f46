"""Images and their labels, opened for training: what the settings name becomes examples that are read lazily."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import tiling
from flows.polygons import PolygonLabels, is_vector
from tiling import Box, InputError, Source
from tiling.intensity import statistics
from tiling.predict import ras_order

if TYPE_CHECKING:
    from lmseg_core.training.settings import DataSettings, Pairs
    from lmseg_core.training.windows import Example

IGNORE = 255
# Endings by which people tell a label map from its image.
_MARK = re.compile(r"[_-](labels?|seg|mask|gt)$")
_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".jp2", ".vrt", ".nii", ".nii.gz")


@dataclass(frozen=True)
class ImagePixels:
    """The channels of one or more sources on one grid; NaN where a source holds no data.

    shape: (C, *S), volumes turned to RAS+ as the predictor turns its tiles.
    """

    sources: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        space = self.sources[0].space
        return sum(source.channels for source in self.sources), *_turned_shape(space.shape, space.affine)

    def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a box, (C, *box)."""
        return np.concatenate([_read(source, box) for source in self.sources])


@dataclass(frozen=True)
class LabelPixels:
    """A label map whose values are classes, 255 where there is nothing to learn.

    lookup: (value in the file, class) pairs; every other value stays what it is.
    """

    source: Source
    lookup: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return _turned_shape(self.source.space.shape, self.source.space.affine)

    def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """The classes of a box, int64 where a value is beyond a byte, so that it can be refused by name."""
        values = _read(self.source, box)[0]
        if values.dtype.kind == "f":
            missing = np.isnan(values)
            rounded = np.where(missing, IGNORE, np.rint(values))
            if not np.array_equal(rounded[~missing], values[~missing]):
                raise InputError(f"{self.source.uri} holds fractions, not labels; give a label map")
            values = rounded
        labels = values.astype(np.int64)
        mapped: NDArray[Any] = labels.copy()
        for value, to in self.lookup:
            mapped[labels == value] = to
        fits = int(mapped.min(initial=0)) >= 0 and int(mapped.max(initial=0)) < 256
        return mapped.astype(np.uint8) if fits else mapped


def examples(data: DataSettings, pairs: Sequence[Pairs], names: Sequence[str]) -> list[Example]:
    """Every image with its labels, opened and compared.

    Args:
        names: of the classes, by which polygons are told apart.

    Raises:
        InputError: where a file is missing or has no partner, or image and label differ in size, CRS or affine.
    """
    return [example for pair in pairs for example in _of_pair(data, pair, names)]


def _of_pair(data: DataSettings, pair: Pairs, names: Sequence[str]) -> list[Example]:
    images = [pair.image] if isinstance(pair.image, str) else pair.image
    columns = [_files(data.root, name) for name in images]
    first = columns[0]
    if is_vector(pair.label):
        label = str(_path(data.root, pair.label))
        return [_example(data, pair, [str(f) for f in row], label, names) for row in _rows(images, columns)]
    labels = _files(data.root, pair.label)
    if len(first) == len(labels) == 1:
        return [_example(data, pair, [str(column[0]) for column in columns], str(labels[0]), names)]
    return [
        _example(data, pair, [str(f) for f in row[:-1]], str(row[-1]), names)
        for row in _rows([*images, pair.label], [*columns, labels])
    ]


def _example(data: DataSettings, pair: Pairs, images: list[str], label: str, names: Sequence[str]) -> Example:
    from lmseg_core.training.windows import Example

    bands = None if pair.bands is None else tuple(pair.bands)
    sources = tuple(tiling.open(image, bands=bands) for image in images)
    space = sources[0].space
    for source in sources[1:]:
        _check_same_place(sources[0], source)
    labels: LabelPixels | PolygonLabels
    if is_vector(label):
        labels = PolygonLabels.open(label, space, pair.attribute, tuple(names))
    else:
        truth = tiling.open(label)
        _check_same_place(sources[0], truth)
        if truth.channels != 1:
            raise InputError(f"{label} has {truth.channels} bands; give a label map with one")
        labels = LabelPixels(truth, _lookup(data))
    means, stds = zip(*(statistics(source) for source in sources), strict=True)
    return Example(
        name=images[0],
        image=ImagePixels(sources),
        labels=labels,
        mean=sum(means, ()),
        std=sum(stds, ()),
        sources=tuple(source.channels for source in sources) if len(sources) > 1 else (),
    )


def _check_same_place(image: Source, other: Source) -> None:
    mine, theirs = image.space, other.space
    if mine.shape != theirs.shape:
        raise InputError(f"{image.uri} has shape {mine.shape} and {other.uri} {theirs.shape}; crop one to the other")
    if mine.crs and theirs.crs and not _same_crs(mine.crs, theirs.crs):
        raise InputError(f"{image.uri} and {other.uri} are in different CRS; warp one onto the other")
    if not np.allclose(mine.affine, theirs.affine, rtol=1e-6, atol=1e-6 * min(mine.spacing)):
        raise InputError(f"{image.uri} and {other.uri} lie at different places; warp one onto the other")


def _same_crs(a: str, b: str) -> bool:
    from rasterio.crs import CRS

    return bool(CRS.from_wkt(a) == CRS.from_wkt(b))


def _lookup(data: DataSettings) -> tuple[tuple[int, int], ...]:
    chosen = dict(data.values or {}) | dict.fromkeys(data.ignore, IGNORE)
    return tuple(sorted(chosen.items()))


def _rows(names: Sequence[str], columns: Sequence[list[Path]]) -> list[tuple[Path, ...]]:
    """Files of several folders that belong together, by name."""
    tables = [_by_case(name, files) for name, files in zip(names, columns, strict=True)]
    for name, table in zip(names[1:], tables[1:], strict=True):
        alone = sorted(tables[0].keys() ^ table.keys())
        if alone:
            where = names[0] if alone[0] in tables[0] else name
            raise InputError(f"{where}: {alone[0]} has no partner in {name if where == names[0] else names[0]}; add it")
    return [tuple(table[case] for table in tables) for case in sorted(tables[0])]


def _by_case(name: str, files: list[Path]) -> dict[str, Path]:
    table: dict[str, Path] = {}
    for file in files:
        case = _case(file)
        if case in table:
            raise InputError(f"{name} holds {table[case].name} and {file.name}, which are one case; move one away")
        table[case] = file
    return table


def _case(file: Path) -> str:
    stem = file.name.removesuffix(".gz")
    return _MARK.sub("", stem[: stem.rfind(".")] if "." in stem else stem)


def _files(root: Path, name: str) -> list[Path]:
    """The files that a name, folder or pattern stands for."""
    path = _path(root, name)
    if path.is_dir():
        found = sorted(f for f in path.iterdir() if f.name.lower().endswith(_ENDINGS) and not f.name.startswith("."))
        if not found:
            raise InputError(f"{path} holds no image ({', '.join(_ENDINGS)}); choose another folder")
        return found
    if glob.has_magic(name):
        found = sorted(Path(f) for f in glob.glob(str(path)))
        if not found:
            raise InputError(f"{path} matches no file; mend the pattern, or data.root")
        return found
    return [path]


def _path(root: Path, name: str) -> Path:
    return Path(name).expanduser() if Path(name).expanduser().is_absolute() else root.expanduser() / name


def _read(source: Source, box: tuple[slice, ...]) -> NDArray[Any]:
    """Pixels of a box of the turned image, (C, *box), NaN where there are none."""
    order, flips = _turn(source.space.ndim, source.space.affine)
    sides = _turned_shape(source.space.shape, source.space.affine)
    placed = [(sides[a] - s.stop, sides[a] - s.start) if a in flips else (s.start, s.stop) for a, s in enumerate(box)]
    start, stop = [0] * len(box), [0] * len(box)
    for (low, high), axis in zip(placed, order, strict=True):
        start[axis], stop[axis] = low, high
    pixels = source.read(Box(tuple(start), tuple(stop)))
    values = pixels.values
    if not pixels.valid.all():
        values = values.astype(np.float32)
        values[:, ~pixels.valid] = math.nan
    turned = values.transpose(0, *(a + 1 for a in order))
    return np.flip(turned, tuple(a + 1 for a in flips))


def _turned_shape(shape: tuple[int, ...], affine: tuple[tuple[float, ...], ...]) -> tuple[int, ...]:
    return tuple(shape[a] for a in _turn(len(shape), affine)[0])


def _turn(ndim: int, affine: tuple[tuple[float, ...], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Order of the axes and which then to flip; rasters stay as they are."""
    return ras_order(affine) if ndim == 3 else ((0, 1), ())
