"""What Dask costs a block: time, and memory of the scheduler, with a source and a model that cost next to nothing.

    python benchmarks/scheduler.py [--blocks 100000] [--workers 2] [--json FILE]

Blocks of 16 x 16 pixels go through `tiling.run_blocks` on a `LocalCluster`, several a task, and are written as in every
run. It lies in a process of its own so that its memory is the scheduler's. Then empty functions on the same cluster, a
task each and as many in flight. Some blocks are computed in this process too: what scheduling costs is the time on the
cluster less that of the blocks over the workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

import tiling
from tiling import Box, Grid
from tiling.engine import _IN_FLIGHT, _LONGEST
from tiling.sources import Part, Pixels, all_valid
from tiling.space import Space
from tiling.store import Store
from tiling.strip import compute_strip

SIDE = 16
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of a run, at which memory is looked at
ALONE = 200  # blocks that are computed in this process


@dataclass(frozen=True)
class Blank:
    """An image of zeros, of as many blocks as are asked for."""

    blocks: int
    uri: str = "blank"
    channels: int = 1
    fingerprint: str = "blank"
    parts: tuple[Part, ...] = (Part("blank", 1),)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("uint8")

    @property
    def space(self) -> Space:
        rows = math.isqrt(self.blocks)
        shape = (rows * SIDE, math.ceil(self.blocks / rows) * SIDE)
        return Space(shape, ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)), "")

    def read(self, box: Box) -> Pixels:
        return Pixels(np.zeros((1, *box.shape), np.uint8), all_valid(box.shape), 0)


@dataclass(frozen=True)
class Same:
    """A model that finds the first of two classes everywhere."""

    tile: tuple[int, ...] = (SIDE, SIDE)
    channels: int = 1
    ndim: int = 2
    batch: int = 1
    digest: str = "same"
    logits: bool = False

    @property
    def classes(self) -> list[tuple[int, str, str, None]]:
        return [(0, "one", "#000000", None), (1, "other", "#ffffff", None)]

    def place(self, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[Any]:
        return values

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate([1 - batch, batch], axis=1).astype(np.float32)

    def peak_memory(self) -> int:
        return 0


def nothing(number: int) -> int:
    """What a task costs that does nothing."""
    return number


@dataclass(frozen=True)
class Run:
    """Milliseconds a block: of the clock, and of a core for the scheduler and for this process, whatever else runs.

    And MiB of the scheduler's process at each of `SHARES`.
    """

    milliseconds: float
    scheduling: float
    submitting: float
    memory: list[float]


def serve(workers: int, pipe: Connection) -> None:
    """A cluster until the pipe is closed."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        pipe.send(cluster.scheduler_address)
        pipe.recv()


@contextmanager
def cluster(workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a scheduler with so many workers."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(workers, there))
    process.start()
    try:
        yield here.recv(), psutil.Process(process.pid)
    finally:
        here.send(None)
        process.join()


def through_engine(executor: Any, store: Store, source: Blank, slots: int, count: Callable[[], None]) -> None:
    """The blocks, as `lmseg segment --workers` has them computed."""
    blocks = range(store.grid.n_blocks)
    tiling.run_blocks(source, Same(), store, blocks, executor=executor, on_block=lambda _: count(), slots=slots)


def empty(executor: Any, blocks: int, count: Callable[[], None]) -> None:
    """Empty functions, of which as many are in flight as the engine has."""
    numbers, done, running = iter(range(blocks)), SimpleQueue(), 0
    while True:
        for number in itertools.islice(numbers, _IN_FLIGHT - running):
            running += 1
            executor.submit(nothing, number).add_done_callback(done.put)
        if not running:
            return
        done.get().result()
        running -= 1
        count()


def measured(call: Callable[[Callable[[], None]], None], blocks: int, scheduler: psutil.Process) -> Run:
    """Times `call`, which calls what it is given after each block."""
    looks = {math.ceil(share * blocks) for share in SHARES}
    done, memory = 0, []

    def count() -> None:
        nonlocal done
        done += 1
        if done in looks:
            memory.append(round(scheduler.memory_info().rss / 2**20, 1))

    def clocks() -> tuple[float, float, float]:
        times = scheduler.cpu_times()
        return time.perf_counter(), times.user + times.system, time.process_time()

    before = clocks()
    call(count)
    return Run(*(round(1000 * (b - a) / blocks, 2) for a, b in zip(before, clocks(), strict=True)), memory)


def store_of(folder: Path, blocks: int) -> tuple[Blank, Store]:
    """A source, and the store of a run on it."""
    source = Blank(blocks)
    grid = Grid.regular(source.space.shape, tile=SIDE, overlap=0, block=SIDE)
    return source, tiling.create(folder / f"{blocks}.zarr", source, grid, Same())


def alone(source: Blank, store: Store) -> float:
    """Milliseconds a block in this process, one after the other."""
    start = time.perf_counter()
    for strip in store.grid.strips(range(ALONE), _LONGEST):
        compute_strip(source, Same(), store, strip)
    return 1000 * (time.perf_counter() - start) / ALONE


def measure(blocks: int, workers: int, folder: Path) -> dict[str, Any]:
    """Milliseconds a block of everything, and memory."""
    from distributed import Client

    source, store = store_of(folder, blocks)
    n = store.grid.n_blocks
    block = alone(source, store)
    store.forget(range(ALONE))
    with cluster(workers) as (address, scheduler), Client(address, set_as_default=False) as client:
        executor = client.get_executor(pure=False)
        tiling.run_blocks(source, Same(), store, range(500), executor=executor)  # imports, connections
        store.forget(range(500))
        engine = measured(lambda count: through_engine(executor, store, source, workers, count), n, scheduler)
        plain = measured(lambda count: empty(executor, n, count), n, scheduler)
    return {
        "blocks": n,
        "workers": workers,
        "blocks_a_task": len(store.grid.strips(range(n), _LONGEST)[0]),
        "ms_alone": round(block, 2),
        "ms_scheduling": round(engine.milliseconds - block / workers, 2),
        "shares": SHARES,
        "through run_blocks": asdict(engine),
        "empty functions": asdict(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where figures are written"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.blocks, arguments.workers, Path(folder))
    shares = " | ".join(f"MiB at {share:.0%}" for share in SHARES)
    print(f"| | ms a block | scheduler, ms of a core | client, ms of a core | {shares} |")
    print("| --- |" + " ---: |" * (len(SHARES) + 3))
    for name in ("through run_blocks", "empty functions"):
        run = figures[name]
        cells = [run["milliseconds"], run["scheduling"], run["submitting"], *run["memory"]]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    print(
        f"{figures['blocks']} blocks, {figures['workers']} workers; a block alone takes {figures['ms_alone']} ms, "
        f"which leaves {figures['ms_scheduling']} ms of scheduling"
    )
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    # By its name: workers find its classes there.
    from scheduler import main as imported

    imported()
