"""The files that a raster is read from: leaves of a VRT, archives, folders of chunks, masks and headers beside it.

What GDAL makes of world files and `.aux.xml` is taken from the open dataset, not from their bytes: statistics that a
viewer writes change neither.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import RasterioError

from tiling.sources.remote import is_remote, version

_DEPTH = 16  # of VRTs within VRTs
_AT_ONCE = 16  # requests side by side
_WORLD_FILES = "tfw tifw tiffw jgw jpgw jpegw pgw pngw gfw gifw bpw bmpw j2w jp2w wld"
_SIDECARS = (".aux.xml", *(f".{ending}" for ending in _WORLD_FILES.split()))
_ARCHIVES = re.compile(r"^(?:/vsi(?:zip|tar|gzip|7z|rar)/)+")
_PACKED = re.compile(r"^(.*?\.(?:zip|tar|tar\.gz|tgz|gz|7z|rar|kmz))(?=/|$)", re.IGNORECASE)


class Members:
    """What an open raster is made of, and what those files are made of in turn.

    Attributes:
        local: files and folders on this machine.
        remote: GDAL's names of those behind the network.
        facts: georeference, nodata, masks and the like, of the raster and of the rasters within it.
    """

    def __init__(self, dataset: Any, opener: Callable[[str], Any]) -> None:
        """Collect them; `opener` opens the rasters within a VRT."""
        self.local: list[str] = []
        self.remote: list[str] = []
        self.facts: list[str] = []
        self._opener = opener
        self._seen: set[str] = set()
        self._folders: dict[str, Counter[str]] = {}
        self._collect(dataset, 0)
        # Which member of an archive or which subdataset: two patients may be `T1.tif` of one archive.
        name = dataset.name
        for file in self.local:
            name = name.replace(file, "")
        self.facts.append("" if is_remote(name) else name)

    def _collect(self, dataset: Any, depth: int) -> None:
        facts = _facts(dataset)
        if not depth or dataset.driver == "VRT" or facts != self._facts_alone(dataset.name):
            self.facts.append(facts)
        main = next(iter(dataset.files), dataset.name)
        # Overviews are read only for a VRT that shows a raster smaller than it is.
        unread = _SIDECARS if depth else (*_SIDECARS, ".ovr")
        leaves = set(_leaves(dataset))
        for name in dict.fromkeys([main, *dataset.files, *sorted(leaves), *_quoted(dataset.name)]):
            if name in self._seen or (name != main and name not in leaves and name.lower().endswith(unread)):
                continue
            self._seen.add(name)
            if (file := local_file(name)) is not None:
                if file == name or file not in self._seen:
                    self.local.append(file)
                self._seen.add(file)
            elif is_remote(name):
                self.remote.append(name)
            if name != main and dataset.driver == "VRT" and depth < _DEPTH and self._is_composed(name):
                try:
                    with self._opener(name) as leaf:
                        self._collect(leaf, depth + 1)
                except RasterioError:
                    continue  # reading its pixels will say so

    def _facts_alone(self, name: str) -> str | None:
        """What a file says without those beside it: statistics there make no other raster. None where it needs them."""
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"):
            try:
                with self._opener(name) as dataset:
                    return _facts(dataset)
            except RasterioError:
                return None

    def _is_composed(self, name: str) -> bool:
        """Whether a raster may be made of more than the one file: opening each of ten thousand takes long."""
        if not os.path.isfile(name):
            return name.lower().endswith(".vrt") or not (is_remote(name) or local_file(name))
        with open(name, "rb") as stream:
            if b"<VRTDataset" in stream.read(1024):
                return True
        folder, file = os.path.split(name)
        if folder not in self._folders:
            # `a.tif.aux.xml` lies beside `a.tif`, `a.hdr` beside `a.img`.
            self._folders[folder] = Counter(
                other[: dot.start()] for other in os.listdir(folder or ".") for dot in re.finditer(r"\.", other)
            )
        return self._folders[folder][os.path.splitext(file)[0]] > 1


def versions_of(names: list[str], options: dict[str, Any]) -> list[str]:
    """What servers say of remote files, or the names of those of which they say nothing."""

    def ask(name: str) -> str:
        with rasterio.Env(**options):
            return version(archive(name)) or name

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(ask, names))


def archive(name: str) -> str:
    """GDAL's name of the remote file that holds another: of the archive, or the file itself."""
    inner = _ARCHIVES.sub("/", name)
    packed = _PACKED.match(inner)
    return packed[1] if inner != name and packed else name


def local_file(name: str) -> str | None:
    """The file or folder on this machine that one of GDAL's names means: for `/vsizip/a.zip/b.tif` it is `a.zip`."""
    if os.path.exists(name):
        return name
    if is_remote(name):
        return None
    inner = _ARCHIVES.sub("", name) if not name.startswith("/vsisubfile/") else name.partition(",")[2]
    if inner.startswith("{"):
        inner = inner[1:].partition("}")[0]
    while inner.strip("/") and not os.path.exists(inner):
        inner = os.path.dirname(inner)
    return inner if os.path.isfile(inner) else None


def _leaves(dataset: Any) -> Iterator[str]:
    """Names of what a VRT reads, among them those that GDAL does not list: subdatasets."""
    if dataset.driver != "VRT":
        return
    yield from dataset.files[1:]
    text = dataset.tags(ns="xml:VRT").get("xml:VRT", "")
    folder = os.path.dirname(dataset.name)
    for element in ElementTree.fromstring(text).iter() if text else ():
        if element.tag in ("SourceFilename", "SourceDataset") and element.text:
            relative = element.get("relativeToVRT") == "1"
            yield os.path.join(folder, element.text) if relative else element.text


def _quoted(name: str) -> list[str]:
    """Files and folders within a name such as `ZARR:"/data/a.zarr":/B02`."""
    if os.path.exists(name) or is_remote(name) or name.startswith(("/", "<")):
        return []
    return [part for part in re.split(r'[":]', name) if "/" in part and os.path.exists(part)]


def _facts(dataset: Any) -> str:
    """What decides how pixels are read and placed, wherever it is written."""
    points, crs = dataset.gcps
    return repr(
        (
            (dataset.driver, dataset.shape, dataset.dtypes, dataset.nodatavals, dataset.descriptions),
            (dataset.crs and dataset.crs.to_wkt(), tuple(dataset.transform)),
            ([(p.row, p.col, p.x, p.y, p.z) for p in points], crs and crs.to_wkt(), dataset.rpcs),
            ([c.name for c in dataset.colorinterp], [[f.name for f in flags] for flags in dataset.mask_flag_enums]),
            (dataset.scales, dataset.offsets),
        )
    )
