"""One run at a time: real processes that hold, die, and race for a lease."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import tiling
from tests.tiling.predictors import Identity
from tests.tiling.refusals import refused
from tiling import ArraySource, Grid
from tiling import lease as leases
from tiling.lease import Holder, check, holder, lease
from tiling.store import remove

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from tiling.lease import lease
with lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A process that holds the lease of `a.zarr`."""
    with hold(tmp_path / "a.zarr") as process:
        yield process
        process.kill()


def hold(path: Path | str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def one_gets_it(path) -> None:
    """Four come at once, and one of them holds the lease, until it gives it back."""
    start, got = threading.Barrier(4), []

    def take() -> None:
        start.wait()
        with suppress(tiling.InputError):
            got.append(leases._Held(path))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].release()


def written(path: Path, found: Holder) -> Path:
    """A lease as its holder left it."""
    file = path.with_name(f".{path.name}.lease")
    file.write_text(json.dumps(asdict(found)))
    return file


def stranger(**other) -> Holder:
    return replace(leases._myself(), **({"token": "strange", "host": "node7", "machine": "another"} | other))


# --- who holds it ---


def test_a_second_run_is_told_who_holds_the_store(tmp_path, elsewhere):
    path = tmp_path / "a.zarr"
    with refused(path, f"process {elsewhere.pid} of ", f"on {socket.gethostname()} since 20", "another output folder"):
        lease(path).__enter__()
    assert holder(path).pid == elsewhere.pid


@pytest.mark.parametrize("buried", [True, False])
def test_a_killed_holder_is_replaced_at_once(tmp_path, elsewhere, buried):
    elsewhere.send_signal(signal.SIGKILL)
    if buried:
        elsewhere.wait()
    else:
        os.waitid(os.P_PID, elsewhere.pid, os.WEXITED | os.WNOWAIT)
    start = time.monotonic()
    assert holder(tmp_path / "a.zarr") is None
    with lease(tmp_path / "a.zarr"):
        assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_holder_is_alive(tmp_path, elsewhere):
    elsewhere.send_signal(signal.SIGSTOP)
    with refused("in use"):
        lease(tmp_path / "a.zarr").__enter__()


def test_a_process_number_that_is_used_again_is_not_the_holder(tmp_path):
    written(tmp_path / "a.zarr", replace(leases._myself(), token="before", started="1"))
    with lease(tmp_path / "a.zarr"):
        assert holder(tmp_path / "a.zarr") is None


def test_a_folder_by_another_name_is_the_same(tmp_path, elsewhere):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with refused("in use"):
        lease(tmp_path / "link" / "a.zarr").__enter__()


# --- other machines ---


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY", 1.0)
    monkeypatch.setattr(leases, "_POLL", 0.05)


@pytest.mark.parametrize("left", ["a lease", "half a lease", "an empty lease"])
def test_a_holder_elsewhere_without_heartbeat_is_given_up_after_a_while(tmp_path, hasty, left):
    file = written(tmp_path / "a.zarr", stranger(since="2999-01-01 00:00:00+00:00"))
    file.write_bytes({"a lease": file.read_bytes(), "half a lease": b'{"token": "str', "an empty lease": b""}[left])
    os.utime(file, (2e9, 2e9))
    start = time.monotonic()
    with lease(tmp_path / "a.zarr"):
        assert 1.0 <= time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_a_holder_elsewhere_with_a_heartbeat_is_believed(tmp_path, hasty):
    file = written(tmp_path / "a.zarr", stranger())
    os.utime(file, (0, 0))
    threading.Timer(0.3, lambda: written(tmp_path / "a.zarr", stranger(beat=1))).start()
    with refused("in use by process", "on node7"):
        lease(tmp_path / "a.zarr").__enter__()


def test_a_holder_elsewhere_that_ends_meanwhile_makes_room(tmp_path, hasty):
    file = written(tmp_path / "a.zarr", stranger())
    threading.Timer(0.3, file.unlink).start()
    with lease(tmp_path / "a.zarr"):
        pass


