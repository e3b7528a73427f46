"""The seam certificate by the command line, with the files that it leaves opened by other software."""

import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import SimpleITK
from rasterio.warp import transform

import tiling

from .conftest import Cli, _save_model

KINDS = ["tile borders", "block borders", "all"]


def _run(cli: Cli, source: str | Path, model: str, out: Path, *more: object) -> Path:
    code, _, err = cli("segment", source, "-m", model, "-o", out, *more)
    assert code == 0, err
    return next(out.glob("*.zarr"))


def _verified(cli: Cli, run: Path, *more: object, code: int = 0) -> dict:
    got, out, err = cli("verify", run, "--seams", "--json", *more)
    assert got == code, err + out
    return json.loads(out)


def _check(told: dict) -> dict:
    return next(c for c in told["checks"] if c["name"] == "seams")


def test_a_raster_s_certificate_and_its_map(cli: Cli, wide: str, raster_model: str, tmp_path: Path) -> None:
    box = (441730, 4176460 - 5500, 441730 + 11000, 4176460)
    run = _run(cli, wide, raster_model, tmp_path, "--tile", 128, "--memory", "440MiB", "--bbox", *box)
    store = tiling.open_store(run)
    assert store.grid.n_blocks > 1
    told = _verified(cli, run, "--places", 12)
    assert all(check["passed"] for check in told["checks"])
    assert _check(told)["detail"].endswith("in 12 places")
    figures = told["seams"]
    assert all(figures[kind]["places"] >= 4 for kind in KINDS)
    assert figures["all"]["places"] == 12
    for kind in KINDS:
        changed = figures[kind]["changed"]
        assert 0 <= changed["low"] <= changed["value"] <= changed["high"] <= 1
    layer = Path(figures["layer"])
    assert layer == tmp_path / "wide_seams.geojson"
    places = json.loads(layer.read_text())["features"]
    assert "crs" not in json.loads(layer.read_text())
    assert len(places) == 12
    assert sum(p["properties"]["pixels"] for p in places) == figures["all"]["pixels"]
    changed = sum(p["properties"]["changed"] for p in places)
    assert figures["all"]["changed"]["value"] == pytest.approx(changed / figures["all"]["pixels"])
    assert max(p["properties"]["largest"] for p in places) == figures["all"]["largest"]
    for place in places:
        (ring,) = place["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert sum((b[0] - a[0]) * (b[1] + a[1]) for a, b in pairwise(ring)) < 0  # anticlockwise
        xs, ys = transform("EPSG:4326", "EPSG:32618", *map(list, zip(*ring, strict=True)))
        columns, rows = (np.array(xs) - 441730) / 10, (4176460 - np.array(ys)) / 10
        row, column = place["properties"]["row"], place["properties"]["column"]
        # A quarter of a tile of 128 around the place, cut at the area's edges.
        assert (rows.min(), rows.max()) == pytest.approx((max(0, row - 16), min(550, row + 16)), abs=1e-3)
        assert (columns.min(), columns.max()) == pytest.approx((max(0, column - 16), min(1100, column + 16)), abs=1e-3)
    if shutil.which("ogrinfo"):
        seen = subprocess.run(["ogrinfo", "-al", "-so", layer], capture_output=True, text=True, check=True).stdout
        assert "Feature Count: 12" in seen
        assert "Geometry: Polygon" in seen
        assert "WGS 84" in seen
    field = figures["receptive_field"]
    assert field["half_overlap"] == [16, 16]
    assert field["covered"] == (max(field["radius"]) <= 16)
    assert field["everywhere"] == []
    # The same places again, and figures for a terminal.
    before = layer.read_bytes()
    code, out, _ = cli("verify", run, "--seams", "--places", 12)
    assert code == 0
    assert layer.read_bytes() == before
    assert all(kind in out for kind in KINDS)
    assert str(layer) in out
    assert "layers that look everywhere" in out


def test_the_bundled_scene_in_part(cli: Cli, scene: Path, tmp_path: Path) -> None:
    with rasterio.open(scene) as image:
        west, north = image.transform.c, image.transform.f
    box = (west + 1500, north - 3500, west + 4000, north - 1500)
    run = _run(cli, scene, "land-cover-tiny", tmp_path, "--tile", 128, "--overlap", 0.125, "--bbox", *box)
    told = _verified(cli, run, "--places", 6)
    assert _check(told)["passed"]
    assert told["seams"]["block borders"] is None
    assert told["seams"]["tile borders"]["places"] == 6
    assert 0 <= told["seams"]["all"]["typical"]["value"] <= told["seams"]["all"]["largest"] <= 1


def test_a_volume_s_map_lies_on_its_labels(cli: Cli, brain: Path, volume_model: str, tmp_path: Path) -> None:
    run = _run(cli, brain, volume_model, tmp_path, "--box", -40, -45, -35, -10, 0, 10)
    told = _verified(cli, run, "--places", 7)
    assert _check(told)["passed"]
    layer = Path(told["seams"]["layer"])
    assert layer == tmp_path / "mni152_t1_seams.nii.gz"
    marks, labels = (SimpleITK.ReadImage(str(f)) for f in (layer, tmp_path / "mni152_t1_seg.nii.gz"))
    assert marks.GetPixelID() == SimpleITK.sitkUInt8
    assert marks.GetSize() == labels.GetSize()
    for place in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(marks, place)() == getattr(labels, place)()
    values = SimpleITK.GetArrayFromImage(marks)
    assert set(np.unique(values)) <= {0, 1, 2}
    # Places may overlap.
    assert 0 < np.count_nonzero(values) <= told["seams"]["all"]["pixels"]
    assert (values == 2).any() == (told["seams"]["all"]["changed"]["value"] > 0)
    assert told["seams"]["tile borders"]["places"] == 7
    assert told["seams"]["receptive_field"]["half_overlap"] == [2, 2, 2]


def test_layers_that_look_everywhere_are_named(cli: Cli, picture: str, tmp_path: Path) -> None:
    from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor

    language = {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 9,
    }  # fmt: skip
    config = LMSegConfig(
        ndim=2, in_channels=3, widths=[4, 8], tile=[64, 64], id2label={0: "a", 1: "b"},
        bridge="language", lm_config=language, lm_blocks=1,
    )  # fmt: skip
    LMSegForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    LMSegImageProcessor(mode="image").save_pretrained(tmp_path / "model")
    run = _run(cli, picture, str(tmp_path / "model"), tmp_path / "out")
    code, out, _ = cli("verify", run, "--seams", "--places", 2)
    assert code == 0
    assert "bridge.blocks.0.attention" in out


def test_the_run_s_own_bands_are_read_again(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    run = _run(cli, picture, raster_model, tmp_path, "--bands", "3,1,2")
    assert _check(_verified(cli, run, "--places", 5))["passed"]


def test_an_image_without_a_crs_is_mapped_in_its_own_coordinates(
    cli: Cli, picture: str, raster_model: str, tmp_path: Path
) -> None:
    with rasterio.open(picture) as image:
        values = image.read()
    with rasterio.open(
        tmp_path / "plain.tif", "w", driver="GTiff", count=3, height=300, width=260, dtype="uint8"
    ) as target:
        target.write(values)
    run = _run(cli, tmp_path / "plain.tif", raster_model, tmp_path / "out")
    layer = Path(_verified(cli, run, "--places", 3)["seams"]["layer"])
    for place in json.loads(layer.read_text())["features"]:
        row, column = place["properties"]["row"], place["properties"]["column"]
        (ring,) = place["geometry"]["coordinates"]
        (left, top), (right, bottom) = np.min(ring, axis=0), np.max(ring, axis=0)
        assert (top, bottom) == (max(0, row - 8), min(300, row + 8))
        assert (left, right) == (max(0, column - 8), min(260, column + 8))


def test_an_image_of_one_tile_has_no_seams(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    with rasterio.open(picture) as image:
        profile = image.profile | {"height": 64, "width": 64}
        values = image.read()[:, :64, :64]
    with rasterio.open(tmp_path / "small.tif", "w", **profile) as target:
        target.write(values)
    run = _run(cli, tmp_path / "small.tif", raster_model, tmp_path / "out")
    told = _verified(cli, run)
    assert _check(told)["passed"]
    assert told["seams"]["all"] is None
    assert cli("verify", run, "--seams")[0] == 0


def test_labels_that_the_model_does_not_give_fail(cli: Cli, picture: str, raster_model: str, tmp_path: Path) -> None:
    run = _run(cli, picture, raster_model, tmp_path)
    labels = tiling.open_store(run).array("labels")
    labels[:, :] = (np.asarray(labels[:, :]) + 1) % 4
    told = _verified(cli, run, "--places", 4, code=1)
    assert not _check(told)["passed"]
    assert "4 of 4 places" in _check(told)["detail"]
    code, out, _ = cli("verify", run, "--seams", "--places", 4)
    assert code == 1
    assert "FAIL seams" in out


Harm = Callable[[Path], object]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: shutil.rmtree(d / "out/image.zarr/record/c"), ["lacks 1 of 1 blocks", "lmseg segment"]),
        (lambda d: (d / "image.tif").unlink(), ["image.tif", "does not exist"]),
        (lambda d: (d / "out/image.run.json").unlink(), ["image.run.json", "lmseg segment"]),
        (lambda d: (d / "out/image.run.json").write_text("{}"), ["image.run.json", "lmseg segment"]),
        (lambda d: (d / "out/image.run.json").write_text('{"parameters": 3}'), ["image.run.json", "lmseg segment"]),
        (lambda d: _save_model(d / "model", ndim=2, channels=3, tile=[32, 32]), ["model", "digest", "--fresh"]),
        (lambda d: shutil.rmtree(d / "model"), ["model"]),
        (lambda d: _touched(d / "image.tif"), ["image.tif has changed", "put the old one back"]),
    ],
    ids=["unfinished", "source", "report", "empty report", "broken report", "other model", "model", "changed source"],
)
def test_what_cannot_be_judged_is_one_line(
    cli: Cli, picture: str, raster_model: str, tmp_path: Path, harm: Harm, words: list[str]
) -> None:
    shutil.copy(picture, tmp_path / "image.tif")
    shutil.copytree(raster_model, tmp_path / "model")
    run = _run(cli, tmp_path / "image.tif", str(tmp_path / "model"), tmp_path / "out")
    before = sorted(p.name for p in (tmp_path / "out").iterdir())
    harm(tmp_path)
    code, out, err = cli("verify", run, "--seams")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for word in words:
        assert word in err
    assert {p.name for p in (tmp_path / "out").iterdir()} <= set(before)


def _touched(image: Path) -> None:
    with rasterio.open(image, "r+") as target:
        target.write(255 - target.read())


@pytest.mark.parametrize("places", ["0", "-3"])
def test_no_places_are_refused(cli: Cli, picture: str, raster_model: str, tmp_path: Path, places: str) -> None:
    run = _run(cli, picture, raster_model, tmp_path)
    code, out, err = cli("verify", run, "--seams", "--places", places)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--places {places}" in err
