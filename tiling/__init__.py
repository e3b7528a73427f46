"""Geometry, reading, stitching, storing and exporting of images larger than memory. Knows nothing of networks."""

from tiling.area import Area, area_of_bounds, area_of_box, area_of_geojson
from tiling.box import Box
from tiling.classes import Class, ClassTable
from tiling.engine import BlockReport, run_blocks, segment
from tiling.errors import BlockError, InputError
from tiling.export import export
from tiling.grid import Axis, Grid
from tiling.plan import Plan, plan
from tiling.predict import Oriented, Predict
from tiling.sources import Pixels, Source, open
from tiling.sources.array import ArraySource
from tiling.space import Space
from tiling.statistics import Statistics, statistics
from tiling.store import Store, create, open_store
from tiling.verify import Check, verify

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
    "Oriented",
    "Pixels",
    "Plan",
    "Predict",
    "Source",
    "Space",
    "Statistics",
    "Store",
    "area_of_bounds",
    "area_of_box",
    "area_of_geojson",
    "create",
    "export",
    "open",
    "open_store",
    "plan",
    "run_blocks",
    "segment",
    "statistics",
    "verify",
]
