"""The stages of a run as plain functions, which the command line and the Prefect flows both call.

prepare -> hold(pending -> compute -> finish)
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiling
from flows.binding import bind_model
from flows.exports import PREVIEW, REPORT, all_files_of, beside, export_all, files_of
from flows.parameters import Parameters, VolumeParameters
from flows.report import Report, write_run_json
from tiling import Area, BlockReport, Box, Grid, InputError, OutputError, Predict, Source, Store
from tiling.address import Address, address_of
from tiling.budget import check_room, choose_block
from tiling.damage import mend
from tiling.extras import require
from tiling.heap import ENVIRONMENT
from tiling.lease import lease
from tiling.ownership import Owner
from tiling.place import place_of
from tiling.sources import is_volume, present
from tiling.sources.fingerprint import same
from tiling.store import remove

_CLUSTER = 8

__all__ = ["BlockReport", "Report", "Run", "compute", "finish", "hold", "pending", "prepare", "workers"]


@dataclass(frozen=True)
class Run:
    """One image on its way: what is read, who predicts, and where it goes. Small and picklable.

    Attributes:
        source: the image as the user named it.
        name: stem of every file written.
        seconds: spent in preparing.
        warnings: one line each, for the user.
    """

    source: str
    name: str
    image: Source
    predict: Predict
    store: Store
    parameters: Parameters
    seconds: float
    warnings: tuple[str, ...]

    @property
    def owner(self) -> Owner:
        """Who writes the files beside the store."""
        return _owner(address_of(self.store.path), self.parameters)


def prepare(parameters: Parameters) -> list[Run]:
    """Opens every image and the model, checks that they fit, then creates or resumes a store for each.

    Raises:
        InputError, ModelError: one line with the file, the value and the fix; nothing is left behind. So for a file
            in the way that the run did not write.
        ConnectionError: where object storage does not answer.
    """
    _check_distinct(parameters.sources)
    if parameters.cluster is not None or parameters.workers > 1:
        require("cluster", "--workers and --cluster")
    # All of them before the first store is made: a bad last source must not cost hours, or leave the first one's.
    fits = [_fit(source, parameters) for source in parameters.sources]
    for fit in fits:
        # Again when a file gets its name; here it costs nobody hours.
        path = _store_path(fit, parameters)
        _owner(path, parameters).check(files_of(path, fit.image.space.ndim, fit.outputs))
    place_of(parameters.output).check_writable()
    # Labels shrink at least to an eighth on disk; the store and the staged export lie there at once.
    needed = [2 * fit.grid.area.size // 8 for fit in fits]
    if isinstance(parameters.output, Path):
        check_room(parameters.output, sum(needed))
    else:
        # Where exports are staged, one after the other.
        check_room(Path(tempfile.gettempdir()), max(needed), "set TMPDIR to a larger disk")
    made: list[Address] = []
    with ExitStack() as leases:
        # All of them before the first store is touched: a run that is under way must not cost another its store.
        for fit in fits:
            leases.enter_context(lease(_store_path(fit, parameters)))
        try:
            return [_begin(fit, parameters, made) for fit in fits]
        except InputError:
            for path in made:
                remove(path)
            raise


@contextmanager
def hold(runs: Sequence[Run]) -> Iterator[None]:
    """Keeps everybody else from writing the stores of these runs: from before `pending` until after `finish`.

    Raises:
        InputError: where another run is under way on one of them.
    """
    with ExitStack() as leases:
        for run in runs:
            leases.enter_context(lease(run.store.path))
        yield


def foresee(source: str, parameters: Parameters) -> dict[str, Any]:
    """What `prepare` and `compute` would do, as facts for people; writes nothing.

    Raises:
        InputError, ModelError: where the run would be refused.
    """
    fit = _fit(source, parameters)
    figures = tiling.plan(fit.image, fit.grid, fit.predict, outputs=fit.outputs)
    return {
        "image": source,
        "model": parameters.model,
        "area": " x ".join(map(str, fit.area.box.shape)),
        "tile": " x ".join(map(str, figures.tile)),
        "batch": figures.batch,
        "block": " x ".join(map(str, figures.block)),
        "tiles": figures.tiles,
        "blocks": figures.blocks,
        "tiles computed twice": f"{figures.recomputed:.1%}",
        "memory": f"{figures.memory / 2**20:.0f} MiB a process",
        **({"device memory": f"{figures.device / 2**20:.0f} MiB a process"} if figures.device else {}),
        "disk": f"{figures.disk / 2**20:.1f} MiB at most",
        "network time": f"{figures.seconds:.0f} s, {figures.tiles / max(figures.seconds, 1e-9):.1f} tiles/s",
        **({"doubtful": "; ".join(fit.doubts)} if fit.doubts else {}),
    }


@dataclass(frozen=True)
class _Fit:
    """An image, a model and the grid on which they meet."""

    source: str
    image: Source
    area: Area
    predict: Predict
    grid: Grid
    outputs: tuple[str, ...]
    doubts: tuple[str, ...]
    seconds: float


def _fit(source: str, parameters: Parameters) -> _Fit:
    start = time.perf_counter()
    # The image first: it is refused in a moment, the model takes seconds to load.
    image = open_image(source, parameters)
    area = area_of(image, parameters)
    if image.space.ndim == 3:
        from tiling.formats.nifti import check_length

        check_length(area.box.shape, source)
    predict, doubts = bind_model(image, area, parameters)
    outputs = tuple(n for n in ("probability", "uncertainty") if getattr(parameters, n))
    tile = tile_of(image, predict, parameters)
    grid = choose_block(image, predict, tile, parameters.overlap, parameters.memory, area=area, outputs=outputs)
    return _Fit(source, image, area, predict, grid, outputs, doubts, time.perf_counter() - start)


def _begin(fit: _Fit, parameters: Parameters, made: list[Address]) -> Run:
    """Creates or resumes the store of a run, and adds it to `made` if it is new."""
    path = _store_path(fit, parameters)
    owner = _owner(path, parameters)
    # What the earlier run wrote is this one's to replace.
    notes = owner.notes(all_files_of(path, fit.image.space.ndim)) if parameters.fresh else {}
    if parameters.fresh:
        remove(path)
    is_new = place_of(path).is_empty()
    store = tiling.create(path, fit.image, fit.grid, fit.predict, area=fit.area, outputs=fit.outputs)
    owner.restore(notes)
    if is_new:
        made.append(path)
    warnings = [f"{path}: {damage} and is computed again" for damage in mend(store)]
    if fit.image.space.ndim == 2 and not fit.image.space.crs:
        warnings.append(f"{fit.source} has no CRS; the results have none either")
    warnings += fit.doubts
    if missing := [str(number) for number, part in enumerate(fit.image.parts, 1) if part.missing]:
        warnings.append(f"{fit.source} is segmented without the model's source {', '.join(missing)}")
    return Run(fit.source, stem(fit.source), fit.image, fit.predict, store, parameters, fit.seconds, tuple(warnings))


def _store_path(fit: _Fit, parameters: Parameters) -> Address:
    return parameters.output / f"{stem(fit.source)}.zarr"


def _owner(store: Address, parameters: Parameters) -> Owner:
    return Owner(store, parameters.inputs, parameters.overwrite)


def pending(run: Run) -> list[int]:
    """Numbers of the blocks still to do."""
    return run.store.pending()


def compute(
    run: Run,
    blocks: Sequence[int],
    executor: Executor | None = None,
    on_block: Callable[[BlockReport], None] | None = None,
) -> None:
    """Segments some blocks.

    Raises:
        InputError: where the image cannot be read or the disk is full.
        BlockError: where the model fails on a block; the others are done then.
    """
    told = run.parameters
    # How many processes a cluster has is its own affair, and may change.
    slots = _CLUSTER if told.cluster is not None else told.workers
    tiling.run_blocks(run.image, run.predict, run.store, blocks, executor=executor, on_block=on_block, slots=slots)


def finish(run: Run) -> Report:
    """Exports, verifies and pictures a computed run, and writes `<stem>.run.json` last.

    Raises:
        InputError: where an export cannot be written.
        OutputError: where the image is not what was segmented, or an export not what the store holds.
        ConnectionError: where object storage does not answer.
    """
    from flows.preview import write_preview

    clock = time.perf_counter()
    # Reading has looked at the files that were opened; a mask or a header that is new beside them shows only here.
    if not same(open_image(run.source, run.parameters).fingerprint, run.image.fingerprint):
        raise OutputError(f"{run.source} changed while it was segmented; run again with --fresh")
    files = export_all(run.store, run.parameters.overwrite)
    exported = time.perf_counter()
    # The label map was compared with the store before it got its name.
    checks = tiling.verify(run.store, run.image)
    wrong = [f"{c.name}: {c.detail}" for c in checks if not c.passed]
    if wrong:
        raise OutputError(f"{run.store.path} failed its verification: {'; '.join(wrong)}")
    verified = time.perf_counter()
    files.append(write_preview(run.image, run.store, beside(run.store.path, PREVIEW), run.owner))
    seconds = {
        "prepare": run.seconds,
        **run.store.seconds(),
        "export": exported - clock,
        "verify": verified - exported,
        "preview": time.perf_counter() - verified,
    }
    report = Report.of(run.image, run.store, run.parameters, files, seconds, run.warnings)
    return write_run_json(report, beside(run.store.path, REPORT), run.owner)


@contextmanager
def workers(parameters: Parameters) -> Iterator[Executor]:
    """Where blocks run: threads of this process, processes of this machine, or a Dask cluster.

    Raises:
        InputError: where the cluster does not answer.
    """
    if parameters.cluster is None and parameters.workers == 1:
        with ThreadPoolExecutor(1, thread_name_prefix="strip") as executor:
            yield executor
        return
    import dask
    from distributed import Client, LocalCluster

    if parameters.cluster is not None:
        try:
            client = Client(parameters.cluster, set_as_default=False, timeout=10)
        except (OSError, ValueError) as error:
            message = f"the Dask scheduler {parameters.cluster} does not answer: {error}; start it first"
            raise InputError(message) from error
        with client:
            yield client.get_executor(pure=False)
        return
    threads = max(1, (os.cpu_count() or 1) // parameters.workers)
    with (
        # Dask forgets a process that is not back within 15 s, and loading torch takes longer on a busy machine: a run
        # would wait for ever for the last of them.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        LocalCluster(
            n_workers=parameters.workers,
            threads_per_worker=1,  # which reads and writes in threads of its own
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            # Dask's own limit counts what GDAL and torch keep for reuse as leaks; the plan keeps to --memory.
            memory_limit=0,
            env=ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client.get_executor(pure=False)


def open_image(source: str, parameters: Parameters) -> Source:
    """The image, with the bands or the form that the parameters choose.

    Raises:
        InputError: where it cannot be read, or is no image of the parameters' kind.
    """
    if isinstance(parameters, VolumeParameters):
        if not is_volume(source):
            raise InputError(f"{source} is no .nii or .nii.gz volume; use segment-region for rasters")
        return tiling.open(source, form=parameters.form, check=parameters.check)
    if is_volume(source):
        raise InputError(f"{source} is a volume; use segment-volume for volumes")
    bands = tuple(parameters.bands) if parameters.bands else None
    return tiling.open(source, bands=bands, check=parameters.check)


def area_of(image: Source, parameters: Parameters) -> Area:
    """What is asked for of an image.

    Raises:
        InputError: where the area misses it.
    """
    space = image.space
    if isinstance(parameters, VolumeParameters):
        if parameters.box is not None:
            return tiling.area_of_box(space, parameters.box)
    elif parameters.bbox is not None and parameters.area is not None:
        raise InputError("both a bounding box and an area of interest were given; choose one")
    elif parameters.bbox is not None:
        return tiling.area_of_bounds(space, parameters.bbox, parameters.bbox_crs)
    elif parameters.area is not None:
        return tiling.area_of_geojson(space, parameters.area)
    return Area(Box.whole(space.shape))


def tile_of(image: Source, predict: Predict, parameters: Parameters) -> tuple[int, ...]:
    """The tile asked for, or the model's own, cut to images that are smaller.

    Raises:
        InputError: where the tile asked for is larger than the image.
    """
    if parameters.tile is None:
        return tuple(map(min, predict.tile, image.space.shape))
    if parameters.tile > min(image.space.shape):
        raise InputError(
            f"a tile of {parameters.tile} is larger than {image.uri}, {' x '.join(map(str, image.space.shape))}; "
            f"pass --tile {min(image.space.shape)} or less"
        )
    return (parameters.tile,) * image.space.ndim


def stem(source: str) -> str:
    """The name that a source's results carry: `ct` for `/data/ct.nii.gz`, `a` for `-,https://host/a.tif?x=1`."""
    first = next(iter(present(source)), source)
    name = re.split(r"[?#]", first)[0].rstrip("/").rsplit("/", 1)[-1]
    for ending in (".nii.gz", ".ome.tif"):
        name = name.removesuffix(ending)
    return Path(name).stem


def _check_distinct(sources: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        if stem(source) in seen:
            raise InputError(
                f"{source} and {seen[stem(source)]} would both be written as {stem(source)}; "
                "rename one or segment them into two folders"
            )
        seen[stem(source)] = source


def reopen(store: Store) -> Source | None:
    """The image a store was made from, with the form it was placed by; None where it is gone."""
    for form in (None, "sform", "qform") if store.space.ndim == 3 else (None,):
        try:
            image = tiling.open(store.uri, form=form)
        except InputError:
            continue
        if form is None or image.space == store.space:
            return image
    return None
