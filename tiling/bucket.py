"""Object storage: each object is put whole, on the condition that there is none or that it is the one that was seen.

The environment variables are those by which GDAL finds s3:// images. A client belongs to a process; what travels
between processes is an address.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import zarr
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from tiling.address import ObjectPath
from tiling.errors import InputError
from tiling.place import ROOT, Content, Place
from tiling.sources.remote import number

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_PATIENCE = timedelta(seconds=45)  # after which a request is not tried again
_PIECE = 8 * 2**20  # bytes of a large object in one request
_PIECES = 9000  # of an upload: object storage takes 10 000
_SIDE_BY_SIDE = 4  # pieces of an upload: more of them time out on a slow line
# An object under a store that is being made or removed. Without the root it says that the rest is left over.
_PART = ".part"

_ANSWER = re.compile(r"<Code>(\w+)</Code>(?:<Message>([^<]*)</Message>)?")
_STATUS = re.compile(r"status code: (\d{3}[^:\n]*)")
_BUCKETLESS = re.compile(r"<Code>(NoSuchBucket|InvalidBucketName)")
# What will not pass, and what to do about it.
_FIXES = {
    _BUCKETLESS: "make the bucket, or check its name",
    re.compile(r"status code: 30\d|configured region|<Code>(AuthorizationHeaderMalformed|IllegalLocation)"): (
        "set AWS_REGION to the region of the bucket"
    ),
    # Where no keys are set, those of the machine are asked for at that address.
    re.compile(r"status code: 40[13]|Missing (SecretAccessKey|AccessKeyId)|//169\.254\."): (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to those of somebody who may list, read and write it"
    ),
    re.compile(r"status code: 501|not (supported|implemented)"): "choose a server that puts objects on conditions",
}


class Bucket(Place):
    """In a bucket of S3, or of a server that speaks like it: an object, or all that lies under a prefix."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        with _spoken(path):
            self._client = _client(path.bucket, _environment())

    def read(self) -> bytes | None:
        with _spoken(self._path):
            try:
                return bytes(obstore.get(self._client, self._path.key).bytes())
            except FileNotFoundError as error:
                _check_bucket(error)
                return None

    def exists(self) -> bool:
        with _spoken(self._path):
            try:
                obstore.head(self._client, self._path.key)
            except FileNotFoundError as error:
                _check_bucket(error)
                return False
            return True

    def identify(self, contents: Sequence[Content]) -> Content | None:
        with _spoken(self._path):
            try:
                size = obstore.head(self._client, self._path.key)["size"]
                if all(content.size != size for content in contents):
                    return None
                digest = hashlib.sha256()
                for piece in self._pieces(size):
                    digest.update(piece)
            except FileNotFoundError as error:
                _check_bucket(error)
                return None
        here = Content(size, digest.hexdigest())
        return here if here in contents else None

    def create(self, content: bytes) -> bool:
        with _spoken(self._path):
            try:
                obstore.put(self._client, self._path.key, content, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def replace(self, old: bytes, new: bytes) -> bool:
        with _spoken(self._path):
            try:
                seen = obstore.get(self._client, self._path.key)
                if bytes(seen.bytes()) != old:
                    return False
                obstore.put(self._client, self._path.key, new, mode={"e_tag": seen.meta["e_tag"]})
            except (AlreadyExistsError, PreconditionError):
                return False
            except FileNotFoundError as error:
                _check_bucket(error)
                return False
            return True

    def delete(self) -> None:
        with _spoken(self._path):
            obstore.delete(self._client, self._path.key)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="lmseg-") as folder:
            file = Path(folder, self._path.name)
            with _spoken(self._path), file.open("wb") as stream:
                for piece in self._pieces(obstore.head(self._client, self._path.key)["size"]):
                    stream.write(piece)
            yield file

    def check_writable(self) -> None:
        probe = (self._path / f".lmseg-{uuid.uuid4().hex}").key
        with _spoken(self._path):
            obstore.put(self._client, probe, b"", mode="create")
            # Again: a server that takes no conditions would give one lease to two runs.
            try:
                obstore.put(self._client, probe, b"", mode="create")
            except AlreadyExistsError:
                return
            finally:
                obstore.delete(self._client, probe)
        raise InputError(
            f"{self._path} cannot be used: its server puts objects on no condition, and two runs could not see each "
            "other; choose another one, or a folder"
        )

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="lmseg-") as folder:
            yield Path(folder)

    def take(self, file: Path, replace: bool) -> bool:
        target = self._path / file.name
        if not replace:
            if file.stat().st_size <= _PIECE:
                return Bucket(target).create(file.read_bytes())
            # What goes in pieces goes on no condition.
            if Bucket(target).exists():
                return False
        self._upload(file, target)
        return True

    def is_blocked(self) -> bool:
        return False

    def clear(self) -> None:
        self.delete()

    def is_empty(self) -> bool:
        if Bucket(self._path / ROOT).exists():
            return False
        with _spoken(self._path):
            found = next(iter(obstore.list(self._client, self._path.key)), [])
        return not found or Bucket(self._path / _PART).exists()

    def make(self, fill: Callable[[Path], None]) -> None:
        self.remove()  # what is left of an earlier attempt
        mark = Bucket(self._path / _PART)
        mark.create(b"")
        with tempfile.TemporaryDirectory(prefix="lmseg-") as folder:
            part = Path(folder, self._path.name)
            fill(part)
            files = (file for file in part.rglob("*") if file.is_file())
            # The root last: without it there is no store.
            for file in sorted(files, key=lambda file: file == part / ROOT):
                self._upload(file, self._path / file.relative_to(part).as_posix())
        mark.delete()

    def remove(self) -> None:
        mark = Bucket(self._path / _PART)
        mark.create(b"")
        Bucket(self._path / ROOT).delete()
        with _spoken(self._path):
            for found in obstore.list(self._client, self._path.key):
                if keys := [meta["path"] for meta in found if meta["path"] != mark._path.key]:
                    obstore.delete(self._client, keys)
        mark.delete()

    def array(self, name: str, version: str) -> zarr.Array[Any]:
        with _spoken(self._path):
            return _opened(self._path, name, version, _environment())

    def _pieces(self, size: int) -> Iterator[obstore.Bytes]:
        """The object, so long, piece by piece."""
        for start in range(0, size, _PIECE):
            yield obstore.get_range(self._client, self._path.key, start=start, end=min(start + _PIECE, size))

    def _upload(self, file: Path, to: ObjectPath) -> None:
        with _spoken(to):
            piece = max(_PIECE, file.stat().st_size // _PIECES)
            obstore.put(self._client, to.key, file, chunk_size=piece, max_concurrency=_SIDE_BY_SIDE)


class _Chunks(ObjectStore[S3Store]):
    """A store's files as Zarr asks for them. What the network does to them is no damage: it is a ConnectionError."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with _spoken(self._place(key), ConnectionError):
            return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        with _spoken(self._place(key), ConnectionError):
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        with _spoken(self._place(key), ConnectionError):
            await super().delete(key)

    def _place(self, key: str) -> ObjectPath:
        return ObjectPath(self.store.config["bucket"], f"{self.store.prefix}/{key}")


def _environment() -> frozenset[tuple[str, str]]:
    """What a client depends on."""
    return frozenset((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "GDAL_HTTP_")))


@lru_cache(maxsize=8)
def _client(bucket: str, _: frozenset[tuple[str, str]], prefix: str | None = None) -> S3Store:
    """A client by GDAL's variables; obstore itself looks for keys, tokens and roles.

    Raises:
        InputError: where they make no sense.
    """
    told = os.environ.get
    # As in GDAL: the bucket is the first part of the server's name, unless told otherwise or where it has dots.
    virtual = _yes("AWS_VIRTUAL_HOSTING", "NO" if "." in bucket else "YES")
    config: S3Config = {
        "region": told("AWS_REGION") or told("AWS_DEFAULT_REGION") or "us-east-1",
        "skip_signature": _yes("AWS_NO_SIGN_REQUEST", "NO"),
        "virtual_hosted_style_request": virtual,
    }
    if host := told("AWS_S3_ENDPOINT"):
        if not re.fullmatch(r"[\w.-]+(:\d+)?", host):
            raise InputError(f"the environment variable AWS_S3_ENDPOINT is {host!r}; set it to a server, host:9000")
        scheme = "https" if _yes("AWS_HTTPS", "YES") else "http"
        config["endpoint"] = f"{scheme}://{bucket}.{host}" if virtual else f"{scheme}://{host}"
    # A request is for a chunk or a piece, and has ended by the time in which nothing may come of a larger one.
    client: ClientConfig = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=number("GDAL_HTTP_CONNECTTIMEOUT")),
        "timeout": timedelta(seconds=number("GDAL_HTTP_LOW_SPEED_TIME")),
    }
    retry: RetryConfig = {
        "max_retries": int(number("GDAL_HTTP_MAX_RETRY")),
        "retry_timeout": _PATIENCE,
        "backoff": {"init_backoff": timedelta(seconds=number("GDAL_HTTP_RETRY_DELAY"))},
    }
    return S3Store(bucket, prefix=prefix, config=config, client_options=client, retry_config=retry)


@lru_cache(maxsize=32)
def _opened(path: ObjectPath, name: str, version: str, environment: frozenset[tuple[str, str]]) -> zarr.Array[Any]:
    return zarr.open_array(_Chunks(_client(path.bucket, environment, path.key)), path=name, mode="r+")


def _yes(name: str, default: str) -> bool:
    """A switch as GDAL reads it."""
    return os.environ.get(name, default).upper() in ("YES", "TRUE", "ON", "1")


@contextmanager
def _spoken(path: ObjectPath, lasting: type[Exception] = InputError) -> Iterator[None]:
    """Says in one line what a server or the network did, unless the block looks after it.

    Args:
        lasting: what to raise where trying again will not help; ConnectionError elsewhere.
    """
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        said = str(error).partition("\n\nDebug source")[0]
        why = _reason(said)
        for pattern, fix in _FIXES.items():
            if pattern.search(said):
                raise lasting(f"{path} cannot be used: {why}; {fix}") from error
        fix = "check the network and AWS_S3_ENDPOINT, then run again"
        raise ConnectionError(f"{path} cannot be reached: {why}; {fix}") from error


def _check_bucket(error: FileNotFoundError) -> None:
    """Passes on that it is the bucket which is missing, and not an object."""
    if _BUCKETLESS.search(str(error)):
        raise error


def _reason(said: str) -> str:
    """The server's words, or else the client's, without what only its makers understand."""
    server = re.search(r"https?://[^/\s]+", said)
    if answer := _ANSWER.search(said):
        why = ": ".join(filter(None, answer.groups()))
    elif status := _STATUS.search(said):
        why = f"HTTP status {status[1].strip()}"
    else:
        why = said.partition("\n")[0].rpartition(" - ")[2]
    return " ".join(why.split()).rstrip(".") + (f" ({server[0]})" if server else "")
