"""What a run found and took, for a terminal, for Prefect's pages and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tiling import Part, Source, Space, Store
from tiling.address import Address
from tiling.ownership import Owner

_VERSIONS = ("lmseg", "torch", "rasterio", "nibabel", "zarr")
_A, _F = 6378137.0, 1 / 298.257223563  # WGS 84


class ClassShare(NamedTuple):
    """One class: its pixels, and their area or volume in `unit` (`km²`, `ml`, or `px` without a CRS)."""

    name: str
    pixels: int
    measure: float
    unit: str


@dataclass(frozen=True)
class Report:
    """The result of a run.

    Attributes:
        parts: the files of the source and their channels; a missing one is `-` with none.
        nodata: pixels of the area without an answer.
        nonfinite: pixels among them that held NaN or infinity.
        tiles: tiles predicted, of an unbroken run.
        skipped: tiles of the grid that were not, for nothing in them is wanted.
        seconds: per stage; those of blocks (`tiling.layout.STEPS`) are summed over blocks, and read and write overlap
            with the others in time.
    """

    source: str
    parts: tuple[Part, ...]
    store: str
    model: str
    files: list[Address]
    classes: list[ClassShare]
    nodata: int
    nonfinite: int
    tiles: int
    skipped: int
    blocks: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    parameters: dict[str, Any]

    @classmethod
    def of(
        cls,
        image: Source,
        store: Store,
        parameters: BaseModel,
        files: Sequence[Address],
        seconds: Mapping[str, float],
        warnings: Sequence[str],
    ) -> Report:
        """Reads the counts of a finished store."""
        counts = store.counts()
        k = len(store.classes)
        measures, unit = _measures(store, counts[:, :k])
        pixels = counts.sum(axis=0)
        nonfinite = int(pixels[k + 1])
        notes = [f"{nonfinite} pixels were NaN or infinite and became nodata"] if nonfinite else []
        dumped = parameters.model_dump(mode="json")
        return cls(
            image.uri,
            image.parts,
            store.path,
            dumped["model"],
            list(files),
            [
                ClassShare(c.name, int(n), float(m), unit)
                for c, n, m in zip(store.classes, pixels, measures, strict=False)
            ],
            int(pixels[k]),
            nonfinite,
            int(pixels[k + 2]),
            store.grid.n_tiles - int(pixels[k + 2]),
            store.grid.n_blocks,
            dict(seconds),
            (*warnings, *notes),
            dumped,
        )

    def device(self) -> dict[str, float]:
        """What the device's time went to, as shares of their sum: the network, and what held it up.

        `wait` is reading and decoding, `move` bringing the raw block to the device, `blend` sums, labels and their way
        back, `hold` encoding and writing. Empty where nothing was computed.
        """
        spent = {step: self.seconds.get(step, 0.0) for step in ("wait", "move", "network", "blend", "hold")}
        whole = sum(spent.values())
        return {step: seconds / whole for step, seconds in spent.items()} if whole else {}

    def summary(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "source": self.source,
            "parts": [part._asdict() for part in self.parts],
            "store": self.store,
            "model": self.model,
            "files": [str(f) for f in self.files],
            "classes": [c._asdict() for c in self.classes],
            "nodata": self.nodata,
            "nonfinite": self.nonfinite,
            "tiles": self.tiles,
            "skipped": self.skipped,
            "blocks": self.blocks,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
            "device": {k: round(v, 4) for k, v in self.device().items()},
            "warnings": list(self.warnings),
            "parameters": self.parameters,
            "versions": {name: version(name) for name in _VERSIONS if find_spec(name) is not None},
        }

    def markdown(self) -> str:
        """A page for Prefect: classes with areas or volumes, links to the files, time per stage."""
        lines = [f"## {self.source}", "", f"Segmented with `{self.model}`: {self.tiles} tiles in {self.blocks} blocks."]
        lines += ["", *(f"**Note:** {w}" for w in self.warnings)] if self.warnings else []
        lines += ["", "| class | pixels | measure |", "| --- | ---: | ---: |"]
        lines += [f"| {c.name} | {c.pixels} | {format_measure(c)} |" for c in self.classes]
        lines += [f"| no data | {self.nodata} | |", "", "### Files", ""]
        lines += [f"- [{f.name}]({f.absolute().as_uri()})" for f in self.files]
        lines += ["", "### Seconds", "", "| stage | seconds |", "| --- | ---: |"]
        lines += [f"| {stage} | {value:.1f} |" for stage, value in self.seconds.items()]
        return "\n".join(lines) + "\n"


def format_measure(share: ClassShare) -> str:
    """A measure with its unit, to four digits."""
    return "" if share.unit == "px" else f"{share.measure:.4g} {share.unit}"


def write_run_json(report: Report, path: Address, owner: Owner) -> Report:
    """Writes the summary beside the results, whole or not at all, and adds it to the report's files."""
    report = replace(report, files=[*report.files, path])
    with owner.publish(path) as folder:
        (folder / path.name).write_text(json.dumps(report.summary(), indent=1) + "\n", encoding="utf-8")
    return report


def _measures(store: Store, counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], str]:
    """Area in km² or volume in ml of each class; plain pixels where there is no CRS."""
    space = store.out_space
    if space.ndim == 3:
        return counts.sum(axis=0) * space.cell / 1000, "ml"
    if not space.crs:
        return counts.sum(axis=0).astype(float), "px"
    from rasterio.crs import CRS

    crs = CRS.from_wkt(space.crs)
    if crs.is_projected:
        _, metres = crs.linear_units_factor
        return counts.sum(axis=0) * space.cell * metres**2 / 1e6, "km²"
    latitudes = [_latitude(space, b.relative(store.area.box.start).slices) for b in store.grid.blocks()]
    cells = np.array([_cell_km2(space.cell, lat) for lat in latitudes])
    return (counts * cells[:, None]).sum(axis=0), "km²"


def _latitude(space: Space, slices: tuple[slice, ...]) -> float:
    rows, columns = slices
    return space.to_world(((rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2))[1]


def _cell_km2(square_degrees: float, latitude: float) -> float:
    """Area of a small cell on the ellipsoid, from its radii of curvature at the block's middle latitude."""
    e2 = _F * (2 - _F)
    sine = math.sin(math.radians(latitude))
    meridian = _A * (1 - e2) / math.pow(1 - e2 * sine**2, 1.5)
    parallel = _A / math.sqrt(1 - e2 * sine**2) * math.cos(math.radians(latitude))
    return square_degrees * math.radians(1) ** 2 * meridian * parallel / 1e6
