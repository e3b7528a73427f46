"""Kill -9 at random moments: no block that was done is lost, and the labels are those of an unbroken run.

The suite kills four times. Before a release: `pytest tests/crash --kills 50`, some ten minutes.
"""

import fcntl
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio

import tiling
from tests.tiling.predictors import Mixing
from tests.tiling.runs import EVERYTHING, image_of, maps, run, same
from tiling import Box, Grid
from tiling.strip import IN_HAND

# Forked from a process that has loaded torch, a run starts in a moment, and most kills meet it at work.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["flows.cli", "flows.console", "flows.preview", "lmseg_core.predictor"])


def note(log: str, words: object) -> None:
    """Adds a line, whole also where many processes write and one is killed."""
    with open(log, "a") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.write(f"{words}\n")


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


# --- the command line ---


def _lmseg(arguments: list[str], log: str) -> None:
    """`lmseg ARGUMENTS` in a process group of its own; each block that is begun is a line of `log`."""
    os.setsid()
    import tiling.strip
    from flows.cli import main

    answer = tiling.strip._Column.answer

    def noted(self: Any, block: Any) -> Any:
        note(log, block.number)
        return answer(self, block)

    tiling.strip._Column.answer = noted  # type: ignore[method-assign]
    sys.argv = ["lmseg", *arguments]
    with open(f"{log}.err", "a") as errors:
        sys.stdout = sys.stderr = errors
        main()


def start(folder: Path, log: Path, wide: str, model: str) -> BaseProcess:
    arguments = [
        "segment",
        wide,
        "-m",
        model,
        "--tile",
        "256",
        "--overlap",
        "0",
        "--memory",
        "444MiB",
        "-o",
        str(folder),
    ]
    process = FORKS.Process(target=_lmseg, args=(arguments, str(log)))
    process.start()
    return process


def state(folder: Path) -> set[int]:
    """The blocks that are done."""
    if not (folder / "wide.zarr").exists():
        return set()
    store = tiling.open_store(folder / "wide.zarr")
    return {*range(store.grid.n_blocks)} - {*store.pending()}


def results(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    store = tiling.open_store(folder / "wide.zarr")
    assert all(c.passed for c in tiling.verify(store, None) if c.name != "source geometry")
    with rasterio.open(folder / "wide_labels.tif") as labels:
        return store.read(Box.whole(store.area.box.shape)), labels.read(1), store.counts()


def test_a_killed_command_goes_on_where_it_was(kills: int, wide: str, raster_model: str, tmp_path: Path) -> None:
    chance = random.Random(kills)
    first = FORKS.Process(target=int)
    first.start()
    first.join()
    begun = time.monotonic()
    start(tmp_path / "whole", tmp_path / "log", wide, raster_model).join()
    duration = time.monotonic() - begun
    expected = results(tmp_path / "whole")
    killed = runs = lost = 0
    moments = {"before the first block": 0, "among the blocks": 0, "after the last": 0}
    while killed < kills or runs == 0:
        folder = tmp_path / f"run {runs}"
        while True:
            done, log = state(folder), tmp_path / f"log {killed} {runs}"
            process = start(folder, log, wide, raster_model)
            if killed < kills:
                process.join(chance.uniform(0, duration))
            else:
                process.join()
            if ended := process.exitcode is not None:
                assert process.exitcode == 0, log.with_suffix(".err").read_text()
            else:
                # In its first moment it has no group yet.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join()
                killed += 1
            begun_now = [int(line) for line in lines(log)]
            after = state(folder)
            assert len(set(begun_now)) == len(begun_now)
            assert not done & {*begun_now}, "a block that was done is done again"
            assert done <= after, "a block that was done is lost"
            again = {*begun_now} - after
            assert len(again) <= IN_HAND
            lost += len(again)
            if ended:
                break
            moments["among the blocks" if again else "after the last" if begun_now else "before the first block"] += 1
            log.unlink(missing_ok=True)
        assert all(np.array_equal(a, b) for a, b in zip(results(folder), expected, strict=True))
        assert not (folder / ".wide.zarr.lease").exists()
        runs += 1
    print(f"{killed} kills in {runs} runs of {duration:.1f} s: {lost} blocks begun and lost; {moments}")


# --- Dask ---


@dataclass(frozen=True)
class Noted(Mixing):
    """Each block that is begun, not only read ahead, is a line of `log`, and takes a while."""

    log: str = ""

    def place(self, values: Any, valid: Any) -> Any:
        note(self.log, values.shape)
        time.sleep(0.05)
        return super().place(values, valid)


def test_a_killed_dask_worker_costs_what_it_had_in_hand(kills: int, tmp_path: Path) -> None:
    import dask
    from distributed import Client, LocalCluster

    chance = random.Random(kills)
    image, grid = image_of((240, 200)), Grid.regular((240, 200), 16, 0.4, 24)
    expected = maps(run(image, grid, Mixing(2, grid.tile), tmp_path, outputs=EVERYTHING))
    wanted, killed, runs, begun = kills // 2, 0, 0, 0
    with (
        # As the command line has it.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        LocalCluster(
            n_workers=2, threads_per_worker=IN_HAND, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        while killed < wanted:
            log = tmp_path / f"log {runs}"
            predict = Noted(2, grid.tile, log=str(log))
            store = tiling.create(tmp_path / f"{runs}.zarr", image, grid, predict, outputs=EVERYTHING)
            ended, hit = threading.Event(), []
            # Fewer than a block may lose before Dask gives it up.
            most = min(2, wanted - killed)

            def kill(ended: threading.Event = ended, hit: list[int] = hit, most: int = most) -> None:
                while len(hit) < most and not ended.wait(chance.uniform(0.2, 3)):
                    # Those at work: Dask starts no other in the place of one that is killed while it starts.
                    processes = [nanny.process for nanny in cluster.workers.values()]
                    pids = [p.pid for p in processes if p is not None and p.status.name == "running"]
                    with suppress(IndexError, psutil.NoSuchProcess):
                        pid = chance.choice(pids)
                        psutil.Process(pid).kill()
                        hit.append(pid)

            killer = threading.Thread(target=kill, daemon=True)
            killer.start()
            tiling.segment(image, predict, store, executor=client.get_executor(pure=False, retries=3))
            ended.set()
            killer.join()
            assert store.pending() == []
            assert same(maps(store), expected)
            assert all(c.passed for c in tiling.verify(store, None) if c.name != "source geometry")
            more = len(lines(log)) - grid.n_blocks
            assert 0 <= more <= len(hit) * 2 * IN_HAND
            killed, runs, begun = killed + len(hit), runs + 1, begun + more
    print(f"{killed} workers killed in {runs} runs: {begun} blocks begun again")
