"""The two flows on real images, in this process, with a real Prefect server and a real Dask cluster."""

import errno
import re
import threading
import time
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pytest
import rasterio
from distributed import Client, KilledWorker, LocalCluster
from distributed.comm import CommClosedError
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError
from prefect.settings import get_current_settings
from prefect.states import Failed

from flows import segment, stages
from flows.parameters import RegionParameters, VolumeParameters
from flows.segment import can_pass, segment_region, segment_volume, split
from lmseg_core.errors import ModelError
from tests.local_server import Server, wait_for
from tiling import Grid, InputError

# Twelve millimetres around each hippocampus's head: enough to cut tiles in all three axes.
BOX = (-36.0, -40.0, -30.0, 36.0, -4.0, 0.0)


def read(path: str, state: State[Any], by: str = "flow_runs") -> list[dict[str, Any]]:
    """What the server has of one kind for one flow run."""
    condition = {"id": {"any_": [str(state.state_details.flow_run_id)]}}
    with get_client(sync_client=True) as client:
        found: list[dict[str, Any]] = client.request("POST", path, json={by: condition}).raise_for_status().json()
    return found


def tasks(state: State[Any]) -> list[dict[str, Any]]:
    # Events carry task runs to the server, some time after the flow has ended.
    def ended() -> list[dict[str, Any]]:
        found = read("/task_runs/filter", state)
        return found if all(run["end_time"] for run in found) else []

    found: list[dict[str, Any]] = wait_for("the end of all tasks", ended)
    return found


def names(state: State[Any]) -> list[str]:
    return sorted(run["name"].split()[0] for run in tasks(state))


