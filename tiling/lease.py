"""One run at a time on a store: a lease beside it, renewed while the run lives.

The lease of `out/a.zarr` is the file, or the object, `out/.a.zarr.lease`. It says who holds it and counts heartbeats.
It outlives a store that is replaced, and whoever finds it can tell whether its holder is still there: on the same
machine by the process itself, from elsewhere by heartbeats that no longer come. Readers need no lease.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path

import psutil

from tiling.address import Address, address_of
from tiling.errors import InputError
from tiling.place import place_of

BEAT = 10.0  # seconds between heartbeats
EXPIRY = 60.0  # seconds without one after which a holder on another machine is given up
_POLL = 0.5
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
    """A lease of this process."""

    def __init__(self, path: Address) -> None:
        self.file = _file(path)
        self.thread = threading.get_ident()
        self.depth = 1
        self.lost: str | None = None
        self._away: ConnectionError | None = None
        self._mine = _myself()
        self._renewing = threading.Lock()
        self._released = False
        _acquire(path, self.file, self._mine)
        _heart.add(self)

    def release(self) -> None:
        _heart.remove(self)
        with self._renewing:
            self._released = True
        try:
            if self._away is not None:
                raise self._away
            found = _parsed(place_of(self.file).read())
            if isinstance(found, Holder) and found.token == self._mine.token:
                place_of(self.file).delete()
        except ConnectionError as error:
            # The run has failed for the same, and says so; to this process the lease is that of a dead holder.
            _left.add(self._mine.token)
            _LOG.warning("%s is left behind: %s", self.file, error)

    def renew(self) -> None:
        """Writes the next heartbeat, unless the lease was released or lost."""
        with self._renewing:
            if self._released or self.lost is not None:
                return
            self._mine = replace(self._mine, beat=self._mine.beat + 1)
            place = place_of(self.file)
            # A full disk or a network that is away for a moment costs a heartbeat, not the run.
            try:
                content = place.read()
                found = _parsed(content)
                if content is None:
                    _create(self.file, self._mine)
                elif isinstance(found, Holder) and found.token != self._mine.token:
                    # This process slept for so long that it was given up.
                    self.lost = str(found)
                else:
                    place.replace(content, _dumped(self._mine))
                self._away = None
            except (OSError, InputError) as error:
                self._away = error if isinstance(error, ConnectionError) else None


class _Heart:
    """The one thread that renews all leases of this process; it lives as long as there are any."""

    def __init__(self) -> None:
        self._held: set[_Held] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, held: _Held) -> None:
        with self._changed:
            self._held.add(held)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._thread.start()

    def remove(self, held: _Held) -> None:
        with self._changed:
            self._held.discard(held)
            self._changed.notify_all()

    def _beat(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: not self._held, timeout=BEAT):
                    self._thread = None
                    return
                due = tuple(self._held)
            for held in due:
                held.renew()


_heart = _Heart()
_held: dict[Address, _Held] = {}
_left: set[str] = set()  # tokens of leases that this process gave up and could not delete
_lock = threading.Lock()


@contextmanager
def lease(path: str | Address) -> Iterator[None]:
    """Holds the store at `path` for the time of the block: nobody else may write it meanwhile.

    A thread may take again what it holds; another thread of the process may not. The lease of a holder that died is
    taken over: at once on the same machine, from another after `EXPIRY` seconds of waiting without a heartbeat.

    In folders, of this machine or mounted from another, what holds is the exclusive creation of a file, by a hard link
    where the file system has those; in object storage, that an object is put only where there is none. Object storage
    that is mounted as a folder (s3fs, gcsfuse) creates nothing exclusively: two runs that start there in the same
    moment may not see each other.

    Raises:
        InputError: where somebody else holds it, with who, where and since when; where the folder cannot be written.
        ConnectionError: where object storage does not answer.
    """
    path = _real(path)
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


def check(path: str | Address) -> None:
    """Refuses to go on where this process held the store and no longer does.

    Raises:
        InputError: naming the new holder.
    """
    held = _held.get(_real(path))
    if held is not None and held.lost is not None:
        raise InputError(
            f"{path} was taken over by {held.lost}, for this run gave no sign of life; run again when that has ended"
        )


def holder(path: str | Address) -> Holder | None:
    """Who else is at work on a store, as far as its lease tells without waiting; None for nobody or this process."""
    path = _real(path)
    found = _parsed(place_of(_file(path)).read())
    if not isinstance(found, Holder) or path in _held or _is_alive(found) is False:
        return None
    return found


def _acquire(path: Address, file: Address, mine: Holder) -> None:
    try:
        # Whoever is here in its place may end, or be replaced, between any two of these lines: then from the start.
        while not _create(file, mine):
            content = place_of(file).read()
            if content is None:
                continue
            found = _parsed(content)
            if _is_busy(path, file, content):
                who = found if isinstance(found, Holder) else "a run that left no name"
                raise InputError(
                    f"{path} is in use by {who}; wait until it ends, stop it, or choose another output folder"
                )
            if place_of(file).replace(content, _dumped(mine)):
                return
    except ConnectionError:
        raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; free some space or choose another output folder"
        ) from error


def _is_busy(path: Address, file: Address, content: bytes) -> bool:
    """Whether a lease's holder lives, in the end by waiting for its next heartbeat."""
    found = _parsed(content)
    alive = _is_alive(found) if isinstance(found, Holder) else None
    if alive is not None:
        return alive
    _LOG.warning("%s: waiting up to %.0f s for a sign of life of %s", path, EXPIRY, found)
    # Two looks at the counter, and this machine's own seconds: clocks of two machines need not agree.
    end = time.monotonic() + EXPIRY
    while time.monotonic() < end:
        time.sleep(_POLL)
        now = place_of(file).read()
        if now != content:
            return now is not None
    return False


def _is_alive(found: Holder) -> bool | None:
    """Whether the holder's process is there; None where that cannot be seen from here."""
    if found.token in _left:
        return False
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


def _create(file: Address, mine: Holder) -> bool:
    """Makes the lease, if there is none; says whether it is ours."""
    place_of(file).create(_dumped(mine))
    # A network may lose the answer to a lease that was made.
    found = _parsed(place_of(file).read())
    return isinstance(found, Holder) and found.token == mine.token


def _parsed(content: bytes | None) -> Holder | bytes | None:
    """What a lease says; its bytes where they make no sense; None where there is none."""
    try:
        return None if content is None else Holder(**json.loads(content))
    except (TypeError, ValueError):
        return content


def _dumped(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _real(path: str | Address) -> Address:
    address = address_of(path)
    return Path(os.path.realpath(address)) if isinstance(address, Path) else address


def _file(path: Address) -> Address:
    return path.with_name(f".{path.name}.lease")


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
