"""The command line with results in object storage."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

import tiling
from flows import stages
from flows.parameters import RegionParameters
from tests.tiling.files import write_tiff
from tests.tiling.rasters import noise
from tests.tiling.s3 import BUCKET, KEYS, ObjectStore
from tests.tiling.test_lease import hold
from tiling import Box
from tiling.bucket import Bucket

from .conftest import Cli

SHAPE = (600, 580)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Four blocks."""
    return write_tiff(tmp_path / "image.tif", noise(shape=SHAPE))


@pytest.fixture
def options(image: Path, fixed_model: str) -> list[object]:
    return ["segment", image, "-m", fixed_model, "--overlap", "0", "--memory", "457600KB", "-o"]


@pytest.fixture
def prefix(request: pytest.FixtureRequest, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "30")
    return f"{request.node.originalname}/out"


def test_results_in_object_storage_are_those_in_a_folder(
    cli: Cli,
    options: list[object],
    bucket: ObjectStore,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, order = f"s3://{BUCKET}/{prefix}", []
    take = Bucket.take
    monkeypatch.setattr(
        Bucket, "take", lambda self, file, replace: (order.append(file.name), take(self, file, replace))[1]
    )
    code, told, err = cli(*options, out)
    assert code == 0, err
    assert f"  {out}/image_labels.tif\n" in told
    assert cli(*options, tmp_path / "local")[0] == 0
    last = ["image_labels.tif.aux.xml", "image_labels.tif", "image_preview.png", "image.run.json"]
    assert order == last
    copy = bucket.fetch(prefix, tmp_path / "copy")
    assert {p.name for p in copy.iterdir()} == {*last, "image.zarr"} == {p.name for p in (tmp_path / "local").iterdir()}
    for name in last[:3]:
        assert (copy / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    with rasterio.open(copy / "image_labels.tif") as a, rasterio.open(tmp_path / "local" / "image_labels.tif") as b:
        assert np.array_equal(a.read(1), b.read(1))
        assert a.crs == b.crs
    report = json.loads((copy / "image.run.json").read_text())
    assert report["store"] == f"{out}/image.zarr"
    assert report["files"][0] == f"{out}/image_labels.tif"
    assert report["parameters"]["output"] == out
    texts = [file.read_bytes() for file in copy.rglob("*") if file.is_file()]
    assert not any(KEYS["AWS_ACCESS_KEY_ID"].encode() in text or bucket.host.encode() in text for text in texts)

    run = f"{out}/image.zarr"
    code, told, err = cli("verify", run, "--seams", "--places", 3)
    assert code == 0, err
    assert "ok   export image_labels.tif" in told
    assert told.endswith(f"{out}/image_seams.geojson\n")
    assert json.loads(bucket.read(f"{prefix}/image_seams.geojson"))["features"]
    code, told, err = cli("evaluate", run, tmp_path / "local" / "image_labels.tif", "--json", "--no-surface")
    assert code == 0, err
    assert json.loads(told)["pixel_accuracy"] == 1
    code, told, err = cli("export", run, tmp_path / "again.tif")
    assert code == 0, err
    assert (tmp_path / "again.tif").read_bytes() == (copy / "image_labels.tif").read_bytes()
    assert cli("export", run, f"{out}/again.tif")[0] == 0
    assert bucket.read(f"{prefix}/again.tif") == (copy / "image_labels.tif").read_bytes()


def test_a_run_that_was_stopped_goes_on_or_begins_anew(
    cli: Cli, options: list[object], image: Path, fixed_model: str, bucket: ObjectStore, prefix: str
) -> None:
    out = f"s3://{BUCKET}/{prefix}"
    parameters = RegionParameters(
        sources=[str(image)],
        output=out,
        model=fixed_model,
        overlap=0,
        memory="457600KB",  # type: ignore[arg-type]
    )
    (run,) = stages.prepare(parameters)
    stages.compute(run, [1, 2])
    before = bucket.keys(f"{prefix}/image.zarr")
    assert cli(*options, out)[0] == 0
    after = bucket.keys(f"{prefix}/image.zarr")
    assert before.items() <= after.items()
    labels = tiling.open_store(f"{out}/image.zarr").read(Box.whole(SHAPE))
    code, _, err = cli(*options[:-1], "--tile", 32, "-o", out)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{out}/image.zarr was made with another tiles; pass --fresh" in err
    with hold(f"{out}/image.zarr") as process:
        code, told, err = cli(*options, out, "--fresh")
        assert (code, told, err.count("\n")) == (2, "", 1)
        assert f"image.zarr is in use by process {process.pid} of " in err
        process.kill()
    assert cli(*options, out, "--fresh")[0] == 0
    fresh = tiling.open_store(f"{out}/image.zarr")
    assert np.array_equal(fresh.read(Box.whole(SHAPE)), labels)
    assert bucket.keys(f"{prefix}/image.zarr").keys() == after.keys()


@pytest.mark.parametrize(
    ("output", "variables", "code", "words"),
    [
        (
            "s3://nowhere/out",
            {},
            2,
            "s3://nowhere/out cannot be used: NoSuchBucket: The specified bucket does",
        ),
        ("s3://", {}, 2, "--output 's3://'"),
        ("gs://scenes/out", {}, 2, "give a folder or an address such as s3://bucket/prefix"),
        (f"s3://{BUCKET}/no", {"AWS_S3_ENDPOINT": "127.0.0.1:1"}, 1, "check the network and AWS_S3_ENDPOINT"),
        (f"s3://{BUCKET}/no", {"AWS_S3_ENDPOINT": "http://127.0.0.1:1"}, 2, "AWS_S3_ENDPOINT is 'http://127.0.0.1:1'"),
        (f"s3://{BUCKET}/no", {"GDAL_HTTP_MAX_RETRY": "many"}, 2, "set it to a number"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    output: str,
    variables: dict[str, str],
    code: int,
    words: str,
    cli: Cli,
    options: list[object],
    bucket: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found, told, err = cli(*options, output)
    assert (found, told, err.count("\n")) == (code, "", 1), err
    assert words in err
    assert bucket.keys("no") == {}


def test_refused_keys_are_one_line_and_leave_nothing(
    cli: Cli, options: list[object], bucket: ObjectStore, prefix: str
) -> None:
    bucket.trust(anybody=False)
    try:
        code, told, err = cli(*options, f"s3://{BUCKET}/{prefix}")
    finally:
        bucket.trust(anybody=True)
    assert (code, told, err.count("\n")) == (2, "", 1)
    assert f"s3://{BUCKET}/{prefix}" in err
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to those of somebody who may list, read and write it" in err
    assert not any(value in err for value in KEYS.values())
    assert bucket.keys(prefix) == {}


def test_parameters_keep_an_address_to_the_letter() -> None:
    given = RegionParameters(sources=["a"], output="s3://scenes/a b/out")  # type: ignore[arg-type]
    assert str(given.output) == "s3://scenes/a b/out"
    assert RegionParameters.model_validate_json(given.model_dump_json()) == given
    assert RegionParameters.model_json_schema()["properties"]["output"]["type"] == "string"