def labels_of(folder: Path, scene: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(folder / f"{scene.stem}_labels.tif") as labels:
        return np.asarray(labels.read(1))


# ------------------------------------------------------------------------------------------------- a good run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("region")


@pytest.fixture(scope="module")
def region(prefect_server: Server, scene: Path, folder: Path) -> State[Any]:
    state: State[Any] = segment_region(RegionParameters(sources=[str(scene)], output=folder), return_state=True)
    assert state.is_completed(), state.message
    return state


def test_region_lies_on_the_image(region: State[Any], scene: Path, folder: Path) -> None:
    with rasterio.open(folder / f"{scene.stem}_labels.tif") as labels, rasterio.open(scene) as image:
        assert (labels.crs, labels.transform, labels.shape) == (image.crs, image.transform, image.shape)
        assert np.unique(labels.read(1)).size >= 2


def test_region_returns_a_summary_that_adds_up(region: State[Any], scene: Path) -> None:
    (summary,) = region.result()
    assert all(Path(file).stat().st_size for file in summary["files"])
    with rasterio.open(scene) as image:
        pixels = image.width * image.height
        cell = abs(image.transform.determinant) / 1e6
    assert sum(share["pixels"] for share in summary["classes"]) + summary["nodata"] == pixels
    for share in summary["classes"]:
        assert share["unit"] == "km²"
        assert share["measure"] == pytest.approx(share["pixels"] * cell)


def test_region_leaves_a_page_and_full_progress(region: State[Any], folder: Path) -> None:
    artifacts = {artifact["key"]: artifact for artifact in read("/artifacts/filter", region)}
    assert set(artifacts) == {"segment-region", "segment-region-progress"}
    assert artifacts["segment-region-progress"]["data"] == 100
    page = artifacts["segment-region"]["data"]
    assert "km²" in page
    assert "| network |" in page
    (summary,) = region.result()
    for file in summary["files"]:
        assert Path(file).as_uri() in page


def test_region_is_a_few_tasks_and_persists_nothing(region: State[Any]) -> None:
    assert names(region) == ["finish", "prepare", "segment"]
    assert all(run["run_count"] == 1 and run["state_type"] == "COMPLETED" for run in tasks(region))
    storage = get_current_settings().results.local_storage_path
    assert storage is not None
    assert not list(storage.rglob("*"))


def test_second_run_has_nothing_to_segment(region: State[Any], scene: Path, folder: Path) -> None:
    before = labels_of(folder, scene)
    state: State[Any] = segment_region(RegionParameters(sources=[str(scene)], output=folder), return_state=True)
    assert names(state) == ["finish", "prepare"]
    np.testing.assert_array_equal(labels_of(folder, scene), before)


def test_groups_and_a_lost_worker_do_not_show(
    region: State[Any],
    scene: Path,
    folder: Path,
    cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four blocks in four groups on a cluster that loses a process: the labels of one block in this one."""
    with pytest.raises(InputError, match="--memory") as advice:
        stages.prepare(RegionParameters(sources=[str(scene)], output=tmp_path, memory="1MB"))
    least = re.search(r"pass --memory (\w+)", str(advice.value))
    assert least is not None
    monkeypatch.setattr(segment, "_BLOCKS", 1)
    killed = threading.Event()

    def kill_a_busy_worker() -> None:
        with Client(cluster, set_as_default=False) as client:
            pids = client.run(lambda: psutil.Process().pid)
            while not killed.is_set():
                for address, work in client.processing().items():
                    if work and not killed.is_set():
                        psutil.Process(pids[address]).kill()
                        killed.set()
                time.sleep(0.01)

    killer = threading.Thread(target=kill_a_busy_worker, daemon=True)
    killer.start()
    parameters = RegionParameters(
        sources=[str(scene)], output=tmp_path, cluster=cluster.scheduler_address, memory=least[1]
    )
    state: State[Any] = segment_region(parameters, return_state=True)
    assert killed.is_set()
    assert state.is_completed(), state.message
    assert names(state).count("segment") == 4
    np.testing.assert_array_equal(labels_of(tmp_path, scene), labels_of(folder, scene))


def test_volume_lies_in_the_scan(prefect_server: Server, brain: Path, tmp_path: Path) -> None:
    parameters = VolumeParameters(sources=[str(brain)], output=tmp_path, box=BOX)
    state: State[Any] = segment_volume(parameters, return_state=True)
    (summary,) = state.result()
    (file,) = (Path(file) for file in summary["files"] if file.endswith("_seg.nii.gz"))
    labels, scan = nibabel.load(file), nibabel.load(brain)
    corner = np.linalg.inv(scan.affine) @ labels.affine[:, 3]
    np.testing.assert_allclose(labels.affine[:3, :3], scan.affine[:3, :3])
    np.testing.assert_allclose(corner, np.rint(corner), atol=1e-4)
    (page,) = (one["data"] for one in read("/artifacts/filter", state) if one["key"] == "segment-volume")
    assert " ml |" in page


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"sources": ["{scene}", "/nowhere/scene.tif"]}, "/nowhere/scene.tif"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"bands": [1, 2]}, "2"),
        ({"sources": ["{brain}"]}, "segment-volume"),
        ({"bbox": [0, 0, 1, 1]}, "0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_fails_at_once_with_its_line(
    prefect_server: Server, scene: Path, brain: Path, tmp_path: Path, told: dict[str, Any], named: str
) -> None:
    told = {"sources": ["{scene}"], "output": tmp_path, **told}
    told["sources"] = [source.format(scene=scene, brain=brain) for source in told["sources"]]
    state: State[Any] = segment_region(RegionParameters(**told), return_state=True)
    assert state.is_failed()
    with pytest.raises((InputError, ModelError)) as error:
        state.result()
    assert state.message == str(error.value)
    assert named in state.message
    assert "\n" not in state.message
    assert all(run["run_count"] == 1 for run in tasks(state))
    assert "segment" not in names(state)
    assert not list(tmp_path.glob("*.tif"))


def test_relative_output_is_refused(prefect_server: Server, scene: Path) -> None:
    with pytest.raises(ParameterTypeError, match="'out' is relative; give an absolute path"):
        segment_region({"sources": [str(scene)], "output": "out"})


# ------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (KilledWorker("block", None, 3), True),
        (CommClosedError("in <TCP>: stream is closed"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("read"), True),
        (OSError("a read of a network file"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (PermissionError(errno.EACCES, "not yours"), False),
        (InputError("scene.tif has 4 bands"), False),
        (ModelError("no weights"), False),
        (RuntimeError("a bug"), False),
    ],
    ids=repr,
)
def test_only_what_can_pass_is_tried_again(error: Exception, passes: bool) -> None:
    assert can_pass(None, None, Failed(data=error)) is passes


@pytest.mark.parametrize(("error", "attempts"), [(ConnectionResetError("peer"), 3), (InputError("bad"), 1)])
def test_stage_tries_again_or_not(prefect_server: Server, error: Exception, attempts: int) -> None:
    seen: list[int] = []

    @segment._stage("read", "read")
    def stage() -> None:
        seen.append(len(seen))
        if len(seen) < 3:
            raise error

    @flow
    def run() -> None:
        stage.with_options(retry_delay_seconds=0)()

    run(return_state=True)
    assert len(seen) == attempts


# ------------------------------------------------------------------------------------------------- groups


@settings(deadline=None)
@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=5))
def test_groups_hold_every_block_once(counts: list[int]) -> None:
    # Three blocks in a row: a group goes down a column as far as it can.
    grid = Grid.regular((7_000, 3), 1, 0, 1)
    todo = [list(range(count)) for count in counts]
    groups = split([(grid, blocks) for blocks in todo])
    for blocks, parts in zip(todo, groups, strict=True):
        assert sorted(chain.from_iterable(parts)) == blocks
        assert list(chain.from_iterable(parts)) == sorted(blocks, key=lambda n: (n % 3, n))
    sizes = [len(group) for parts in groups for group in parts]
    assert len(sizes) <= 400 + len(counts)
    assert all(len(group) >= 16 for parts in groups for group in parts[:-1])
