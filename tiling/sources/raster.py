"""Rasters, through GDAL."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from tiling.box import Box
from tiling.errors import InputError
from tiling.sources import MISSING, Part, Pixels, all_valid, common_dtype, mask_nonfinite, present, split
from tiling.sources.fingerprint import Check, LocalFiles, changed, check_unchanged
from tiling.sources.members import Members, archive, versions_of
from tiling.sources.remote import (
    FAILURES,
    PassingError,
    environment,
    exists,
    is_remote,
    patiently,
    reason,
    remedy,
    version,
)
from tiling.space import Space

# GDAL would keep 5 % of the machine's memory as block cache; one row of blocks is all that reading by boxes reuses.
GDAL_ENV: dict[str, Any] = {"GDAL_CACHEMAX": 32 * 2**20}


@dataclass(frozen=True, slots=True)
class RasterSource:
    """One image in one or several files; the grid of the first that is there is the image's.

    Attributes:
        files: what GDAL opens, `-` for one that is missing.
        bands: (file number, band number from 1) of each channel.
        names: a name a channel, empty where the file gives none.
        nodata: the value of missing pixels per channel, None where there is none.
        masked: the remote files beside which a mask lies.
        local: the files on this machine that it is made of.
        versions: GDAL's names of remote files, with what tells each from another that takes its place.
        remote: whether pixels come over the network, be it through a file that names others.
    """

    uri: str
    files: tuple[str, ...]
    bands: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    nodata: tuple[float | None, ...]
    dtype: np.dtype[Any]
    space: Space
    fingerprint: str
    masked: frozenset[str]
    local: LocalFiles
    versions: tuple[tuple[str, str], ...]
    remote: bool

    @property
    def channels(self) -> int:
        return len(self.bands)

    @property
    def parts(self) -> tuple[Part, ...]:
        numbers = [number for number, _ in self.bands]
        if numbers != sorted(numbers):  # bands were chosen to and fro
            return (Part(self.uri, self.channels),)
        return tuple(Part(file, numbers.count(number)) for number, file in enumerate(self.files))

    @property
    def transform(self) -> Affine:
        return Affine(*self.space.affine[0], *self.space.affine[1])

    def read(self, box: Box) -> Pixels:
        """The box's pixels. A pixel is missing where every channel is, or the file's own mask says so.

        Raises:
            InputError: where a file is damaged, or a remote one is another than was opened.
            ConnectionError: where a remote file cannot be had, after several tries.
        """
        return patiently(lambda: self._read(box))

    def _read(self, box: Box) -> Pixels:
        try:
            values, valid = self._pixels(box)
        except FAILURES as error:
            self._check_unchanged()
            (y, x), (height, width) = box.start, box.shape
            place = f"{self.uri} cannot be read at rows {y}..{y + height}, columns {x}..{x + width}"
            if not self.remote:
                raise InputError(f"{place}: {reason(error)}; fetch or write the file again") from error
            why = reason(error)
            if fix := remedy(self.uri, why):
                raise ConnectionError(f"{place}: {why}; {fix}, then run again to resume") from error
            raise PassingError(f"{place}: {why}; run again to resume") from error
        except PassingError:
            self._check_unchanged()
            raise
        self._check_unchanged()
        if all(v is not None for v in self.nodata):
            valid = valid & ~self._missing(values)
        return mask_nonfinite(values, valid)

    def _pixels(self, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        window = Window(box.start[1], box.start[0], box.shape[1], box.shape[0])
        values = np.empty((self.channels, *box.shape), self.dtype)
        valid = all_valid(box.shape)
        for number in range(len(self.files)):
            channels = [c for c, (file, _) in enumerate(self.bands) if file == number]
            if not channels:
                continue
            with self._opened(number) as dataset:
                numbers = [self.bands[c][1] for c in channels]
                if channels == list(range(channels[0], channels[-1] + 1)):
                    dataset.read(numbers, window=window, out=values[channels[0] : channels[-1] + 1])
                else:
                    values[channels] = dataset.read(numbers, window=window)
                if _own_mask(dataset):
                    valid = valid & (dataset.dataset_mask(window=window) > 0)
        return values, valid

    def _check_unchanged(self) -> None:
        # After reading, or failing to: had the file changed before or meanwhile, it would show.
        check_unchanged(self.uri, self.local)
        for name, before in self.versions:
            with rasterio.Env(**_env(name)):
                now = version(name)
            if now not in ("", before):
                raise changed(self.uri)

    def _missing(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        missing = np.ones(values.shape[1:], bool)
        for band, nodata in zip(values, self.nodata, strict=True):
            assert nodata is not None
            missing &= np.isnan(band) if np.isnan(nodata) else band == np.float64(nodata).astype(self.dtype)
        return missing

    @contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        # Opened anew for each block: GDAL's handles belong to one thread, and a block is many megabytes.
        with ExitStack() as stack:
            file = self.files[number]
            stack.enter_context(rasterio.Env(**_env(file, masked=file in self.masked)))
            dataset = stack.enter_context(quietly_open(file))
            if file in self.masked and not _own_mask(dataset):
                raise PassingError(f"{file}.msk, the mask beside it, cannot be read; run again to resume")
            if number and (dataset.shape != self.space.shape or dataset.transform != self.transform):
                dataset = stack.enter_context(
                    WarpedVRT(
                        dataset,
                        crs=dataset.crs,
                        transform=self.transform,
                        height=self.space.shape[0],
                        width=self.space.shape[1],
                        # Marks what lies outside the file or its mask; a nodata value does so by itself.
                        add_alpha=dataset.nodata is None and ColorInterp.alpha not in dataset.colorinterp,
                        # Nearest, and exact but for rounding: the answer may not depend on the box that is read.
                        # (With a tolerance of 0 rasterio makes no VRT at all.)
                        resampling=Resampling.nearest,
                        tolerance=1e-6,
                    )
                )
            yield dataset


def open_raster(uri: str, bands: tuple[int, ...] | None = None, check: Check = "auto") -> RasterSource:
    """An image that GDAL reads; `a.tif,-,b.tif` takes its bands from several files, of which one is missing.

    Args:
        check: how much of the files is read for the fingerprint; see `tiling.sources.fingerprint`.

    Raises:
        InputError: where a file is damaged or no image, or a band does not exist.
    """
    files = split(uri)
    looks = [None if file == MISSING else _look(file) for file in files]
    known = [look for look in looks if look is not None]
    spaces = [look.space for look in known]
    channels = [(number, band) for number, look in enumerate(looks) if look is not None for band in look.bands]
    names = [name for look in known for name in look.names]
    nodata = [value for look in known for value in look.nodata]
    dtypes = [dtype for look in known for dtype in look.dtypes]
    there = present(uri)
    for file, space in zip(there, spaces, strict=True):
        if space.crs != spaces[0].crs:
            raise InputError(f"{file} has another CRS than {there[0]}; warp it with gdalwarp first")
    if bands is not None:
        missing = [b for b in bands if not 1 <= b <= len(channels)]
        if missing:
            raise InputError(f"{uri} has no band {missing[0]}; choose --bands from 1 to {len(channels)}")
        channels, names, nodata, dtypes = (
            [channels[b - 1] for b in bands],
            [names[b - 1] for b in bands],
            [nodata[b - 1] for b in bands],
            [dtypes[b - 1] for b in bands],
        )
        if MISSING in files and channels != sorted(channels, key=lambda channel: channel[0]):
            raise InputError(f"{uri} has a missing file, whose place the order of --bands hides; keep the files' order")
    if not channels:
        raise InputError(f"{uri} has only an alpha band; give an image with at least one band of data")
    local = LocalFiles.of([file for look in known for file in look.local], check)
    return RasterSource(
        uri,
        files,
        tuple(channels),
        tuple(names),
        tuple(nodata),
        _dtype(uri, dtypes),
        spaces[0],
        local.fingerprint(bands, *(MISSING if look is None else look.words for look in looks)),
        frozenset(file for file, look in zip(files, looks, strict=True) if look is not None and look.masked),
        local,
        tuple(told for look in known for told in look.versions),
        any(look.remote for look in known),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What one file says of itself: its bands but alpha, the local files it is read from, and the rest in words."""

    space: Space
    bands: tuple[int, ...]
    names: tuple[str, ...]
    nodata: tuple[float | None, ...]
    dtypes: tuple[str, ...]
    local: tuple[str, ...]
    words: str
    masked: bool
    versions: tuple[tuple[str, str], ...]
    remote: bool


