"""Part of lmseg: geometry, reading, stitching, storing and exporting of images larger than memory.

Knows nothing of networks. Names load where they are first used: looking at an image's header needs no Zarr.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiling.area import Area, area_of_bounds, area_of_box, area_of_geojson
    from tiling.box import Box
    from tiling.budget import Plan, plan
    from tiling.checks import Check, verify
    from tiling.classes import Class, ClassTable
    from tiling.engine import run_blocks, segment
    from tiling.errors import BlockError, InputError, OutputError
    from tiling.formats import export
    from tiling.grid import Axis, Grid
    from tiling.intensity import Statistics, statistics
    from tiling.predict import Oriented, Predict
    from tiling.seams import Interval, Place, Seam, SeamFigures, compare_place, sample_places, seam_figures
    from tiling.sources import Part, Pixels, Source, open
    from tiling.sources.array import ArraySource
    from tiling.space import Space
    from tiling.store import Store, create, open_store
    from tiling.strip import BlockReport

_MODULES = {
    "area": ("Area", "area_of_bounds", "area_of_box", "area_of_geojson"),
    "box": ("Box",),
    "budget": ("Plan", "plan"),
    "checks": ("Check", "verify"),
    "classes": ("Class", "ClassTable"),
    "engine": ("run_blocks", "segment"),
    "errors": ("BlockError", "InputError", "OutputError"),
    "formats": ("export",),
    "grid": ("Axis", "Grid"),
    "intensity": ("Statistics", "statistics"),
    "predict": ("Oriented", "Predict"),
    "seams": ("Interval", "Place", "Seam", "SeamFigures", "compare_place", "sample_places", "seam_figures"),
    "sources": ("Part", "Pixels", "Source", "open"),
    "sources.array": ("ArraySource",),
    "space": ("Space",),
    "store": ("Store", "create", "open_store"),
    "strip": ("BlockReport",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Area",
    "ArraySource",
    "Axis",
    "BlockError",
    "BlockReport",
    "Box",
    "Check",
    "Class",
    "ClassTable",
    "Grid",
    "InputError",
    "Interval",
    "Oriented",
    "OutputError",
    "Part",
    "Pixels",
    "Place",
    "Plan",
    "Predict",
    "Seam",
    "SeamFigures",
    "Source",
    "Space",
    "Statistics",
    "Store",
    "area_of_bounds",
    "area_of_box",
    "area_of_geojson",
    "compare_place",
    "create",
    "export",
    "open",
    "open_store",
    "plan",
    "run_blocks",
    "sample_places",
    "seam_figures",
    "segment",
    "statistics",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tiling' has no attribute {name!r}")
    return getattr(import_module(f"tiling.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