# --- holding ---


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    file = tmp_path / ".a.zarr.lease"
    with lease(tmp_path / "a.zarr"):
        seen = set()
        while len(seen) < 4:
            seen.add(json.loads(file.read_text())["beat"])
            # Replaced whole: never away, never half there.
            assert json.loads(file.read_text())["pid"] == os.getpid()
        file.unlink()
        while not file.exists():
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_one_thread_renews_a_thousand_leases(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    threads = threading.active_count()
    with ExitStack() as stack:
        for number in range(1000):
            stack.enter_context(lease(tmp_path / f"{number}.zarr"))
        assert threading.active_count() == threads + 1
        for number in (0, 999):
            file = tmp_path / f".{number}.zarr.lease"
            first = json.loads(file.read_text())["beat"]
            while json.loads(file.read_text())["beat"] < first + 2:
                time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_is_released_is_not_written_again(tmp_path, monkeypatch):
    """However the end of one and the heartbeat of all meet."""
    monkeypatch.setattr(leases, "BEAT", 0.0001)
    with lease(tmp_path / "other.zarr"):
        for _ in range(300):
            with lease(tmp_path / "a.zarr"):
                pass
            assert not (tmp_path / ".a.zarr.lease").exists()


def test_a_run_that_slept_too_long_notices_and_leaves_the_lease_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    path = tmp_path / "a.zarr"
    with lease(path):
        check(path)
        written(path, stranger())
        time.sleep(0.3)
        with refused("taken over", "node7"):
            check(path)
    assert holder(path).host == "node7"
    check(path)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_released_however_the_run_ends(tmp_path, error):
    with ExitStack() as stack:
        if error:
            stack.enter_context(pytest.raises(error))
        stack.enter_context(lease(tmp_path / "a.zarr"))
        assert (tmp_path / ".a.zarr.lease").exists()
        if error:
            raise error
    assert list(tmp_path.iterdir()) == []


def test_control_c_releases_it(tmp_path, elsewhere):
    elsewhere.send_signal(signal.SIGINT)
    elsewhere.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_may_take_it_again_and_another_thread_may_not(tmp_path):
    path = tmp_path / "a.zarr"
    errors = []

    def other() -> None:
        try:
            with lease(path):
                pass
        except tiling.InputError as error:
            errors.append(str(error))

    with lease(path):
        with lease(path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / ".a.zarr.lease").exists()
    assert f"process {os.getpid()}" in errors[0]
    other()
    assert len(errors) == 1


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with lease(tmp_path / "a.zarr"):
        with refused("in use"):
            leases._Held(tmp_path / "a.zarr")
        assert holder(tmp_path / "a.zarr") is None
    assert list(tmp_path.iterdir()) == []


# --- races ---

RACE = """
import sys, time
from pathlib import Path
from tiling.errors import InputError
from tiling.lease import lease
path, count = Path(sys.argv[1]), Path(sys.argv[1]).with_name("count")
done = 0
end = time.monotonic() + 60
while done < 10 and time.monotonic() < end:
    try:
        with lease(path):
            before = int(count.read_text())
            time.sleep(0.002)
            count.write_text(str(before + 1))
            done += 1
    except InputError:
        time.sleep(0.001)
print(done)
"""


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_who_come_at_once_one_gets_it(tmp_path, dead):
    (tmp_path / "count").write_text("0")
    if dead:
        written(tmp_path / "a.zarr", replace(leases._myself(), token="before", started="1"))
    command = [sys.executable, "-c", RACE, str(tmp_path / "a.zarr")]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    done = [int(racer.communicate()[0]) for racer in racers]
    assert int((tmp_path / "count").read_text()) == sum(done) == 50
    assert [p.name for p in tmp_path.iterdir()] == ["count"]


def test_of_many_who_find_it_dead_one_takes_it_over(tmp_path):
    """Each tries once and keeps what it gets: two would both have it."""
    for attempt in range(30):
        path = tmp_path / f"{attempt}.zarr"
        written(path, replace(leases._myself(), token="before", started="1"))
        one_gets_it(path)


# --- stores ---

SOURCE = ArraySource(np.random.default_rng(0).integers(0, 99, (2, 40, 40)).astype(np.uint8))
GRID = Grid.regular((40, 40), 8, 0.25, 20)
PREDICT = Identity(2, (8, 8))


def test_a_store_in_use_is_neither_made_nor_written_nor_removed(tmp_path):
    path = tmp_path / "a.zarr"
    store = tiling.create(path, SOURCE, GRID, PREDICT)
    with hold(path) as process:
        for call in (
            lambda: tiling.create(path, SOURCE, GRID, PREDICT),
            lambda: tiling.segment(SOURCE, PREDICT, store),
            lambda: remove(path),
        ):
            with refused(path, f"process {process.pid}"):
                call()
        assert tiling.open_store(path).pending() == [0, 1, 2, 3]
        says = tiling.verify(store, SOURCE)[0]
        assert (says.name, says.passed) == ("under way", True)
        assert f"process {process.pid}" in says.detail
        process.kill()
    tiling.segment(SOURCE, PREDICT, store)
    assert [c.name for c in tiling.verify(store, SOURCE) if c.passed] == ["complete", "intact", "source geometry"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_run_that_was_taken_over_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    store = tiling.create(tmp_path / "a.zarr", SOURCE, GRID, PREDICT)

    def lose(_: object) -> None:
        written(tmp_path / "a.zarr", stranger())
        time.sleep(0.3)

    with refused("taken over", "node7"):
        tiling.segment(SOURCE, PREDICT, store, on_block=lose)


def test_a_worker_of_an_ended_run_does_not_write_into_the_next_run_s_store(tmp_path):
    old = tiling.create(tmp_path / "a.zarr", SOURCE, GRID, PREDICT)
    remove(tmp_path / "a.zarr")
    with refused("deleted or replaced"):
        tiling.run_blocks(SOURCE, PREDICT, old, [0])
    new = tiling.create(tmp_path / "a.zarr", SOURCE, GRID, replace(PREDICT, digest="other weights"))
    with refused("deleted or replaced"):
        tiling.run_blocks(SOURCE, PREDICT, old, [0])
    assert (new.read(tiling.Box.whole((40, 40))) == 255).all()