def _look(file: str) -> _Look:
    if not is_remote(file) and not file.startswith("/vsi") and not os.path.exists(file):
        raise InputError(f"{file} does not exist; check the path")
    return patiently(lambda: _looked(file))


def _looked(file: str) -> _Look:
    try:
        with rasterio.Env(**_env(file)), quietly_open(file) as dataset:
            if 0 in dataset.shape or dataset.count == 0:
                hint = "name one of its subdatasets" if dataset.subdatasets else "give an image with pixels"
                raise InputError(f"{file} has {dataset.count} bands of {dataset.width} x {dataset.height}; {hint}")
            _check_complete(file, dataset)
            members = Members(dataset, quietly_open)
            main = next(iter(dataset.files), "")
            masked = is_remote(main) and "?" not in main and exists(f"{main}.msk")
            here = [main, f"{main}.msk"] if masked else [archive(main)] if is_remote(main) else []
            versions = tuple((name, told) for name in here if (told := version(name)))
            others = versions_of([name for name in members.remote if name != main], _env(file))
            # A tag of a server is one file's, and often only its size and time; a signature changes every hour.
            path = main.partition("?")[0] if versions and "?pc_url" not in main else main
            words = repr(
                (members.facts, others, *((path, [told for _, told in versions], _sample(dataset)) if here else ()))
                if members.local or here
                else (members.facts, file, _sample(dataset))
            )
            bands = tuple(b for b in dataset.indexes if dataset.colorinterp[b - 1] != ColorInterp.alpha)
            return _Look(
                _space(dataset),
                bands,
                tuple(dataset.descriptions[b - 1] or "" for b in bands),
                tuple(dataset.nodatavals[b - 1] for b in bands),
                tuple(dataset.dtypes[b - 1] for b in bands),
                tuple(members.local),
                words,
                masked,
                versions,
                any(map(is_remote, dataset.files)),
            )
    except FAILURES as error:
        why = reason(error)
        fix = remedy(file, why)
        if is_remote(file) and fix is None and "not recognized as being in a supported" not in why:
            raise PassingError(f"{file} cannot be reached: {why}; try again") from error
        raise InputError(
            f"{file} cannot be opened as an image: {why}; {fix or 'give a raster that GDAL reads'}"
        ) from error


