"""Whether the names of an image's bands are those that a model expects, in its order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tiling.errors import InputError

_NUMBERED = re.compile(r"(?<![a-z0-9])b(?:and)?[ _-]?0*(\d{1,2}a?)(?![a-z0-9])")
_ORDINAL = re.compile(r"(?:band|channel|layer)[ _-]?\d+")  # what GDAL and models call bands that nobody named
_COLOURS = ("red", "green", "blue", "nir", "swir1", "swir2", "coastal", "pan")


def band_name(text: str) -> str:
    """Return the name of a band in one spelling: `b4` for `B04`, `B4` and `SR_B4`; empty where it says nothing."""
    text = text.strip().lower()
    if _ORDINAL.fullmatch(text):
        return ""
    if number := _NUMBERED.search(text.replace("_", " ")):
        return f"b{number[1]}"
    return re.sub(r"[^a-z0-9]", "", text)


def matching_bands(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Return numbers, from 1, of the bands that a model wants; None where their names do not tell all of them."""
    own, theirs = [band_name(n) for n in names], [band_name(n) for n in wanted]
    if "" in theirs or len(set(theirs)) != len(theirs) or any(own.count(name) != 1 for name in theirs):
        return None
    return tuple(own.index(name) + 1 for name in theirs)


def check_names(names: Sequence[str], wanted: Sequence[str], every: Sequence[str], uri: str) -> str | None:
    """Return what is doubtful about the names of an image's bands, in one line; None where nothing is.

    Args:
        names: of the bands that are read, empty where the image gives none.
        wanted: of the model's bands, as many.
        every: of all bands of the image.

    Raises:
        InputError: where a band has the name of another of the model's bands, or the image has all of the model's bands
            and others were chosen.
    """
    own, theirs = [band_name(n) for n in names], [band_name(n) for n in wanted]
    differing = [
        (number, mine, other)
        for number, (mine, other) in enumerate(zip(own, theirs, strict=True))
        if mine and other and mine != other and (mine in theirs or _kind(mine) == _kind(other))
    ]
    if not differing:
        return None
    right = matching_bands(every, wanted)
    number = next((number for number, mine, _ in differing if mine in theirs), differing[0][0])
    first = f"{uri} has {names[number]} where the model expects {wanted[number]}"
    if right is not None:
        raise InputError(f"{first}; pass --bands {','.join(map(str, right))}")
    if own[number] in theirs and len(set(theirs)) == len(theirs):
        raise InputError(
            f"{first}; choose --bands in the order {', '.join(wanted)}, or mend the names if they are wrong"
        )
    return f"{first}; the labels are right only if both mean the same"


def _kind(name: str) -> str:
    """Return the vocabulary of a name: only within one do two names contradict each other."""
    if re.fullmatch(r"b\d+a?", name):
        return "number"
    return "colour" if name in _COLOURS else name
