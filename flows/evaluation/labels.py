"""Label maps to be compared: where they lie, what their values mean, and their pixels as bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tiling
from lmseg_core.surface import UNKNOWN
from tiling import Box, Class, ClassTable, InputError, Source, Space, Store
from tiling.damage import check_finished, unchanged


@dataclass(frozen=True)
class LabelMap:
    """One label map: a raster, a volume, or the store of a run.

    Attributes:
        name: as the user gave it.
        classes: what its values mean, where it says so.
        ledger: of a store, when it was opened and found whole.
    """

    name: str
    source: Source | Store
    classes: ClassTable | None
    ledger: bytes | None = None

    @classmethod
    def open(cls, name: str) -> LabelMap:
        """Opens it by its header.

        Raises:
            InputError: where it cannot be read, has several bands, or is a run that is not finished or damaged.
        """
        if is_store(name):
            store = tiling.open_store(name)
            # Probabilities calibrate it.
            ledger = check_finished(store, [n for n in store.maps if n != "uncertainty"])
            return cls(name, store, store.classes, ledger)
        source = tiling.open(name)
        if source.channels != 1:
            raise InputError(f"{name} has several bands; give a label map with one")
        return cls(name, source, _classes_of(Path(name)))

    @property
    def space(self) -> Space:
        return self.source.out_space if isinstance(self.source, Store) else self.source.space

    def unchanged(self) -> AbstractContextManager[None]:
        """Read it in the block; OutputError where it is a run that was written meanwhile."""
        if isinstance(self.source, Store) and self.ledger is not None:
            return unchanged(self.source, self.ledger)
        return nullcontext()

    def read(self, box: Box, ignore: int | None = None) -> NDArray[np.uint8]:
        """The labels of a box; 255 where there are none or they are `ignore`.

        Raises:
            InputError: where it holds fractions, or values that are not 0 to 254.
        """
        if isinstance(self.source, Store):
            values = self.source.read(box)
            missing = values == self.source.classes.nodata
        else:
            pixels = self.source.read(box)
            values, missing = pixels.values[0], ~pixels.valid
            if values.dtype.kind == "f" and np.any(values != np.rint(values)):
                raise InputError(f"{self.name} holds fractions, not labels; give a label map")
        missing = missing | (values == UNKNOWN)
        if ignore is not None:
            missing |= values == ignore
        wrong = ~missing & ((values < 0) | (values > UNKNOWN))
        if wrong.any():
            raise InputError(f"{self.name} holds the value {values[wrong][0]:g}; label maps hold 0 to 254: renumber it")
        return np.where(missing, np.uint8(UNKNOWN), values.astype(np.uint8))


def is_store(name: str) -> bool:
    """Whether a name is that of a run's store."""
    return name.rstrip("/").endswith(".zarr")


def _classes_of(path: Path) -> ClassTable | None:
    """Names from a raster's `.aux.xml` and colours from its palette, or both from a volume's ITK-SNAP `.label`."""
    volume = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    if volume != path.name:
        return _snap_classes(path.with_name(f"{volume}.label"))
    side = path.with_name(path.name + ".aux.xml")
    if not side.is_file():
        return None
    try:
        categories = ET.parse(side).iterfind("PAMRasterBand/CategoryNames/Category")
        names = {i: c.text for i, c in enumerate(categories) if c.text and i < UNKNOWN}
    except ET.ParseError as error:
        raise InputError(f"{side} is damaged: {error}; delete it or export the label map again") from error
    return numbered(names, _palette(path)) if names else None


def _palette(path: Path) -> dict[int, str]:
    import rasterio

    with rasterio.open(path) as image:
        try:
            palette = image.colormap(1)
        except ValueError:  # it has none
            return {}
    return {value: f"#{r:02x}{g:02x}{b:02x}" for value, (r, g, b, _) in palette.items()}


def _snap_classes(path: Path) -> ClassTable | None:
    """Rows of index, red, green, blue, opacity, visibility, mesh and a quoted name."""
    if not path.is_file():
        return None
    names, colors = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split(None, 7)
        if len(words) == 8 and all(w.isdigit() for w in words[:4]) and int(words[0]) < UNKNOWN:
            value, *rgb = map(int, words[:4])
            names[value] = words[7].strip().strip('"')
            colors[value] = "#" + "".join(f"{c:02x}" for c in rgb)
    return numbered(names, colors) if names else None


def numbered(names: dict[int, str], colors: dict[int, str] | None = None) -> ClassTable:
    """A table of some values, with colours of our own where none are given."""
    ours = ClassTable.numbered(max(names) + 1).classes
    return ClassTable(tuple(Class(v, name, (colors or {}).get(v, ours[v].color)) for v, name in sorted(names.items())))
