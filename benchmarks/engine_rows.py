"""The rows of engine.py: each prepares, and returns what is timed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

OVERLAP = 0.25
TILE = {2: (256, 256), 3: (64, 64, 64)}
CHANNELS = {2: 3, 3: 1}
CLASSES = 4
BATCH = 2  # of the rows that are not ours; torch's own threads compute a batch


def read_whole(folder: Path, ndim: int) -> Any:
    """(1, C, *S) float32, normalised."""
    import torch

    if ndim == 2:
        import rasterio

        with rasterio.open(folder / "raster.tif") as image:
            values = image.read()
    else:
        import nibabel

        image = nibabel.load(folder / "volume.nii")
        values = np.asarray(image.dataobj).T[None]
    return torch.from_numpy((values.astype(np.float32) - 128) / 70)[None]


def network_of(folder: Path, ndim: int) -> Any:
    """The network as the predictor has it, from (B, C, *tile) to logits."""
    from lmseg_core import Predictor

    return Predictor.from_pretrained(folder / f"model{ndim}", device="cpu")._network


def formats(ndim: int) -> Any:
    import torch

    return {2: torch.channels_last, 3: torch.channels_last_3d}[ndim]


def scorer(folder: Path, ndim: int) -> Callable[[Any], Any]:
    """From tiles (B, C, *tile) to logits, warmed up."""
    import torch

    network = network_of(folder, ndim)

    def score(batch: Any) -> Any:
        return network(batch.contiguous(memory_format=formats(ndim))).logits

    with torch.inference_mode():
        score(torch.zeros(BATCH, CHANNELS[ndim], *TILE[ndim]))
    return score


def bare(folder: Path, ndim: int) -> Callable[[], Any]:
    """The network on every tile of the grid, one thread a tile, as many at a time as there are cores."""
    import torch

    from tiling import Box, Grid

    threads = os.cpu_count() or 1
    network, image = network_of(folder, ndim), read_whole(folder, ndim)
    grid = Grid.regular(tuple(image.shape[2:]), TILE[ndim], OVERLAP)
    tiles = list(grid.tiles(Box.whole(grid.shape)))

    def score(tile: Box) -> None:
        with torch.inference_mode():
            network(image[(slice(None), slice(None), *tile.slices)].contiguous(memory_format=formats(ndim)))

    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(score, tiles[: 2 * threads]))
    return lambda: list(pool.map(score, tiles))


def lmseg(folder: Path, ndim: int) -> Callable[[], Any]:
    """`lmseg segment` from the open command to the verified export."""
    from flows import stages
    from flows.parameters import RegionParameters, VolumeParameters

    source = str(folder / ("raster.tif", "volume.nii")[ndim - 2])
    kind = (RegionParameters, VolumeParameters)[ndim - 2]
    out = Path(tempfile.mkdtemp(dir=folder))
    told = kind(sources=[source], output=out, model=str(folder / f"model{ndim}"), overlap=OVERLAP, device="cpu")
    network_of(folder, ndim)

    def run() -> Any:
        with stages.workers(told) as executor:
            (found,) = stages.prepare(told)
            with stages.hold([found]):
                stages.compute(found, stages.pending(found), executor)
                report = stages.finish(found)
        return {"device": report.device(), "seconds": report.seconds}

    return run


def monai(folder: Path, ndim: int, **options: Any) -> Callable[[], Any]:
    """MONAI's sliding windows over the whole image, Gaussian weights."""
    import torch
    from monai.inferers import sliding_window_inference

    score = scorer(folder, ndim)

    def run() -> None:
        with torch.inference_mode():
            scores = sliding_window_inference(
                read_whole(folder, ndim), TILE[ndim], BATCH, score, overlap=OVERLAP, mode="gaussian", **options
            )
            scores[0].argmax(0).to(torch.uint8).numpy()  # type: ignore[index, union-attr]

    return run


def monai_buffered(folder: Path, ndim: int) -> Callable[[], Any]:
    """The same with its buffer, which keeps only some rows of windows on the device."""
    return monai(folder, ndim, buffer_steps=1, buffer_dim=0)


