"""Files behind the network: how long to wait for them, which faults may pass, and whether they are still the same.

GDAL asks again where a server answers 429, 500, 502, 503 or 504. A stalled or broken connection it takes for the end
of the file, and remembers so: hence a second round of attempts around its own, each with a new handle.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import rasterio._env
from rasterio.errors import RasterioError

from tiling.errors import InputError

try:
    from botocore.exceptions import BotoCoreError
except ImportError:  # whom rasterio asks for credentials where it is installed
    BotoCoreError = RasterioError

_T = TypeVar("_T")

# A slow server is waited for as long as it sends anything; environment variables of the same names win.
OPTIONS = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1024",
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "1",
    # GDAL would give out what it has read of a file that has changed since, and half of what was cut off.
    "CPL_VSIL_CURL_NON_CACHED": ":".join(
        f"/vsi{kind}/" for kind in ("curl", "s3", "gs", "az", "adls", "oss", "swift", "webhdfs")
    ),
}
PATIENCE = 120.0  # seconds after which nothing is tried again

_NETWORK = re.compile(r"://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)[/?_]")
# Statuses by which a server says no for good, and words of GDAL, boto3 and object stores for the same.
_GONE = re.compile(r"(code:|status) (404|410)|(key|bucket|blob|object|container)\b.* does not exist|NoSuch(Key|Bucket)")
_FORBIDDEN = re.compile(
    r"(code:|status) (401|403)|not defined|credential|access ?key|signature|(access|permission) ?denied|forbidden", re.I
)
_RANGELESS = re.compile(r"Range downloading not supported")
_PLAIN = re.compile(r"CURL error|HTTP response code: [1-9]|Range downloading")
_CODE = re.compile(r"(?:response_code=|HTTP error code: |HTTP response code on .*: )(\d+)")
_PASSING = {0, 408, 425, 429}  # and 5xx
FAILURES = (RasterioError, BotoCoreError)
_LOG = logging.getLogger(__name__)

# rasterio has no call for what a server says of a file; GDAL, to which it is linked, has.
_GDAL = ctypes.CDLL(rasterio._env.__file__)
_GDAL.VSIGetFileMetadata.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
_GDAL.VSIGetFileMetadata.restype = ctypes.POINTER(ctypes.c_char_p)
_GDAL.CSLDestroy.argtypes = [ctypes.POINTER(ctypes.c_char_p)]
_GDAL.CSLDestroy.restype = None


class PassingError(ConnectionError):
    """A fault of the network or a server that may be gone on the next try."""


class _Complaints(logging.Handler):
    """Keeps, for each thread, the last status of which GDAL complained: its exceptions say nothing of it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if found := _CODE.search(record.getMessage()):
            self._last.code = int(found[1])

    def forget(self) -> None:
        self._last.code = None

    @property
    def code(self) -> int | None:
        """The status of an answer, 0 for none, None where there was no complaint."""
        return getattr(self._last, "code", None)


_complaints = _Complaints()
for _name in ("rasterio._env", "rasterio._err"):
    logging.getLogger(_name).addHandler(_complaints)


def is_remote(file: str) -> bool:
    """Whether a name lies behind the network."""
    return _NETWORK.search(file) is not None


def environment(file: str) -> dict[str, Any]:
    """GDAL's settings for a file; what the user set in the environment stays."""
    # Masks, world files and coordinates may lie beside an image; over the network GDAL would look for sixty names.
    options = OPTIONS | ({"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if is_remote(file) else {})
    return {name: value for name, value in options.items() if name not in os.environ}


def patiently(attempt: Callable[[], _T]) -> _T:
    """Calls `attempt` until it raises no `PassingError`: `GDAL_HTTP_MAX_RETRY` times more, for `PATIENCE` seconds.

    The first wait is of `GDAL_HTTP_RETRY_DELAY` seconds, each other twice the one before.
    """
    retries, delay = number("GDAL_HTTP_MAX_RETRY"), number("GDAL_HTTP_RETRY_DELAY")
    end = time.monotonic() + PATIENCE
    while True:
        _complaints.forget()
        try:
            return attempt()
        except PassingError as error:
            if retries < 1 or time.monotonic() + delay > end:
                raise
            _LOG.warning("%s; trying again in %g s", str(error).rpartition("; ")[0], delay)
        time.sleep(delay)
        retries, delay = retries - 1, 2 * delay


def reason(error: BaseException) -> str:
    """What went wrong, in one line: the server's word, or else the first of GDAL's that says more than that it failed.

    After `patiently` has begun an attempt, and in its thread.
    """
    said = [" ".join(str(e).split()).rstrip(".") for e in _causes(error)]
    for words in said:
        if _PLAIN.search(words):
            return words
    code = _complaints.code
    if code is not None and (code >= 400 or code == 0):
        return _status(code)
    if any("Read error" in words for words in said):
        return _status(0)
    return said[min(1, len(said) - 1)]


def remedy(file: str, why: str) -> str | None:
    """What to do where trying again will not help; None where it may."""
    if _RANGELESS.search(why):
        return "fetch the file and give its path"
    if _FORBIDDEN.search(why):
        if file.startswith(("s3:", "/vsis3")):
            return (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to those of somebody who may read it, "
                "or AWS_NO_SIGN_REQUEST=YES for a public bucket"
            )
        return "check that you may read it"
    if _GONE.search(why):
        return "check the bucket and the key" if file.startswith(("s3:", "/vsis3")) else "check the address"
    return None


def version(name: str) -> str:
    """What tells the bytes of a file from those of an earlier one, by the server's word; empty where it has none.

    Args:
        name: as GDAL has it: `/vsicurl/https://...`, `/vsis3/bucket/key`.
    """
    headers = _headers(name)
    tag = headers.get("etag", "").removeprefix("W/") or headers.get("last-modified", "")
    return f"{tag} {headers.get('content-length', '')}".strip()


def exists(name: str) -> bool:
    """Whether a file is there, by GDAL's name for it.

    Raises:
        PassingError: where that cannot be told now.
    """
    _complaints.forget()
    # Twice: of a connection that it kept and that is gone GDAL says nothing, as of a file that is not there.
    if _headers(name) or _headers(name):
        return True
    code = _complaints.code
    if code is not None and (code in _PASSING or code >= 500):
        raise PassingError(f"{name} cannot be asked for: {_status(code)}; try again")
    return False


def number(name: str) -> float:
    """What the environment, or else `OPTIONS`, says of a setting.

    Raises:
        InputError: where that is no number.
    """
    value = os.environ.get(name, OPTIONS[name])
    try:
        return float(value)
    except ValueError:
        raise InputError(f"the environment variable {name} is {value!r}; set it to a number") from None


def _status(code: int) -> str:
    return f"HTTP status {code}" if code else "the connection stalled or broke off"


def _headers(name: str) -> dict[str, str]:
    lines = _GDAL.VSIGetFileMetadata(name.encode(), b"HEADERS", None)
    if not lines:
        return {}
    try:
        found = {}
        for number in range(1000):
            if lines[number] is None:
                break
            key, _, value = lines[number].decode(errors="replace").partition("=")
            found[key.lower()] = value.strip()
        return found
    finally:
        _GDAL.CSLDestroy(lines)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
