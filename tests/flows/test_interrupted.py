"""The command line on stores that are in use or damaged, with models and images that fail meanwhile."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import tiling
from flows import stages
from lmseg_core import Predictor
from tests.tiling.test_lease import hold
from tiling import Box

from .conftest import Cli

Spoil = Callable[[Any, Any], Any]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Four blocks, the last of them with a pixel of 255 that no tile of the others reaches."""
    values = np.random.default_rng(0).integers(0, 200, (3, 600, 580)).astype(np.uint8)
    values[0, 590, 575] = 255
    path = tmp_path / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=580, height=600, count=3, dtype="uint8", crs="EPSG:32618",
        transform=rasterio.Affine(10, 0, 441730, 0, -10, 4176460),
    ) as target:  # fmt: skip
        target.write(values)
    return path


@pytest.fixture
def command(image: Path, fixed_model: str, tmp_path: Path) -> list[object]:
    return ["segment", image, "-m", fixed_model, "--overlap", "0", "--memory", "457600KB", "-o", tmp_path / "out"]


def labels(folder: Path) -> np.ndarray:
    store = tiling.open_store(folder / "image.zarr")
    assert store.grid.n_blocks == 4
    return store.read(Box.whole(store.area.box.shape))


def spoil(monkeypatch: pytest.MonkeyPatch, change: Spoil) -> None:
    """Has the network answer something else for batches with a pixel of 255."""
    score = Predictor.__call__
    monkeypatch.setattr(
        Predictor, "__call__", lambda self, batch: change(score(self, batch), batch) if (batch == 255).any()
        else score(self, batch),
    )  # fmt: skip


def on_fire(scores: Any, batch: Any) -> Any:
    raise RuntimeError("the device is on fire")


BROKEN: list[tuple[Spoil, str]] = [
    (on_fire, "RuntimeError: the device is on fire"),
    (lambda scores, batch: scores * float("nan"), "not finite"),
    (lambda scores, batch: scores[..., 1:], "scores of shape"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN, ids=["raises", "not a number", "another shape"])
def test_a_block_that_fails_is_named_and_alone_computed_again(
    cli: Cli, command: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Spoil, words: str
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, change)
        code, _, err = cli(*command)
    assert code == 1
    last = err.splitlines()[-1]
    assert "block 3 at (512, 512)..(600, 580)" in last
    assert words in last
    assert "the others are done" in last
    assert tiling.open_store(tmp_path / "out" / "image.zarr").pending() == [3]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "image.zarr" / "labels").rglob("c/*/*")}
    assert cli(*command)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    whole = labels(tmp_path / "out")
    assert cli(*command[:-1], tmp_path / "whole")[0] == 0
    np.testing.assert_array_equal(labels(tmp_path / "whole"), whole)


def test_a_store_in_use_is_refused_and_kept(cli: Cli, command: list[object], tmp_path: Path) -> None:
    assert cli(*command)[0] == 0
    before = labels(tmp_path / "out")
    with hold(tmp_path / "out" / "image.zarr") as process:
        for extra in ([], ["--fresh"]):
            code, out, err = cli(*command, *extra)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"image.zarr is in use by process {process.pid} of " in err
        code, out, _ = cli("verify", tmp_path / "out" / "image.zarr")
        assert code == 0
        assert f"under way: process {process.pid}" in out
        assert cli("export", tmp_path / "out" / "image.zarr", tmp_path / "again.tif")[0] == 0
        process.kill()
    np.testing.assert_array_equal(labels(tmp_path / "out"), before)
    assert cli(*command, "--fresh")[0] == 0


def test_two_commands_at_once(command: list[object], tmp_path: Path) -> None:
    """One of them does the work; the other says so, whichever it is."""
    start = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, command)]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = {p.returncode: err for p in both for _, err in (p.communicate(),)}
    # On a busy machine the one may have ended before the other began.
    assert errors.keys() in ({0, 2}, {0})
    assert "in use by process" in errors.get(2, "in use by process")
    assert tiling.open_store(tmp_path / "out" / "image.zarr").pending() == []


def test_damage_is_found_by_verify_and_mended_by_the_same_command(
    cli: Cli, command: list[object], tmp_path: Path
) -> None:
    assert cli(*command)[0] == 0
    store = tiling.open_store(tmp_path / "out" / "image.zarr")
    before = labels(tmp_path / "out")
    (chunk,) = store.files("labels", 2)
    chunk.write_bytes(chunk.read_bytes()[:100])
    code, out, _ = cli("verify", store.path, "--json")
    assert code == 1
    (intact,) = (c for c in json.loads(out) if c["name"] == "intact")
    assert intact["detail"].startswith("block 2 is damaged in labels")
    others = {p: p.stat().st_mtime_ns for n in (0, 1, 3) for p in store.files("labels", n)}
    code, _, err = cli(*command)
    assert code == 0
    assert "block 2 is damaged in labels and is computed again" in err
    assert {p: p.stat().st_mtime_ns for p in others} == others
    np.testing.assert_array_equal(labels(tmp_path / "out"), before)
    assert cli("verify", store.path)[0] == 0


@pytest.mark.parametrize(("when", "expected"), [("computing", 2), ("finishing", 1)])
def test_an_image_that_changes_meanwhile_gives_no_result(
    cli: Cli,
    command: list[object],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    when: str,
    expected: int,
) -> None:
    def changing(call: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            with rasterio.open(image, "r+") as target:
                target.write(target.read()[:, ::-1])
            return call(*arguments, **options)

        return change

    name = {"computing": "compute", "finishing": "finish"}[when]
    with monkeypatch.context() as patch:
        patch.setattr(stages, name, changing(getattr(stages, name)))
        code, _, err = cli(*command)
    assert code == expected
    assert f"{image} changed while it was segmented" in err.splitlines()[-1]
    assert "--fresh" in err.splitlines()[-1]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"image.zarr"}
    code, _, err = cli(*command)
    assert code == 2
    assert "made with another source" in err
    assert cli(*command, "--fresh")[0] == 0
