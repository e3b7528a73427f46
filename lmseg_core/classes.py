"""What a label value stands for."""

from typing import NamedTuple


class SegmentClass(NamedTuple):
    """One class: its label value, name, colour "#rrggbb" and, where there is one, its SNOMED CT code."""

    value: int
    name: str
    color: str
    code: str | None = None
