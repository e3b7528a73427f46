"""What a run will take."""

from uuid import uuid4

import numpy as np
import pytest

import tiling
from tests.tiling.predictors import Constant, Identity, Small
from tests.tiling.refusals import refused
from tiling import ArraySource, Box, Grid
from tiling.area import Area
from tiling.budget import BASE, block_bytes, check_overlap, check_room, choose_block, plan, probe
from tiling.layout import CHUNK

MB = 2**20


def source_of(*shape, dtype="uint8"):
    """A picture of any size that takes no memory."""
    return ArraySource(np.broadcast_to(np.zeros(1, dtype), shape))


RASTER, VOLUME = source_of(3, 24_000, 24_000), source_of(1, 1024, 512, 512, dtype="int16")


def chosen(source, tile, memory, area=None, kind=Constant, n_classes=5, **options):
    shape = source.space.shape
    area, tiles = area or Area(Box.whole(shape)), (tile,) * len(shape)
    predict = kind(source.channels, tiles, batch=2, n_classes=n_classes)
    return choose_block(source, predict, tiles, 0.25, memory, area=area, **options)


@pytest.mark.parametrize("outputs", [(), ("probability", "uncertainty")])
@pytest.mark.parametrize(("source", "tile"), [(RASTER, 256), (RASTER, 1024), (VOLUME, 64), (VOLUME, 96)])
@pytest.mark.parametrize("memory", [1200, 2500, 8000])
def test_the_chosen_block_fits_the_memory_it_is_given_or_the_refusal_says_what_would_do(source, tile, memory, outputs):
    try:
        grid = chosen(source, tile, memory * MB, outputs=outputs)
    except tiling.InputError as error:
        least = int(str(error).split(" needs ")[1].split(" MiB")[0])
        assert least > memory
        grid = chosen(source, tile, least * MB, outputs=outputs)
        with refused(f"needs {least} MiB", f"--memory {least - 1}MiB", f"--memory {least}MiB", "--tile"):
            chosen(source, tile, (least - 1) * MB, outputs=outputs)
        memory = least
    scores = 3 * 2 * 4 * 5 * tile**source.space.ndim  # of a batch that is used and two under way
    assert BASE + scores + block_bytes(source, grid, 5, outputs) <= memory * MB
    assert grid.area == Box.whole(source.space.shape)
    assert grid.tile == (tile,) * source.space.ndim


def test_scores_of_many_classes_are_counted_where_they_lie_in_this_machine_s_memory():
    class Device(Constant):
        def peak_memory(self):
            return 1

    source = source_of(3, 4096, 4096)
    scores = 3 * 2 * 4 * 300 * 512**2 / MB  # 1800 MiB
    with refused("MiB", "--memory 2048MiB", "--tile"):
        chosen(source, 512, 2048 * MB, n_classes=300)
    grid = chosen(source, 512, 4096 * MB, n_classes=300)
    assert (BASE + block_bytes(source, grid, 300)) / MB + scores <= 4096
    assert chosen(source, 512, 2048 * MB, kind=Device, n_classes=300).block


def test_more_memory_never_costs_more_tiles():
    tiles = [chosen(VOLUME, 64, memory * MB).n_tiles for memory in (900, 1200, 1600, 2500, 5000)]
    assert tiles == sorted(tiles, reverse=True)


@pytest.mark.parametrize(("source", "tile", "most"), [(RASTER, 512, 1.2), (VOLUME, 64, 1.5)])
def test_with_memory_to_spare_few_tiles_are_computed_twice(source, tile, most):
    grid = chosen(source, tile, 16_000 * MB)
    once = Grid.regular(grid.shape, grid.tile, 0.25).n_tiles
    assert grid.n_tiles <= most * once


@pytest.mark.parametrize("tile", [128, 256, 512, 1024])
def test_at_the_usual_memory_borders_cost_a_twentieth_of_a_rasters_tiles(tile):
    source = source_of(3, 100_000, 100_000)
    once = Grid.regular(source.space.shape, (tile, tile), 0.25).n_tiles
    assert once < chosen(source, tile, 2048 * MB).n_tiles <= 1.05 * once


@pytest.mark.parametrize(
    ("shape", "narrower"), [((512,) * 3, True), ((1024,) * 3, True), ((1500, 2048, 2048), True), ((300,) * 3, False)]
)
def test_at_the_usual_memory_a_volumes_blocks_are_as_narrow_as_a_tenth_of_the_tiles_allows(shape, narrower):
    once = Grid.regular(shape, (64,) * 3, 0.25)
    grid = chosen(source_of(1, *shape, dtype="int16"), 64, 2048 * MB)
    assert grid.n_tiles <= 1.1 * once.n_tiles
    assert (grid.block[2] < shape[2]) is narrower
    thinner = Grid.regular(shape, (64,) * 3, 0.25, (*grid.block[:2], grid.block[2] - CHUNK[3]))
    assert thinner.n_tiles > 1.1 * once.n_tiles or grid.block[2] == 256


@pytest.mark.parametrize(("source", "tile"), [(RASTER, 512), (VOLUME, 64)])
def test_block_sides_are_whole_chunks_or_the_whole_side(source, tile):
    grid = chosen(source, tile, 2500 * MB)
    for axis in grid.axes:
        assert axis.block % CHUNK[len(grid.axes)] == 0 or axis.block == axis.stop - axis.start


