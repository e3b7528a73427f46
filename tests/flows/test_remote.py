"""The command line on images over the network, from servers that fail in the middle of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from prefect.states import Failed

import tiling
from flows.segment import can_pass
from tests.tiling.files import write_tiff
from tests.tiling.rasters import noise
from tests.tiling.s3 import BUCKET, ObjectStore, environment
from tests.tiling.web import Web
from tiling import Box
from tiling.sources.remote import PassingError

from .conftest import Cli

SHAPE = (600, 580)
# Bytes of bare strips that the first row of blocks needs not: rows from 512 on, and GDAL's rounding to 16 KiB.
BEYOND = 512 * SHAPE[1] * 3 - 16384


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Four blocks."""
    return write_tiff(tmp_path / "image.tif", noise(shape=SHAPE), interleave="pixel")


@pytest.fixture
def options(fixed_model: str) -> list[object]:
    return ["-m", fixed_model, "--overlap", "0", "--memory", "457600KB", "-o"]


def _labels(folder: Path) -> np.ndarray:
    store = tiling.open_store(folder / "image.zarr")
    assert store.grid.n_blocks == 4
    return store.read(Box.whole(SHAPE))


@pytest.mark.parametrize(
    ("scheme", "fault", "value"),
    [
        ("http", "status", 503),
        ("s3", "hang up", None),
    ],
)
def test_a_server_that_fails_midway_costs_the_blocks_it_did_not_give(
    scheme: str,
    fault: str,
    value: int | None,
    cli: Cli,
    image: Path,
    options: list[object],
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, setting in environment(web.host.removeprefix("http://")).items():
        monkeypatch.setenv(name, setting)
    address = f"{web.address}/image.tif" if scheme == "http" else f"s3://{web.folder.name}/image.tif"
    command = ["segment", address, *options]
    out = tmp_path / "out"
    web.meet(fault, value, times=-1, beyond=BEYOND)
    code, _, err = cli(*command, out)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith(f"lmseg: {address} cannot be read at rows 512..600, columns ")
    assert last.endswith("run again to resume")
    store = tiling.open_store(out / "image.zarr")
    assert {2, 3} <= {*store.pending()} < {0, 1, 2, 3}
    assert {p.name for p in out.iterdir()} == {"image.zarr"}
    before = {p: p.stat().st_mtime_ns for number in {0, 1} - {*store.pending()} for p in store.files("labels", number)}
    web.heal()
    code, _, err = cli(*command, out)
    assert code == 0, err
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert cli("segment", image, *options, tmp_path / "whole")[0] == 0
    np.testing.assert_array_equal(_labels(out), _labels(tmp_path / "whole"))
    assert json.loads((out / "image.run.json").read_text())["source"] == address


def test_a_server_that_fails_at_the_end_costs_no_block(
    cli: Cli, image: Path, options: list[object], web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows import stages

    def failing(run: stages.Run) -> stages.Report:
        web.meet("hang up", times=-1, beyond=0)
        return finish(run)

    finish = stages.finish
    command = ["segment", f"{web.address}/image.tif", *options, tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "finish", failing)
        code, _, err = cli(*command)
    assert (code, "cannot be reached" in err.splitlines()[-1]) == (1, True)
    assert tiling.open_store(tmp_path / "out" / "image.zarr").pending() == []
    web.heal()
    assert cli(*command)[0] == 0


@pytest.mark.parametrize("when", ["midway", "between two runs"])
def test_an_address_whose_content_changes_gives_no_result(
    when: str, cli: Cli, image: Path, options: list[object], web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows import stages

    def changing(*arguments: object, **more: object) -> None:
        write_tiff(image, noise(shape=SHAPE, seed=1), interleave="pixel")
        compute(*arguments, **more)  # type: ignore[arg-type]  # whatever it was called with

    compute = stages.compute
    command = ["segment", f"{web.address}/image.tif", *options, tmp_path / "out"]
    if when == "midway":
        with monkeypatch.context() as patch:
            patch.setattr(stages, "compute", changing)
            code, _, err = cli(*command)
        assert (code, "image.tif changed while it was segmented" in err.splitlines()[-1]) == (2, True)
    else:
        assert cli(*command)[0] == 0
        write_tiff(image, noise(shape=SHAPE, seed=1), interleave="pixel")
    code, _, err = cli(*command)
    assert (code, "made with another source" in err) == (2, True)
    assert cli(*command, "--fresh")[0] == 0
    assert cli("segment", image, *options, tmp_path / "whole")[0] == 0
    np.testing.assert_array_equal(_labels(tmp_path / "out"), _labels(tmp_path / "whole"))


def test_a_key_in_a_bucket(
    cli: Cli, image: Path, options: list[object], bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket.put("2026/image.tif", image)
    key = f"s3://{BUCKET}/2026/image.tif"
    facts = json.loads(cli("info", key, "--json")[1])
    assert facts["size"].startswith("580 x 600")
    code, _, err = cli("segment", key, *options, tmp_path / "out")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"image.zarr", "image_labels.tif", "image.run.json"}
    assert cli("verify", tmp_path / "out" / "image.zarr")[0] == 0
    assert cli("segment", image, *options, tmp_path / "whole")[0] == 0
    np.testing.assert_array_equal(_labels(tmp_path / "out"), _labels(tmp_path / "whole"))

    wrong = {
        f"s3://{BUCKET}/none.tif": "check the bucket and the key",
        f"s3://no/{key}": "check the bucket and the key",
    }
    for name, words in wrong.items():
        code, shown, err = cli("segment", name, *options, tmp_path / "bad")
        assert (code, shown, err.count("\n")) == (2, "", 1)
        assert words in err
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    code, shown, err = cli("info", key)
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in err
    assert not (tmp_path / "bad").exists()


def test_flows_try_again() -> None:
    assert can_pass(None, None, Failed(data=PassingError("away; run again")))  # type: ignore[arg-type]  # looks at neither
