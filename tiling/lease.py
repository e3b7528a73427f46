"""One run at a time on a store: a lease beside it, renewed while the run lives.

The lease of `out/a.zarr` is the file `out/.a.zarr.lease`. It says who holds it and counts heartbeats. It outlives a
store that is replaced, and whoever finds it can tell whether its holder is still there: on the same machine by the
process itself, from elsewhere by heartbeats that no longer come. Readers need no lease.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path

import psutil

from tiling.errors import InputError

BEAT = 10.0  # seconds between heartbeats
EXPIRY = 60.0  # seconds without one after which a holder on another machine is given up
_POLL = 0.5
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # of file systems without hard links
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who is at work on a store.

    Attributes:
        machine: the running system, exactly: a host name may be another machine's too, or a container's.
        started: when the process began, as its system counts: numbers of processes are used again.
        since: when the run began, by the host's clock; for people only.
        beat: heartbeats so far.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    user: str
    since: str
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host} since {self.since}"


class _Held:
    """A lease of this process, and the thread that renews it."""

    def __init__(self, path: Path) -> None:
        self.file = _file(path)
        self.thread = threading.get_ident()
        self.depth = 1
        self.lost: str | None = None
        self._mine = _myself()
        _acquire(path, self.file, self._mine)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._renew, name=f"lease of {path.name}", daemon=True)
        self._heart.start()

    def release(self) -> None:
        self._ended.set()
        self._heart.join()
        found = _read(self.file)
        if isinstance(found, Holder) and found.token == self._mine.token:
            self.file.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            self._mine = replace(self._mine, beat=self._mine.beat + 1)
            # A full disk or a network that is away for a moment costs a heartbeat, not the run.
            with suppress(OSError):
                found = _read(self.file)
                if found is None:
                    _create(self.file, self._mine)
                elif isinstance(found, Holder) and found.token != self._mine.token:
                    # This process slept for so long that it was given up.
                    self.lost = str(found)
                    return
                else:
                    _replace(self.file, self._mine)


_held: dict[Path, _Held] = {}
_lock = threading.Lock()


@contextmanager
def lease(path: str | Path) -> Iterator[None]:
    """Holds the store at `path` for the time of the block: nobody else may write it meanwhile.

    A thread may take again what it holds; another thread of the process may not. The lease of a holder that died is
    taken over: at once on the same machine, from another after `EXPIRY` seconds of waiting without a heartbeat.

    Stores lie in folders, of this machine or mounted from another: what holds there is the exclusive creation of a
    file, by a hard link where the file system has those. Object storage that is mounted as a folder (s3fs, gcsfuse)
    creates nothing exclusively: two runs that start there in the same moment may not see each other.

    Raises:
        InputError: where somebody else holds it, with who, where and since when; where the folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    with _lock:
        held = _held.get(path)
        again = held is not None and held.thread == threading.get_ident()
        if again and held is not None:
            held.depth += 1
    if not again:
        held = _Held(path)
        with _lock:
            _held[path] = held
    assert held is not None
    try:
        yield
    finally:
        with _lock:
            held.depth -= 1
            if not held.depth:
                del _held[path]
        if not held.depth:
            held.release()


def check(path: str | Path) -> None:
    """Refuses to go on where this process held the store and no longer does.

    Raises:
        InputError: naming the new holder.
    """
    held = _held.get(Path(os.path.realpath(path)))
    if held is not None and held.lost is not None:
        raise InputError(
            f"{path} was taken over by {held.lost}, for this run gave no sign of life; run again when that has ended"
        )


def holder(path: str | Path) -> Holder | None:
    """Who else is at work on a store, as far as its lease tells without waiting; None for nobody or this process."""
    path = Path(os.path.realpath(path))
    found = _read(_file(path))
    if not isinstance(found, Holder) or path in _held or _is_alive(found) is False:
        return None
    return found


def _acquire(path: Path, file: Path, mine: Holder) -> None:
    try:
        # Whoever is here in its place may end, or be replaced, between any two of these lines: then from the start.
        while not _create(file, mine):
            found = _read(file)
            if found is None:
                continue
            if _is_busy(path, file, found):
                who = found if isinstance(found, Holder) else "a run that left no name"
                raise InputError(
                    f"{path} is in use by {who}; wait until it ends, stop it, or choose another output folder"
                )
            if _take_over(file, found, mine):
                return
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; free some space or choose another output folder"
        ) from error


def _is_busy(path: Path, file: Path, found: Holder | bytes) -> bool:
    """Whether a lease's holder lives, in the end by waiting for its next heartbeat."""
    alive = _is_alive(found) if isinstance(found, Holder) else None
    if alive is not None:
        return alive
    _LOG.warning("%s: waiting up to %.0f s for a sign of life of %s", path, EXPIRY, found)
    # Two looks at the counter, and this machine's own seconds: clocks of two machines need not agree.
    end = time.monotonic() + EXPIRY
    while time.monotonic() < end:
        time.sleep(_POLL)
        now = _read(file)
        if now != found:
            return now is not None
    return False


def _is_alive(found: Holder) -> bool | None:
    """Whether the holder's process is there; None where that cannot be seen from here."""
    if found.machine != _machine():
        return None
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and there
    started = _started(found.pid)
    return None if started is None else started == found.started


def _take_over(file: Path, dead: Holder | bytes, mine: Holder) -> bool:
    """Puts `mine` in the place of a dead lease; False where somebody else was quicker."""
    with suppress(FileNotFoundError), file.open("r+b") as stream:
        # Of all who found this holder dead one may pass. The lock is that of the dead file, and goes with whoever
        # holds it; file systems without locks leave a gap of microseconds.
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        here = os.fstat(stream.fileno())
        if os.path.samestat(here, file.stat()) and _parsed(stream.read()) == dead:
            _replace(file, mine)
            return True
    return False


def _create(file: Path, mine: Holder) -> bool:
    """Makes the lease, whole and only if there is none; says whether it is ours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = _part(file, mine)
    try:
        part.write_bytes(_dumped(mine))
        try:
            os.link(part, file)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with suppress(FileExistsError), file.open("xb") as stream:
                stream.write(_dumped(mine))
    finally:
        part.unlink(missing_ok=True)
    # A network may lose the answer to a link that was made.
    found = _read(file)
    return isinstance(found, Holder) and found.token == mine.token


def _replace(file: Path, mine: Holder) -> None:
    part = _part(file, mine)
    try:
        part.write_bytes(_dumped(mine))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _read(file: Path) -> Holder | bytes | None:
    """What a lease says; its bytes where they make no sense; None where there is none."""
    try:
        return _parsed(file.read_bytes())
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> Holder | bytes:
    try:
        return Holder(**json.loads(content))
    except (TypeError, ValueError):
        return content


def _dumped(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lease")


def _part(file: Path, mine: Holder) -> Path:
    return file.with_name(f"{file.name}.{mine.token}")


def _myself() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"user {os.getuid()}"
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    pid = os.getpid()
    return Holder(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid) or "", user, since)


@cache
def _machine() -> str:
    """The running system, of which process numbers are told: on Linux its boot and the namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _started(pid: int) -> str | None:
    """When a process began, `gone` for one that only waits to be buried, None where that is not told."""
    try:
        # After the name, which may hold anything, in brackets: the state, and 19 fields on the start in clock ticks,
        # which do not move with the clock.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "gone" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return "gone" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None