def test_the_grid_is_of_the_area():
    area = Area(Box((100, 200), (5000, 9000)))
    assert chosen(RASTER, 512, 2500 * MB, area).area == area.box


def test_block_and_memory_do_not_depend_on_the_size_of_the_image():
    # Sides that tiles fill without a rest: the last ones share no more than the others.
    small, large = (source_of(3, side, side) for side in (512 + 62 * 384, 512 + 250 * 384))
    grids = [chosen(s, 512, 2500 * MB) for s in (small, large)]
    assert grids[0].block == grids[1].block
    assert block_bytes(small, grids[0], 5) == block_bytes(large, grids[1], 5) <= 2500 * MB - BASE


def test_a_disk_with_room_is_taken_and_one_without_refused(tmp_path):
    check_room(tmp_path / "not" / "there" / "yet", 1000)
    with refused(tmp_path, "MiB free", f"may take {2**60 / MB:.1f} MiB", "another output folder"):
        check_room(tmp_path / "not" / "there", 2**60)


def test_a_plan_counts_tiles_blocks_and_what_is_computed_twice():
    source, grid = source_of(2, 400, 300), Grid.regular((400, 300), 32, 0.25, 150)
    figures = plan(source, grid, Identity(2, (32, 32)))
    assert (figures.tiles, figures.blocks) == (grid.n_tiles, grid.n_blocks)
    assert (figures.tile, figures.block) == ((32, 32), (150, 150))
    once = Grid.regular((400, 300), 32, 0.25).n_tiles
    assert grid.n_tiles > once
    assert figures.recomputed == pytest.approx(grid.n_tiles / once - 1)
    assert figures.memory >= BASE + block_bytes(source, grid, 2)
    assert figures.disk >= 400 * 300
    assert figures.seconds > 0
    more = plan(source, grid, Identity(2, (32, 32)), outputs=("probability", "uncertainty"))
    assert more.disk > figures.disk


def test_a_device_with_memory_of_its_own_holds_weights_batches_and_blocks():
    taken = []

    class Device(Identity):
        def __call__(self, batch):
            taken.append(500 * MB)  # 100 MiB of weights, 400 of a batch
            return batch

        def peak_memory(self):
            peak = max([100 * MB, *taken])
            taken.clear()
            return peak

    source, grid = source_of(2, 2000, 1500), Grid.regular((2000, 1500), 32, 0.25, 500)
    raw, scores = 2 * 532 * 532, 4 * 2 * 2**20  # of a block; of a few parts of a layer at most
    figures = plan(source, grid, Device(2, (32, 32)))
    assert 900 * MB + 2 * raw < figures.device < 900 * MB + 2 * raw + 3 * scores
    assert plan(source, grid, Identity(2, (32, 32))).device == 0


def test_a_probe_runs_the_model_on_its_own_tile_and_dtype():
    seen = []

    class Seeing(Identity):
        def __call__(self, batch):
            seen.append((batch.shape, batch.dtype))
            return batch

    found = probe(Seeing(3, (8, 9), batch=5), (8, 9), "uint16")
    assert found.batch == 5
    assert found.seconds > 0
    assert found.memory >= 0
    assert seen == [((5, 3, 8, 9), np.float32)] * 2


def test_a_plan_has_the_batch_that_the_device_has_memory_for():
    source, grid = source_of(2, 64, 64), Grid.regular((64, 64), 16, 0.25, 64)
    small = Small(2, grid.tile, 8, digest=uuid4().hex, room=3)
    assert plan(source, grid, small).batch == 2
    assert plan(source, grid, Small(2, grid.tile, 8, digest=uuid4().hex, room=8)).batch == 8
    with refused("one tile of 16 x 16", "--tile", "--device cpu"):
        plan(source, grid, Small(2, grid.tile, 8, digest=uuid4().hex, room=0))


def test_what_else_a_model_raises_in_a_probe_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(tiling.BlockError, match="failed on a tile of 16 x 16: RuntimeError: device-side assert"):
        probe(Small(2, (16, 16), 4, digest=uuid4().hex, room=0, words="device-side assert triggered"), (16, 16))


@pytest.mark.parametrize(
    ("shape", "tile", "overlap", "passes"),
    [
        ((2000, 2000), 256, 0.5, True),
        ((2000, 2000), 256, 0.8, True),
        ((2000, 2000), 256, 0.99, False),
        ((100_000, 100_000), 1024, 0.9999, False),
        ((200, 200, 200), 64, 0.5, True),
        ((512, 512, 512), 32, 0.9, False),
        ((260, 260), 256, 0.99, True),  # a grid of four tiles costs little, whatever its overlap
    ],
)
def test_an_overlap_that_would_run_for_days_is_refused_with_its_cost(shape, tile, overlap, passes):
    source, model = source_of(1, *shape), Constant(1, (tile,) * len(shape))
    area, whole = Area(Box.whole(shape)), Grid.regular(shape, tile, overlap)
    times = whole.n_tiles / Grid.regular(shape, tile, 0).n_tiles
    assert (times <= 50) is passes
    if passes:
        choose_block(source, model, whole.tile, overlap, 4 * 2**30, area=area)
        check_overlap(whole)
        return
    with refused(f"{times:.0f} times", "--overlap"):
        choose_block(source, model, whole.tile, overlap, 4 * 2**30, area=area)
    with refused(f"{times:.0f} times", "--overlap"):
        plan(source, whole, model)