def quietly_open(file: str, *mode: str, **profile: Any) -> Any:
    """`rasterio.open`, which keeps quiet about an image without georeference."""
    with warnings.catch_warnings():
        # The caller is told of a missing CRS once, in words, by the command or the flow.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(file, *mode, **profile)


def _env(file: str, *, masked: bool = False) -> dict[str, Any]:
    if not masked:
        return GDAL_ENV | environment(file)
    # GDAL finds a mask by its name, among many others that need not be asked for.
    ending = os.path.splitext(file)[1]
    return GDAL_ENV | environment(file) | {
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": f"{ending},.msk",
    }  # fmt: skip


def _check_complete(file: str, dataset: Any) -> None:
    """Refuses a TIFF that ends before its pixels do; GDAL itself opens it gladly."""
    if dataset.driver != "GTiff" or not os.path.isfile(file):
        return
    size = os.path.getsize(file)
    rows, columns = (-(-n // b) for n, b in zip(dataset.shape, dataset.block_shapes[0], strict=True))
    # Enough to meet any cut: files are written front to back, forwards or backwards.
    for row in {0, rows // 2, rows - 1}:
        for column in {0, columns // 2, columns - 1}:
            for band in {1, dataset.count}:
                offset, length = (
                    dataset.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=band)
                    for what in ("OFFSET", "SIZE")
                )
                if offset and length and int(offset) + int(length) > size:
                    raise InputError(
                        f"{file} is truncated: {size} bytes, but its pixels reach to byte "
                        f"{int(offset) + int(length)}; fetch it again"
                    )
    _check_directories(file, size)


def _check_directories(file: str, size: int) -> None:
    """Refuses a TIFF that ends before its last directory does; GDAL would go on without the mask in it."""
    with open(file, "rb") as stream:
        order = "<" if stream.read(2) == b"II" else ">"
        big = stream.read(2) == struct.pack(order + "H", 43)
        stream.seek(8 if big else 4)
        word, count, entry = (order + "Q", order + "Q", 20) if big else (order + "I", order + "H", 12)
        seen = set()
        try:
            (at,) = struct.unpack(word, stream.read(struct.calcsize(word)))
            while at and at not in seen:
                seen.add(at)
                stream.seek(at)
                (entries,) = struct.unpack(count, stream.read(struct.calcsize(count)))
                stream.seek(entries * entry, os.SEEK_CUR)
                (at,) = struct.unpack(word, stream.read(struct.calcsize(word)))
        except (struct.error, OSError, OverflowError) as error:
            raise InputError(
                f"{file} is truncated: {size} bytes, but it has a directory at byte {at}; fetch it again"
            ) from error


def _space(dataset: Any) -> Space:
    t = dataset.transform
    crs = dataset.crs.to_wkt() if dataset.crs else ""
    return Space(dataset.shape, ((t.a, t.b, t.c), (t.d, t.e, t.f)), crs)


def _own_mask(dataset: Any) -> bool:
    """Whether the file carries an alpha band or a mask of its own, besides nodata values."""
    return any({MaskFlags.per_dataset, MaskFlags.alpha} & set(flags) for flags in dataset.mask_flag_enums)


def _sample(dataset: Any) -> bytes:
    """A few pixels of a file that is not on this machine."""
    height, width = dataset.block_shapes[0]
    window = Window(0, 0, min(width, dataset.width), min(height, dataset.height))
    return bytes(dataset.read(1, window=window).tobytes())


def _dtype(uri: str, dtypes: list[str]) -> np.dtype[Any]:
    if any("complex" in d for d in dtypes):
        raise InputError(f"{uri} holds complex numbers; give amplitude or intensity instead")
    return common_dtype(*dtypes)
