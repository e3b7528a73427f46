"""Which files belong together: names, folders and patterns of the settings become rows of one case each."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from tiling import InputError

_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".jp2", ".vrt", ".nii", ".nii.gz")
# Endings by which people tell a label map from its image.
_MARK = re.compile(r"[_-](labels?|seg|mask|gt)$", re.IGNORECASE)
_WILD = re.compile(r"\*\*/?|\*|\?|\[!?[^\]]+\]")


def rows(root: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The files of every case, one a name and in their order.

    Single files are one case, whatever they are called. Files of folders and patterns belong together that have the
    same name without ending, `_seg`, `_mask`, `_gt` and `_labels`; or, where all are patterns, the same text in place
    of the wildcards: `*_t1.nii.gz` and `*_seg.nii.gz`.

    Raises:
        InputError: where nothing is found, or a file has no partner.
    """
    columns = [files(root, name) for name in names]
    if all(len(column) == 1 for column in columns):
        return [tuple(column[0] for column in columns)]
    cases = [[_case(file) for file in column] for column in columns]
    if any(sorted(column) != sorted(set(cases[0])) for column in cases) and all(map(glob.has_magic, names)):
        cases = [_in_place_of_wildcards(root, name, column) for name, column in zip(names, columns, strict=True)]
    tables = [_table(*column) for column in zip(names, columns, cases, strict=True)]
    for name, table in zip(names[1:], tables[1:], strict=True):
        alone = sorted(tables[0].keys() ^ table.keys())
        if alone:
            here, there = (names[0], name) if alone[0] in tables[0] else (name, names[0])
            raise InputError(f"{here}: {alone[0]} has no partner in {there}; add it, or move it away")
    return [tuple(table[case] for table in tables) for case in sorted(tables[0])]


def files(root: Path, name: str) -> list[str]:
    """The files that a name, folder or pattern stands for; addresses such as s3://... are taken as they are.

    Raises:
        InputError: where there are none.
    """
    if "://" in name or name.startswith("/vsi"):
        return [name]
    path = root.expanduser() / Path(name).expanduser()
    if path.is_dir():
        found = [str(f) for f in path.iterdir() if f.name.lower().endswith(_ENDINGS) and not f.name.startswith(".")]
        if not found:
            raise InputError(f"{path} holds no image ({', '.join(_ENDINGS)}); choose another folder")
        return sorted(found)
    if path.exists():
        return [str(path)]
    if glob.has_magic(name):
        # The root may hold brackets that are no pattern.
        matched = glob.glob(str(Path(name).expanduser()), root_dir=root.expanduser(), recursive=True)
        found = [str(root.expanduser() / match) for match in matched]
        if not found:
            raise InputError(f"{path} matches no file; mend the pattern, or data.root")
        return sorted(found)
    raise InputError(f"{path} does not exist; mend the name, or data.root")


def _table(name: str, column: Sequence[str], cases: Sequence[str]) -> dict[str, str]:
    table: dict[str, str] = {}
    for file, case in zip(column, cases, strict=True):
        if case in table:
            raise InputError(f"{name} holds {table[case]} and {file}, which are one case; move one away")
        table[case] = file
    return table


def _case(file: str) -> str:
    stem = Path(file).name.removesuffix(".gz")
    return _MARK.sub("", stem[: stem.rfind(".")] if "." in stem else stem)


def _in_place_of_wildcards(root: Path, name: str, column: Sequence[str]) -> list[str]:
    """What stands in each file in place of the wildcards of a pattern."""
    whole = str(root.expanduser() / Path(name).expanduser())
    start = len(whole) - len(str(Path(name).expanduser()))
    parts = [re.escape(part) for part in _WILD.split(whole[start:])]
    groups = [{"*": "([^/]*)", "?": "([^/])"}.get(wild, "(.*)") for wild in _WILD.findall(whole[start:])]
    pattern = "".join(a + b for a, b in zip(parts, [*groups, ""], strict=True))
    cases = []
    for file in column:
        match = re.fullmatch(pattern, file[start:])
        cases.append(" ".join(match.groups()) if match else file)
    return cases
