"""Stores that are no longer what was written: every command ends with one line, and none takes them for data."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tiling
from flows.evaluation.labels import LabelMap
from tests.tiling.files import write_tiff, write_volume
from tests.tiling.predictors import Mixing
from tests.tiling.refusals import refused
from tests.tiling.runs import EVERYTHING, maps, run, same
from tiling import Grid, InputError
from tiling.damage import mend
from tiling.description import SUMS, seal
from tiling.store import Store, remove

from .conftest import Cli

GRIDS = {2: Grid.regular((96, 80), 16, 0.25, (32, 40)), 3: Grid.regular((20, 18, 22), 8, 0.25, (10, 9, 22))}
FAULTS = int(os.environ.get("LMSEG_FAULTS", "150"))


class Whole(NamedTuple):
    """A finished run, to be copied and harmed."""

    source: tiling.Source
    predict: Mixing
    store: Store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Whole]:
    folder = tmp_path_factory.mktemp("whole")
    values = np.random.default_rng(0).integers(0, 256, (2, 96, 80)).astype(np.uint8)
    values[:, :32, :40] = 0  # a block without data, which has no files
    files = {
        2: write_tiff(folder / "a.tif", values, nodata=0),
        3: write_volume(folder / "a.nii", np.random.default_rng(0).integers(0, 256, (22, 18, 20)).astype(np.uint8)),
    }
    made = {}
    for ndim, file in files.items():
        source, predict = tiling.open(str(file)), Mixing(1 + (ndim == 2), GRIDS[ndim].tile)
        name = f"run{ndim}.zarr"
        made[ndim] = Whole(source, predict, run(source, GRIDS[ndim], predict, folder, name=name, outputs=EVERYTHING))
    return made


# --- kinds of damage ---

Harm = Callable[[Path], None]


def _changed(file: Path, change: Callable[[bytearray], Any]) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


def _flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 16


def _cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


def _zero(content: bytearray) -> None:
    content[:] = bytes(len(content))


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _full_folder(file: Path) -> None:
    _folder(file)
    (file / "b").write_text("b")


def _link(file: Path) -> None:
    moved = file.replace(f"{file}.moved")
    file.symlink_to(moved)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


HARMS: dict[str, Harm] = {
    "deleted": Path.unlink,
    "emptied": lambda file: _changed(file, bytearray.clear),
    "cut": lambda file: _changed(file, _cut),
    "zeroed": lambda file: _changed(file, _zero),
    "flipped": lambda file: _changed(file, _flip),
    "longer": lambda file: _changed(file, lambda content: content.extend(b" ")),
    "a folder": _folder,
    "a full folder": _full_folder,
    "a link": _link,
    "a dangling link": lambda file: (file.unlink(), file.symlink_to("nowhere"))[0],
    "a pipe": _pipe,
}
DESCRIPTION = ("zarr.json", "labels/zarr.json", "probability/zarr.json", "record/zarr.json", SUMS)
# The last block's.
BLOCKS = {
    2: ("labels/c/2/1", "probability/c/0/2/1", "uncertainty/c/2/1", "record/c/5/0"),
    3: ("labels/c/1/1/0", "probability/c/2/1/1/0", "uncertainty/c/1/1/0", "record/c/3/0"),
}
SWAPS = {
    2: (("labels/c/1/1", "labels/c/2/1"), ("record/c/4/0", "record/c/5/0"), ("labels/c/1", "labels/c/2")),
    3: (("labels/c/0/1/0", "labels/c/1/1/0"), ("labels", "uncertainty"), ("record/c/1", "record/c/2")),
}
LOST = ("record", "labels", "probability", "labels/c", "record/c", "labels/c/1", "record/c/1")


def _set(*keys: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(attributes: dict[str, Any]) -> None:
        inner: Any = attributes
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return change


KEYS = ("layout", "uri", "space", "area", "grid", "classes", "outputs", "made_from")
EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"without {key}": (lambda attributes, key=key: attributes.pop(key)) for key in KEYS},
    **{f"{key} is null": _set(key, to=None) for key in KEYS},
    **{f"{key} is a number": _set(key, to=1e400) for key in KEYS},
    **{f"{key} is a list of itself": _set(key, to=[[[{}]]]) for key in KEYS},
    "ten million blocks and more": _set("grid", 0, to=[10**9, 8, 8, 1, 0, 10**9]),
    "a negative side": _set("space", "shape", 0, to=-96),
    "a huge side": _set("space", "shape", 0, to=10**400),
    "one axis": lambda attributes: attributes["grid"].pop(),
    "an affine of NaN": _set("space", "affine", 0, 0, to=float("nan")),
    "a short affine": lambda attributes: attributes["space"]["affine"].pop(),
    "another area": _set("area", "start", 0, to=3),
    "unknown outputs": _set("outputs", to=["labels", "../.."]),
    "an output twice": _set("outputs", to=["probability", "probability"]),
    "a class twice": lambda attributes: attributes["classes"].append(attributes["classes"][0]),
    "no classes": _set("classes", to=[]),
    "a colour of no use": _set("classes", 0, "color", to="red"),
    "a block of nothing": _set("grid", 0, 3, to=0),
}


def _edit(path: Path, change: Callable[[dict[str, Any]], Any], sealed: bool) -> None:
    root = json.loads((path / "zarr.json").read_text())
    change(root["attributes"]["lmseg"])
    (path / "zarr.json").write_text(json.dumps(root))
    if sealed:  # by somebody who knows how
        names = [line.split("  ")[1] for line in (path / SUMS).read_text().splitlines()[1:]]
        part = path.with_name("part")
        for name in names:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path / name, part / name)
        seal(part)
        shutil.copy(part / SUMS, path / SUMS)
        shutil.rmtree(part)


def _swap(path: Path, one: str, other: str) -> None:
    (path / one).replace(path / "between")
    (path / other).replace(path / one)
    (path / "between").replace(path / other)


def _file_for(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


def kinds(ndim: int) -> Iterator[tuple[str, Harm]]:
    """All kinds of damage of a store."""
    coordinates = ("x/zarr.json", "x/c/0", "y/c/0") if ndim == 2 else ()
    for name in (*DESCRIPTION, *coordinates, *BLOCKS[ndim]):
        for how, harm in HARMS.items():
            if ndim == 3 and name in DESCRIPTION and how not in ("deleted", "flipped", "a folder"):
                continue  # as in 2D
            yield f"{name} {how}", lambda path, harm=harm, name=name: harm(path / name)
    for one, other in SWAPS[ndim]:
        yield f"{one} and {other} swapped", lambda path, one=one, other=other: _swap(path, one, other)
    for name in LOST:
        yield f"{name} lost", lambda path, name=name: shutil.rmtree(path / name)
        yield f"{name} a file", lambda path, name=name: _file_for(path / name)
    if ndim == 2:
        yield "a block without data has a file", lambda path: shutil.copy(path / "labels/c/1/0", path / "labels/c/0/0")
        for text in ("", "{", "[]", "null", "[" * 100_000, '{"attributes": 1}', "1" * 5000, "\0\xff"):
            yield f"root {text[:20]!r}", lambda path, text=text: (path / "zarr.json").write_text(text) and None
        for how, change in EDITS.items():
            if how.startswith("without"):
                yield how, lambda path, change=change: _edit(path, change, sealed=False)
            yield f"{how}, sealed", lambda path, change=change: _edit(path, change, sealed=True)


KINDS = [(ndim, name, harm) for ndim in GRIDS for name, harm in kinds(ndim)]
COMMON = [(ndim, name, harm) for ndim, name, harm in KINDS if name.endswith((" flipped", "/0 deleted", " a pipe"))]


@pytest.mark.parametrize(("ndim", "kind", "harm"), KINDS, ids=[f"{ndim}D {kind}" for ndim, kind, _ in KINDS])
def test_damage_is_refused_or_computed_again_and_never_read(
    whole: dict[int, Whole], tmp_path: Path, ndim: int, kind: str, harm: Harm
) -> None:
    good = whole[ndim]
    source, predict, _ = good
    path = tmp_path / "a.zarr"
    shutil.copytree(good.store.path, path)
    harm(path)
    out = tmp_path / ("a.tif" if ndim == 2 else "a.nii")
    before = sorted(tmp_path.iterdir())

    assert not _verified(path, source)
    what = _map_of(kind)
    with refused(path, "segment"):
        tiling.export(tiling.open_store(path), out, what)
    if what != "uncertainty":  # which no score reads
        with refused(path, "segment"):
            LabelMap.open(str(path))
    assert sorted(tmp_path.iterdir()) == before

    refusal = None
    try:
        store = tiling.create(path, source, GRIDS[ndim], predict, outputs=EVERYTHING)
        mend(store)
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert "--fresh" in refusal
        assert "\n" not in refusal
        remove(path)
        store = tiling.create(path, source, GRIDS[ndim], predict, outputs=EVERYTHING)
        assert store.pending() == list(range(GRIDS[ndim].n_blocks))
    else:
        tiling.segment(source, predict, store)
        assert same(maps(store), maps(good.store))
        assert _verified(path, source)


@pytest.mark.parametrize(("ndim", "kind", "harm"), COMMON, ids=[f"{ndim}D {kind}" for ndim, kind, _ in COMMON])
def test_every_command_says_what_is_damaged_in_one_line(
    whole: dict[int, Whole], cli: Cli, tmp_path: Path, ndim: int, kind: str, harm: Harm
) -> None:
    path, out = tmp_path / "a.zarr", tmp_path / ("a.tif" if ndim == 2 else "a.nii")
    shutil.copytree(whole[ndim].store.path, path)
    harm(path)
    before = sorted(tmp_path.iterdir())
    code, said, err = cli("verify", path)
    assert code == 1, err
    assert "FAIL" in said
    commands: list[tuple[object, ...]] = [("export", path, out, "--what", _map_of(kind))]
    if _map_of(kind) != "uncertainty":
        commands.append(("evaluate", path, whole[ndim].store.path))
    for command in commands:
        code, said, err = cli(*command)
        assert (code, said) == (2, ""), command
        assert len(err.splitlines()) == 1
        assert str(path) in err
        assert "lmseg segment" in err
    assert sorted(tmp_path.iterdir()) == before


def _map_of(kind: str) -> str:
    """The map to export where a kind of damage is to show."""
    return kind.split("/")[0] if kind.startswith(EVERYTHING) else "labels"


# --- faults at random ---


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_fault_in_any_range_of_bytes_is_found_and_never_exported(
    whole: dict[int, Whole], tmp_path: Path, ndim: int
) -> None:
    good = whole[ndim]
    source = good.source
    path, out = tmp_path / "a.zarr", tmp_path / ("a.tif" if ndim == 2 else "a.nii")
    shutil.copytree(good.store.path, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    rng = np.random.default_rng(ndim)
    for _ in range(FAULTS):
        file = files[rng.integers(len(files))]
        content = np.frombuffer(file.read_bytes(), np.uint8)
        start = int(rng.integers(len(content)))
        stop = start + int(rng.integers(1, 65))
        faulty = content.copy()
        faulty[start:stop] ^= rng.integers(1, 256, len(faulty[start:stop]), dtype=np.uint8)
        file.write_bytes(faulty.tobytes())
        where = f"{file.relative_to(path)} {start}:{stop}"
        assert not _verified(path, source), where
        name = file.relative_to(path).parts[0]
        with pytest.raises(InputError):
            tiling.export(tiling.open_store(path), out, name if name in EVERYTHING else "labels")
        if name != "uncertainty":
            with pytest.raises(InputError):
                LabelMap.open(str(path))
        assert sorted(tmp_path.iterdir()) == [path], where
        file.write_bytes(content.tobytes())
    assert _verified(path, source)


def _verified(path: Path, source: tiling.Source) -> bool:
    try:
        return all(check.passed for check in tiling.verify(tiling.open_store(path), source))
    except InputError:
        return False
