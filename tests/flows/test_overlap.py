"""`lmseg plan --seams`: the overlap that an image needs."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from flows import overlap

from .conftest import Cli


@pytest.fixture(autouse=True)
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "PLACES", 8)


def test_the_smallest_overlap_that_suffices_is_told(cli: Cli, picture: str, fixed_model: str) -> None:
    code, out, err = cli("plan", picture, "-m", fixed_model, "--seams", "50%", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["tiles"] == 36
    (tried,) = facts["seams"]["tried"]
    assert tried["overlap"] == facts["overlap for seams"] == 0
    # 300 and 260 pixels in tiles of 64: 5 and 5 of them where 48 apart there are 6 and 6.
    assert tried["tiles"] == pytest.approx(25 / 36)
    assert tried["figures"]["places"] == 8
    assert tried["figures"]["changed"]["high"] < 0.5
    assert facts["seams"]["receptive_field"]["half_overlap"] == [0, 0]
    code, out, _ = cli("plan", picture, "-m", fixed_model, "--seams", "50%")
    assert code == 0
    assert "overlap for seams" in out
    assert "receptive field" in out


def test_where_none_suffices_the_best_is_named(cli: Cli, picture: str, fixed_model: str) -> None:
    code, out, err = cli("plan", picture, "-m", fixed_model, "--seams", "0.00001%", "--json")
    facts = json.loads(out)
    tried = facts["seams"]["tried"]
    if facts["overlap for seams"] is not None:
        pytest.fail(f"this model has no seams: {tried}")
    assert (code, err.count("\n")) == (2, 1)
    assert [t["overlap"] for t in tried] == [0, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2]
    assert tried[4]["tiles"] == 1
    best = min(tried, key=lambda t: t["figures"]["changed"]["high"])
    assert f"--overlap {best['overlap']:g} with" in err
    assert "1e-05%" in err


def test_an_image_of_one_tile_needs_none(cli: Cli, fixed_model: str, tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "small.tif", "w", driver="GTiff", count=3, height=64, width=64, dtype="uint8", crs="EPSG:32618"
    ) as target:
        target.write(np.full((3, 64, 64), 9, np.uint8))
    code, out, _ = cli("plan", tmp_path / "small.tif", "-m", fixed_model, "--seams", "0.1%", "--json")
    assert code == 0
    assert json.loads(out)["overlap for seams"] == 0


def test_borders_without_data_are_refused(cli: Cli, fixed_model: str, tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "empty.tif", "w", driver="GTiff", count=3, height=90, width=90, dtype="uint8", nodata=0
    ) as target:
        target.write(np.zeros((3, 90, 90), np.uint8))
    code, out, err = cli("plan", tmp_path / "empty.tif", "-m", fixed_model, "--seams", "0.1%")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "empty.tif has no data where its tiles meet" in err


@pytest.mark.parametrize("share", ["5", "-1%", "0%", "51%", "much", "%", "1e-3%"])
def test_a_share_of_no_use_is_one_line(cli: Cli, picture: str, fixed_model: str, share: str) -> None:
    code, out, err = cli("plan", picture, "-m", fixed_model, "--seams", share)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--seams '{share}'" in err
    assert "0.1%" in err


@pytest.mark.parametrize(("text", "share"), [("0.1%", 0.001), ("5 %", 0.05), (".5%", 0.005), ("50%", 0.5)])
def test_shares_are_read(text: str, share: float) -> None:
    assert overlap.parse_share(text) == pytest.approx(share)
