"""One Zarr v3 group a run: the label map, what else was asked for, and a record of what is done.

`labels` (*S), on request `probability` (K, *S) and `uncertainty` (*S), and `record` (blocks, bytes): a row a block,
written last, with the digest of everything its answer depends on. A block is pending while its digest differs; that is
the whole of resuming.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tiling.address import Address, address_of
from tiling.answer import Answer
from tiling.area import Area
from tiling.box import Box
from tiling.classes import ClassTable
from tiling.description import LAYOUT, is_ours, raw_attributes, read_attributes, seal
from tiling.errors import InputError
from tiling.grid import Axis, Grid
from tiling.layout import make_arrays
from tiling.lease import lease
from tiling.place import place_of, read_all
from tiling.predict import Predict
from tiling.record import STEPS, make_row, read_rows, row_type
from tiling.sources import Source
from tiling.sources.fingerprint import same, undecided
from tiling.space import Space

# Goes up when the same input, model and settings would give another answer.
ENGINE = 3


@dataclass(frozen=True, slots=True)
class Store:
    """A run on disk or in object storage. Small and picklable: its path, and what the group's attributes say."""

    path: str
    uri: str
    space: Space
    area: Area
    grid: Grid
    classes: ClassTable
    outputs: tuple[str, ...]
    identity: str

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the arrays over the image."""
        return ("labels", *self.outputs)

    @property
    def out_space(self) -> Space:
        """The placement of the label map: the area's part of the image."""
        return self.space.crop(self.area.box)

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the group's arrays."""
        # What the arrays are like follows from these.
        return place_of(address_of(self.path)).array(name, f"{self.identity} {self.grid}")

    def is_made_from(self, name: str, word: str) -> bool:
        """Whether the run's `source` has this fingerprint, or its `model` this digest."""
        return _agrees(name, json.loads(self.identity)[name], word)

    def digest(self, block: Box) -> bytes:
        """What the answer of a block depends on, as 32 bytes."""
        return hashlib.sha256(f"{self.identity} {block}".encode()).digest()

    def is_there(self) -> bool:
        """Return whether the store on disk is still this run's."""
        attributes = raw_attributes(address_of(self.path))
        return attributes is not None and _identity(attributes) == self.identity

    def check(self) -> None:
        """Looks whether the store on disk is still this one: a worker may outlive its run, and meet the next one's.

        Raises:
            InputError: where it is not.
        """
        if not self.is_there():
            raise InputError(f"{self.path} was deleted or replaced while this run was writing it; run again")

    def write(self, number: int, answer: Answer) -> None:
        """Stores a block's answer. Nobody else writes its chunks, so a second time does no harm.

        Raises:
            InputError: where another run has replaced the store since it was opened.
        """
        self.check()
        block = self.grid.block_box(number)
        here = block.relative(self.area.box.start).slices
        self.array("labels")[here] = answer.labels
        if answer.probability is not None:
            self.array("probability")[(slice(None), *here)] = answer.probability
        if answer.uncertainty is not None:
            self.array("uncertainty")[here] = answer.uncertainty

    def record(self, number: int, counts: Sequence[int], seconds: Sequence[float]) -> None:
        """Marks a block as done.

        Args:
            counts: (K + 3): pixels of each class, without an answer, and not finite; tiles predicted.
            seconds: (7): spent in each of `STEPS`.
        """
        digest = self.digest(self.grid.block_box(number))
        row = make_row(self._row, digest, counts, self.checksums(number), seconds)
        self.array("record")[number] = np.frombuffer(row, np.uint8)

    def checksums(self, number: int, names: Sequence[str] | None = None) -> list[int]:
        """(names): CRC-32 of the files that hold a block in some maps, in all by default.

        Files and not values: a tenth of the bytes, and nothing to decode. A file that is not there counts as empty,
        for Zarr leaves out chunks that hold only the fill value.
        """
        sums = []
        for name in self.maps if names is None else names:
            crc = 0
            for content in read_all(self.files(name, number)):
                content = content or b""
                # The length too: the end of one file must not pass for the beginning of the next.
                crc = zlib.crc32(content, zlib.crc32(len(content).to_bytes(8, "little"), crc))
            sums.append(crc)
        return sums

    def files(self, name: str, number: int) -> Iterator[Address]:
        """The chunks or shards that hold a block in one of the maps; none of them is another block's."""
        array = self.array(name)
        here = self.grid.block_box(number).relative(self.area.box.start)
        start, stop = (0,) * (array.ndim - len(here.shape)) + here.start, array.shape[: -len(here.shape)] + here.stop
        unit = array.shards or array.chunks
        cells = (range(a // u, -(-b // u)) for a, b, u in zip(start, stop, unit, strict=True))
        folder = address_of(self.path) / name
        for cell in product(*cells):
            yield folder / array.metadata.encode_chunk_key(cell)

    def forget(self, numbers: Iterable[int]) -> None:
        """Makes blocks pending again, and removes what is left of them."""
        for number in numbers:
            # Zarr reads a chunk before it writes part of it, and cannot read a damaged one.
            for file in self._all_files(number):
                place_of(file).clear()

    def is_blocked(self, number: int) -> bool:
        """Whether something else lies where files of a block belong."""
        return any(place_of(file).is_blocked() for file in self._all_files(number))

    def rows(self, numbers: Sequence[int] | None = None) -> NDArray[np.void]:
        """What is kept of some blocks, all by default, as `row_type` has it; zeros where there is nothing."""
        numbers = range(self.grid.n_blocks) if numbers is None else numbers
        return read_rows(self._row, list(read_all(map(self._row_file, numbers))))

    def accepts(self, number: int, row: np.void) -> bool:
        """Whether a row is that of a block's answer in this run."""
        return bool(row["digest"].tobytes() == self.digest(self.grid.block_box(number)))

    def pending(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Those of some blocks that are not done, of all by default."""
        numbers = range(self.grid.n_blocks) if numbers is None else numbers
        return [n for n, row in zip(numbers, self.rows(numbers), strict=True) if not self.accepts(n, row)]

    def counts(self) -> NDArray[np.int64]:
        """(blocks, K + 3): pixels of each class, without an answer, and not finite; tiles predicted."""
        return self.rows()["counts"]

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each step, over all blocks and workers."""
        return dict(zip(STEPS, self.rows()["seconds"].sum(axis=0).tolist(), strict=True))

    def read(self, box: Box, name: str = "labels") -> NDArray[Any]:
        """Part of an array, in indices of the area.

        Raises:
            InputError: where it is damaged.
        """
        index = (slice(None), *box.slices) if name == "probability" else box.slices
        try:
            return np.asarray(self.array(name)[index])
        except OSError:
            raise
        except Exception as error:  # each codec has its own
            place = f"{self.path} cannot be read at {box.start}..{box.stop} of {name}"
            raise InputError(f"{place}: {error}; run lmseg segment again to compute it anew") from error

    @property
    def _row(self) -> np.dtype[np.void]:
        return row_type(len(self.classes), len(self.maps))

    def _all_files(self, number: int) -> Iterator[Address]:
        """The row first: without it the rest is no answer."""
        yield self._row_file(number)
        for name in self.maps:
            yield from self.files(name, number)

    def _row_file(self, number: int) -> Address:
        return address_of(self.path) / "record" / "c" / str(number) / "0"


def create(
    path: str | Address,
    source: Source,
    grid: Grid,
    predict: Predict,
    *,
    area: Area | None = None,
    outputs: tuple[str, ...] = (),
) -> Store:
    """The store of a run: a new one, or the one of an earlier run of the same thing, with that run's blocks.

    Args:
        path: a folder or an s3:// address, by custom ending in .zarr.
        area: what is wanted; all of the image by default. Its box is the grid's area.
        outputs: `probability` and `uncertainty` on request.

    Raises:
        InputError: where the path holds another run, something else, or cannot be written; where a run is under way.
        ConnectionError: where object storage does not answer.
    """
    path = address_of(path)
    with lease(path):
        return _create(path, source, grid, predict, area, outputs)


def _create(
    path: Address, source: Source, grid: Grid, predict: Predict, area: Area | None, outputs: tuple[str, ...]
) -> Store:
    area = area or Area(grid.area)
    assert area.box == grid.area, "the grid's blocks must part the area"
    words: dict[str, Any] = {
        "source": source.fingerprint,
        "model": predict.digest,
        "tiles": [[a.extent, a.tile, a.step] for a in grid.axes],
        "area": area.to_json(),
        "outputs": sorted(outputs),
        "engine": ENGINE,
    }
    # The fingerprint as it is: two of one source may differ in what is known of its files.
    made_from = {name: word if name == "source" else _digest(word) for name, word in words.items()}
    place = place_of(path)
    if not place.is_empty():
        if not is_ours(path):
            raise InputError(f"{path} exists and is no store of a run; move it or choose another output folder")
        store = open_store(path)
        before = json.loads(store.identity)
        other = [name for name, word in words.items() if not _agrees(name, before.get(name, ""), word)]
        if other == ["source"] and undecided(before["source"], source.fingerprint):
            raise InputError(
                f"{path} was made with another source, or with {source.uri} in another place or before it was touched: "
                "too large to tell; put it back, pass --check content where the run began so, or --fresh to replace it"
            )
        if other:
            raise InputError(
                f"{path} was made with another {' and '.join(other)}; "
                "pass --fresh to replace it, or choose another output folder"
            )
        return store
    table = ClassTable.of(predict.classes)

    def fill(part: Path) -> None:
        make_arrays(part, source.space, grid, table, outputs)
        zarr.open_group(part, mode="r+").attrs["lmseg"] = {
            "layout": LAYOUT,
            "uri": source.uri,
            "space": source.space.to_json(),
            "area": area.to_json(),
            "grid": [[a.extent, a.tile, a.step, a.block, a.start, a.stop] for a in grid.axes],
            "classes": table.to_json(),
            "outputs": list(outputs),
            "made_from": made_from,
        }
        seal(part)

    try:
        place.make(fill)
    except ConnectionError:
        raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; free some space or choose another output folder"
        ) from error
    return open_store(path)


def open_store(path: str | Address) -> Store:
    """The store of an earlier run.

    Raises:
        DamageError: where what it says of itself is not what was written.
        InputError: where there is none, or one of another version.
        ConnectionError: where object storage does not answer.
    """
    path = address_of(path)
    attributes = read_attributes(path)
    return Store(
        str(path),
        attributes["uri"],
        Space.from_json(attributes["space"]),
        Area.from_json(attributes["area"]),
        Grid(tuple(Axis(*a) for a in attributes["grid"])),
        ClassTable.from_json(attributes["classes"]),
        tuple(attributes["outputs"]),
        _identity(attributes),
    )


def remove(path: str | Address) -> None:
    """Deletes a store, and only a store; nothing happens where there is none.

    Raises:
        InputError: where the folder holds something else, or a run is under way on it.
    """
    path = address_of(path)
    if isinstance(path, Path) and not path.exists():
        return
    place = place_of(path)
    with lease(path):
        if not is_ours(path) and not place.is_empty():
            raise InputError(f"{path} is no store of a run and is left alone; move it or choose another output folder")
        place.remove()


def _agrees(name: str, before: str, word: Any) -> bool:
    return same(before, word) if name == "source" else before == _digest(word)


def _digest(word: Any) -> str:
    return hashlib.sha256(json.dumps(word).encode()).hexdigest()


def _identity(attributes: dict[str, Any]) -> str:
    return json.dumps(attributes.get("made_from"), sort_keys=True)
