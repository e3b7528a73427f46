"""What the numbers in a label map mean."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tiling.errors import InputError


@dataclass(frozen=True, slots=True)
class Class:
    """One class: its value in the label map, name, colour `#rrggbb` and, where known, SNOMED CT code."""

    value: int
    name: str
    color: str
    code: str | None = None

    @property
    def rgb(self) -> tuple[int, int, int]:
        return int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16)


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes in the order of a network's score channels; drives every palette, sidecar and attribute.

    Raises:
        InputError: for repeated values, a value outside the label map's range, or a malformed colour.
    """

    classes: tuple[Class, ...]

    def __post_init__(self) -> None:
        values = [c.value for c in self.classes]
        if not values or len(set(values)) != len(values):
            raise InputError(f"class values {values} must be there, and each only once")
        if min(values) < 0 or max(values) > 65534:
            raise InputError(f"class values {values} must lie in 0..65534")
        for c in self.classes:
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", c.color):
                raise InputError(f"class {c.name!r} has colour {c.color!r}; write it as #rrggbb")

    @classmethod
    def of(cls, classes: Sequence[tuple[int, str, str, str | None]]) -> ClassTable:
        """From (value, name, colour, code) rows, as predictors give them."""
        return cls(tuple(Class(*row) for row in classes))

    @classmethod
    def numbered(cls, n: int) -> ClassTable:
        """Classes 0 to n - 1 with distinct colours, for models that name none."""
        hues = (colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.65, 0.9) for i in range(n))
        colors = ("#" + "".join(f"{round(255 * v):02x}" for v in rgb) for rgb in hues)
        return cls(tuple(Class(i, f"class {i}", color) for i, color in enumerate(colors)))

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[Class]:
        return iter(self.classes)

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(c.value for c in self.classes)

    @property
    def dtype(self) -> str:
        """uint8 while 255 stays free for nodata, else uint16."""
        return "uint8" if max(self.values) < 255 else "uint16"

    @property
    def nodata(self) -> int:
        """The label of pixels without an answer: 255, or 65535 in uint16."""
        return 255 if self.dtype == "uint8" else 65535

    def to_json(self) -> list[dict[str, Any]]:
        return [{"value": c.value, "name": c.name, "color": c.color, "code": c.code} for c in self.classes]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> ClassTable:
        return cls(tuple(Class(**row) for row in rows))
