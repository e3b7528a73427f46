"""What a run is told: one flat model each for rasters and volumes, shown as a form in Prefect's UI."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from flows.paths import check_absolute
from tiling.address import Address, ObjectPath, address_of
from tiling.errors import InputError
from tiling.sources.fingerprint import Check

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(text: str | int) -> int:
    """Bytes in a size such as `2GiB`, `500 MB` or `1073741824`; ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"memory {text!r} is not a size; write it as 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Band numbers in `3,2,1`; None for None.

    Raises:
        InputError: for anything else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--bands {text!r} is not a list of band numbers; write it as 1,2,3") from None


Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    PlainSerializer(str, return_type=str),
    # What Prefect's server checks a run's parameters against.
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]


def _place(output: str | Address) -> Address:
    if not isinstance(output, ObjectPath) and "://" not in str(output):
        check_absolute(Path(output), "output", "out")
    return address_of(output)


Output = Annotated[
    Path | ObjectPath,
    PlainValidator(_place),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: list[str] = Field(min_length=1, description="Images to segment, each on its own.")
    output: Output = Field(description="Absolute folder or s3:// address that receives the store and the exports.")
    tile: int | None = Field(None, ge=1, description="Pixels a side that the network sees; the model's own if empty.")
    overlap: float = Field(0.25, ge=0, lt=1, description="Share of a tile that its neighbour sees again.")
    memory: Bytes = Field(2 * 2**30, description="Memory a process may take, such as 2GiB; picks the block.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the network runs.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Numbers the network computes in: bfloat16 where a GPU has it, else float32."
    )
    any_spacing: bool = Field(False, description="Go on with pixels or voxels of a size the model was not tested with.")
    compile: bool = Field(False, description="Compile the network first, by torch.compile; takes a minute or more.")
    workers: int = Field(1, ge=1, description="Processes on this machine.")
    cluster: str | None = Field(None, description="Address of a Dask scheduler to use instead, tcp://host:8786.")
    probability: bool = Field(False, description="Also write the probability of every class.")
    uncertainty: bool = Field(False, description="Also write the normalised entropy of the prediction.")
    fresh: bool = Field(False, description="Start again instead of resuming an earlier run.")
    overwrite: bool = Field(False, description="Replace files that this run did not write; its inputs never.")
    check: Check = Field(
        "auto",
        description="What tells images apart: auto takes samples of more than 64 MiB, content reads every byte.",
    )


class RegionParameters(_Parameters):
    """Segment rasters: any file or address that GDAL reads, or several joined by commas, - for one that is missing."""

    model: str = Field("land-cover-tiny", description="Bundled model, folder or hub name.")
    bands: list[int] | None = Field(None, description="Bands to feed the model, counted from 1.")
    bbox: tuple[float, float, float, float] | None = Field(None, description="West, south, east, north.")
    bbox_crs: str | None = Field(None, description="CRS of the bounding box; the image's own if empty.")
    area: str | None = Field(None, description="Area of interest: a GeoJSON file or GeoJSON text.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is read, files and folders among it."""
        area = [] if self.area is None or self.area.lstrip().startswith("{") else [self.area]
        return (*self.sources, self.model, *area)


class VolumeParameters(_Parameters):
    """Segment volumes: NIfTI files, or several on one grid joined by commas, - for one that is missing."""

    model: str = Field("hippocampus-tiny", description="Bundled model, folder or hub name.")
    box: tuple[float, float, float, float, float, float] | None = Field(
        None, description="Box in world millimetres (RAS+): x0, y0, z0, x1, y1, z1."
    )
    form: Literal["sform", "qform"] | None = Field(None, description="Which NIfTI form to trust where both differ.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is read, files and folders among it."""
        return (*self.sources, self.model)


Parameters = RegionParameters | VolumeParameters
