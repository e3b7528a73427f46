"""The flows `segment-region` and `segment-volume`: the stages of a run as Prefect tasks.

Each takes one pydantic model instead of a list of keywords, so that names, defaults and checks are written once for
the form, the command line and the deployments, and the server refuses a wrong value before a run starts. Nothing is
cached or persisted by Prefect: a run resumes by the store's own manifest.
"""

import errno
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from itertools import chain
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import Task, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectConcurrentFuture, PrefectFuture
from prefect.runtime import task_run
from prefect.states import Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows import stages
from flows.parameters import Parameters, RegionParameters, VolumeParameters
from lmseg_core.errors import ModelError
from tiling import BlockError, Grid, InputError

_P = ParamSpec("_P")
_R = TypeVar("_R")

# A task run costs up to 10 ms. A block of 1024 x 4096 pixels takes six seconds on two cores: sixteen are a minute of
# work, and four hundred groups keep the page of the largest run readable.
_BLOCKS = 16
_GROUPS = 400
# Groups in flight. They only submit and wait, so a few of them keep a cluster of a hundred processes fed.
_THREADS = 8
_SECONDS = 5.0

_runner = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(_THREADS))

# What the operating system says that no retry will change.
_LASTING = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def can_pass(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may be gone on the next try: a lost worker or connection, a failed network read."""
    # Slow to import, and only needed once something failed.
    from distributed import KilledWorker

    error = state.data
    return isinstance(error, KilledWorker) or (isinstance(error, OSError) and error.errno not in _LASTING)


class _Progress:
    """A progress artifact over all groups, written every few seconds because each write takes 40 ms."""

    def __init__(self, key: str, total: int) -> None:
        self._total = total
        self._done: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._written = time.monotonic()
        self._artifact = cast(
            UUID,
            create_progress_artifact(
                0.0 if total else 100.0, key=f"{key}-progress", description=f"{total} blocks to do"
            ),
        )

    def add(self, source: str, block: int) -> None:
        """Count one block of one source."""
        with self._lock:
            # A set, because a retried group reports a block again.
            self._done.add((source, block))
            done = len(self._done)
            if done < self._total and time.monotonic() - self._written < _SECONDS:
                return
            self._written = time.monotonic()
            # A server that does not answer for a moment must not cost a group its work.
            with suppress(httpx.HTTPError):
                update_progress_artifact(
                    self._artifact, 100 * done / self._total, f"{done} of {self._total} blocks done"
                )


def _stage(name: str, label: str) -> Callable[[Callable[_P, _R]], Task[_P, _R]]:
    """A decorator: a task that tries again what can pass, and of which Prefect keeps no result."""

    def wrap(call: Callable[_P, _R]) -> Task[_P, _R]:
        return Task(
            call,
            name=name,
            task_run_name=label,
            retries=3,
            retry_delay_seconds=[5, 20, 60],
            retry_condition_fn=can_pass,
            cache_policy=NO_CACHE,
            persist_result=False,
        )

    return wrap


def _as_is(value: _R) -> _R:
    """`value` as an argument of a task that Prefect neither copies nor walks through."""
    return cast(_R, quote(value))


@_stage("prepare", "prepare")
def _prepare(parameters: Parameters) -> list[stages.Run]:
    return stages.prepare(parameters)


@_stage("segment", "segment {run.name} from block {blocks[0]}")
def _segment(run: stages.Run, blocks: Sequence[int], executor: Executor, progress: _Progress) -> None:
    if task_run.run_count > 1:
        # A retry owes only what the lost attempt did not write.
        left = {*stages.pending(run)}
        blocks = [block for block in blocks if block in left]
    seconds: Counter[str] = Counter()

    def count(report: stages.BlockReport) -> None:
        seconds.update(report.seconds)
        progress.add(run.source, report.block)

    stages.compute(run, blocks, executor, count)
    spent = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
    get_run_logger().info("%s: %d blocks done; %s", run.name, len(blocks), spent)


@_stage("finish", "finish {run.name}")
def _finish(run: stages.Run) -> stages.Report:
    return stages.finish(run)


def _run(key: str, parameters: Parameters) -> list[dict[str, Any]] | State[Any]:
    """Segment every source: its summaries in the order of the sources, or a Failed state for bad input."""
    try:
        runs = _prepare(_as_is(parameters))
        with stages.hold(runs), stages.workers(parameters) as executor:
            reports = _compute(key, runs, executor)
    except (InputError, ModelError) as error:
        return Failed(message=str(error), data=error)
    create_markdown_artifact(
        "\n\n".join(report.markdown() for report in reports),
        key=key,
        description=f"{len(reports)} of {len(runs)} segmented with {parameters.model}",
    )
    return [report.summary() for report in reports]


def split(runs: Sequence[tuple[Grid, Sequence[int]]]) -> list[list[list[int]]]:
    """The blocks of every source in groups for one task each; at least a minute of work where there is that much.

    At most `_GROUPS` groups and one more a source. Blocks of a group lie one below another as far as they do.
    """
    size = max(_BLOCKS, math.ceil(sum(len(blocks) for _, blocks in runs) / _GROUPS))
    ordered = [list(chain.from_iterable(grid.strips(blocks, size))) for grid, blocks in runs]
    return [[blocks[start : start + size] for start in range(0, len(blocks), size)] for blocks in ordered]


def _compute(key: str, runs: Sequence[stages.Run], executor: Executor) -> list[stages.Report]:
    todo = [(run.store.grid, stages.pending(run)) for run in runs]
    progress = _Progress(key, sum(len(blocks) for _, blocks in todo))
    groups = [
        [_segment.submit(_as_is(run), blocks, _as_is(executor), _as_is(progress)) for blocks in parts]
        for run, parts in zip(runs, split(todo), strict=True)
    ]
    try:
        reports = []
        for run, futures in zip(runs, groups, strict=True):
            failures = []
            for future in futures:
                try:
                    future.result()
                except BlockError as error:
                    failures.append(error)
            # A block that fails costs the others of its image nothing: they need not be computed again.
            if failures:
                raise failures[0]
            reports.append(_finish(_as_is(run)))
        return reports
    finally:
        # After a failure the groups that have not begun would only fail too.
        for future in chain.from_iterable(groups):
            cast(PrefectConcurrentFuture[None], future).wrapped_future.cancel()


@flow(name="segment-region", task_runner=_runner, persist_result=False)
def segment_region(parameters: RegionParameters) -> list[dict[str, Any]] | State[Any]:
    """Segment rasters into georeferenced label maps.

    Returns a summary for every source: files, classes with areas, seconds a stage. Fails at once, with one
    line that says why, for input or a model that cannot be used; tries again what can pass.
    """
    return _run("segment-region", parameters)


@flow(name="segment-volume", task_runner=_runner, persist_result=False)
def segment_volume(parameters: VolumeParameters) -> list[dict[str, Any]] | State[Any]:
    """Segment volumes into label maps that lie where the scan lies.

    Returns a summary for every source: files, classes with volumes, seconds a stage. Fails at once, with one
    line that says why, for input or a model that cannot be used; tries again what can pass.
    """
    return _run("segment-volume", parameters)