def monai_half(folder: Path, ndim: int) -> Callable[[], Any]:
    """The same with the overlap that MONAI's tutorials and nnU-Net have."""
    global OVERLAP
    OVERLAP = 0.5
    return monai(folder, ndim)


def monai_zarr(folder: Path, ndim: int) -> Callable[[], Any]:
    """MONAI's PatchInferer, whose ZarrAvgMerger keeps sums on disk and weighs all pixels of a tile alike."""
    import torch
    from monai.inferers import PatchInferer, SlidingWindowSplitter, ZarrAvgMerger
    from zarr.storage import LocalStore

    score = scorer(folder, ndim)
    scratch = Path(tempfile.mkdtemp(dir=folder))

    def run() -> None:
        with torch.inference_mode():
            image = read_whole(folder, ndim)
            splitter = SlidingWindowSplitter(TILE[ndim], OVERLAP)
            merged = (1, CLASSES, *splitter.get_padded_shape(image))
            inferer = PatchInferer(
                splitter, ZarrAvgMerger, batch_size=BATCH, merged_shape=merged,
                chunks=(1, CLASSES, *TILE[ndim]), store=LocalStore(scratch / "out"),
                # Of its own, for the default is deleted while it is used.
                value_store=LocalStore(scratch / "values"), count_store=LocalStore(scratch / "counts"),
            )  # fmt: skip
            scores = inferer(image, score)
            rows = TILE[ndim][0]
            for top in range(0, image.shape[2], rows):
                scores[0, :, top : top + rows].argmax(0).astype(np.uint8)

    return run


def torchio(folder: Path, ndim: int) -> Callable[[], Any]:
    """TorchIO's GridSampler and GridAggregator with Hann weights; a raster is a volume of one plane."""
    import torch
    import torchio as tio

    score = scorer(folder, ndim)
    flat = (1,) * (3 - ndim)
    overlap = tuple(round(n * OVERLAP) for n in TILE[ndim])

    def run() -> None:
        with torch.inference_mode():
            image = read_whole(folder, ndim)[0]
            subject = tio.Subject(image=tio.ScalarImage(tensor=image.reshape(*image.shape, *flat)))
            sampler = tio.GridSampler(subject, (*TILE[ndim], *flat), (*overlap, *(0,) * (3 - ndim)))
            aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
            for batch in tio.SubjectsLoader(sampler, batch_size=BATCH):
                tiles = batch["image"][tio.DATA]
                logits = score(tiles.reshape(*tiles.shape[: 2 + ndim]))
                aggregator.add_batch(logits.reshape(*logits.shape, *flat), batch[tio.LOCATION])
            aggregator.get_output_tensor().argmax(0).to(torch.uint8).numpy()

    return run


def map_overlap(folder: Path, ndim: int) -> Callable[[], Any]:
    """dask.array.map_overlap: tiles that see their neighbours' margins and are not blended."""
    import dask.array as da
    import torch

    network = network_of(folder, ndim)
    torch.set_num_threads(1)
    margin = round(TILE[ndim][0] * OVERLAP / 2)

    def score(block: Any) -> Any:
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(block))[None]
            return network(batch.contiguous(memory_format=formats(ndim))).logits[0].argmax(0)[None].numpy()

    def run() -> None:
        image = read_whole(folder, ndim)[0].numpy()
        step = TILE[ndim][0] - 2 * margin
        array = da.from_array(image, chunks=(image.shape[0], *(step,) * ndim))
        labels = array.map_overlap(
            score, depth=(0, *(margin,) * ndim), boundary="reflect", dtype=np.int64, chunks=(1, *array.chunks[1:])
        )
        labels.astype(np.uint8).compute(scheduler="threads", num_workers=os.cpu_count())

    score(np.zeros((CHANNELS[ndim], *TILE[ndim]), np.float32))
    return run


ROWS: dict[str, Callable[[Path, int], Callable[[], Any]]] = {
    "bare": bare,
    "lmseg": lmseg,
    "MONAI": monai,
    "MONAI buffered": monai_buffered,
    "MONAI overlap 0.5": monai_half,
    "MONAI ZarrAvgMerger": monai_zarr,
    "TorchIO": torchio,
    "map_overlap": map_overlap,
}
