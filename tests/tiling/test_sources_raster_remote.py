"""Rasters read over the network, from servers that misbehave."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy

import tiling
from tests.tiling.files import write_tiff
from tests.tiling.rasters import noise
from tests.tiling.refusals import refused
from tests.tiling.web import HEADER, Web
from tiling.box import Box
from tiling.sources import remote

VALUES = noise(shape=(600, 600))
BOX = Box((330, 300), (590, 600))
LAYOUTS = {
    "cog": {"driver": "COG", "blocksize": 256, "compress": "deflate", "overviews": "none"},
    "strips": {},
}


@pytest.fixture(params=LAYOUTS)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Tiles of which several are asked for at a time, and bare strips of which one is."""
    return write_tiff(tmp_path / "a.tif", VALUES, **LAYOUTS[request.param])


def right(source: tiling.Source) -> bool:
    return np.array_equal(source.read(BOX).values, VALUES[(slice(None), *BOX.slices)])


def test_an_address_reads_like_the_file_behind_it(image: Path, web: Web) -> None:
    source = tiling.open(f"{web.address}/a.tif")
    assert right(source)
    assert source.space == tiling.open(image).space
    assert tiling.open(f"{web.address}/a.tif").fingerprint == source.fingerprint
    assert pickle.loads(pickle.dumps(source)) == source


SHORT = {
    "503": ("status", 503),
    "429": ("status", 429),
    "500": ("status", 500),
    "stall": ("stall", 1.5),
    "drop": ("drop", None),
    "hang up": ("hang up", None),
    "no ranges": ("rangeless", None),
}


@pytest.mark.parametrize("fault", SHORT)
@pytest.mark.parametrize(
    ("image", "pixels"),
    [("cog", False), ("cog", True), ("strips", True)],
    ids=["opening", "reading tiles", "reading strips"],
    indirect=["image"],
)
def test_a_fault_that_passes_is_outlived(fault: str, pixels: bool, image: Path, web: Web) -> None:
    if pixels:
        source = tiling.open(f"{web.address}/a.tif")
    web.meet(*SHORT[fault], beyond=HEADER if pixels else 0)
    if not pixels:
        source = tiling.open(f"{web.address}/a.tif")
    assert right(source)


# fault: words of the reason
LASTING = {
    "503": "HTTP status 503",
    "stall": "the connection stalled or broke off",
    "drop": "the connection stalled or broke off",
    "hang up": "the connection stalled or broke off",
    "no ranges": "Range downloading not supported",
}


@pytest.mark.parametrize(
    ("image", "fault"),
    [("cog", fault) for fault in LASTING] + [("strips", fault) for fault in LASTING if fault != "stall"],
    indirect=["image"],
)
def test_a_fault_that_lasts_is_a_line_and_forgotten_when_it_is_gone(fault: str, image: Path, web: Web) -> None:
    source = tiling.open(f"{web.address}/a.tif")
    web.meet(*SHORT[fault], times=-1)
    with pytest.raises(ConnectionError) as caught:
        source.read(BOX)
    message = str(caught.value)
    assert message.startswith(f"{web.address}/a.tif cannot be read at rows 330..590, columns 300..600: ")
    assert LASTING[fault] in message
    assert message.endswith("run again to resume")
    assert "\n" not in message
    assert caught.value.errno is None
    web.heal()
    assert right(source)


@pytest.mark.parametrize("image", ["cog"], indirect=True)
@pytest.mark.parametrize("fault", ["503", "stall", "hang up"])
def test_a_server_that_cannot_be_reached_is_no_bad_input(fault: str, image: Path, web: Web) -> None:
    web.meet(*SHORT[fault], times=-1, beyond=0)
    with pytest.raises(ConnectionError, match=rf"^{web.address}/a.tif cannot be reached: .*; try again$"):
        tiling.open(f"{web.address}/a.tif")
    web.heal()
    assert right(tiling.open(f"{web.address}/a.tif"))


@pytest.mark.parametrize("lasts", [False, True])
def test_other_bytes_than_asked_for_do_not_pass_for_pixels(lasts: bool, tmp_path: Path, web: Web) -> None:
    """GDAL does not look at Content-Range; the sums of compressed tiles tell."""
    write_tiff(tmp_path / "a.tif", VALUES, **LAYOUTS["cog"])
    source = tiling.open(f"{web.address}/a.tif")
    web.meet("misplaced", times=-1 if lasts else 1)
    if lasts:
        with pytest.raises(ConnectionError, match="run again to resume"):
            source.read(BOX)
    else:
        assert right(source)


@pytest.mark.parametrize("image", ["cog"], indirect=True)
@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_a_server_refuses_is_not_asked_for_again(status: int, image: Path, web: Web) -> None:
    web.meet("status", status, times=-1, beyond=0)
    with refused(f"{web.address}/a.tif", status, "check "):
        tiling.open(f"{web.address}/a.tif")
    assert len(web.asked()) < 5


def test_a_server_without_ranges_is_refused(image: Path, web: Web) -> None:
    web.meet("rangeless", times=-1, beyond=0)
    with refused(f"{web.address}/a.tif", "fetch the file and give its path"):
        tiling.open(f"{web.address}/a.tif")


def test_a_page_is_no_image(tmp_path: Path, web: Web) -> None:
    (tmp_path / "a.tif").write_text("<html>" + 2000 * "Please log in. ")
    with refused(f"{web.address}/a.tif", "give a raster that GDAL reads"):
        tiling.open(f"{web.address}/a.tif")


def test_a_file_that_is_gone_is_no_bad_input(image: Path, web: Web) -> None:
    source = tiling.open(f"{web.address}/a.tif")
    image.unlink()
    with pytest.raises(ConnectionError, match=r"404.*run again to resume"):
        source.read(BOX)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_changes_is_refused(when: str, image: Path, web: Web) -> None:
    source = tiling.open(f"{web.address}/a.tif")
    options = LAYOUTS["cog"] if "compress" in rasterio.open(image).profile else {}
    others = VALUES.copy()
    others[:, 500:] += 1
    if when == "meanwhile":
        assert right(source)
    write_tiff(image, others, **options)
    with refused(f"{web.address}/a.tif changed", "--fresh"):
        source.read(BOX)
    again = tiling.open(f"{web.address}/a.tif")
    assert again.fingerprint != source.fingerprint
    assert np.array_equal(again.read(BOX).values, others[(slice(None), *BOX.slices)])


def _masked(path: Path) -> np.ndarray:
    mask = np.zeros((600, 600), bool)
    mask[400:, :500] = True
    write_tiff(path, VALUES, tiled=True)
    with rasterio.open(path, "r+") as image, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        image.write_mask(mask)
    assert Path(f"{path}.msk").exists()
    return mask


def test_a_mask_beside_a_file_is_read(tmp_path: Path, web: Web) -> None:
    mask = _masked(tmp_path / "a.tif")
    source = tiling.open(f"{web.address}/a.tif")
    assert np.array_equal(source.read(BOX).valid, mask[BOX.slices])
    assert np.array_equal(tiling.open(tmp_path / "a.tif").read(BOX).valid, mask[BOX.slices])
    assert right(source)
    Path(tmp_path / "a.tif.msk").write_bytes(b"another")
    with refused("changed"):
        source.read(BOX)


def test_a_mask_that_cannot_be_had_is_not_taken_for_none(tmp_path: Path, web: Web) -> None:
    mask = _masked(tmp_path / "a.tif")
    source = tiling.open(f"{web.address}/a.tif")
    web.meet("hang up", times=-1, path=".msk", beyond=0)
    with pytest.raises(ConnectionError, match=r"a\.tif\.msk"):
        tiling.open(f"{web.address}/a.tif")
    with pytest.raises(ConnectionError, match="mask"):
        source.read(BOX)
    web.heal()
    assert np.array_equal(source.read(BOX).valid, mask[BOX.slices])


def test_a_local_file_that_names_remote_ones_waits_for_them(image: Path, tmp_path: Path, web: Web) -> None:
    vrt = tmp_path / "local.vrt"
    copy(f"{web.address}/a.tif", vrt, driver="VRT")
    source = tiling.open(vrt)
    web.meet("drop")
    assert right(source)
    web.meet("hang up", times=-1, beyond=0)
    with pytest.raises(ConnectionError, match=r"local\.vrt.*run again to resume"):
        source.read(BOX)


@pytest.mark.parametrize("retries", [0, 3])
def test_the_environment_says_how_often_to_try(
    retries: int, image: Path, web: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiling.open(f"{web.address}/a.tif")
    web.meet("hang up", times=-1, beyond=0)
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", str(retries))
    with pytest.raises(ConnectionError):
        source.read(BOX)
    assert [r.getMessage().rpartition("; ")[2] for r in caplog.records if "trying" in r.getMessage()] == [
        f"trying again in {delay:g} s" for delay in (0.02, 0.04, 0.08)[:retries]
    ]
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "often")
    with refused("GDAL_HTTP_MAX_RETRY", "'often'", "number"):
        source.read(BOX)


def test_nothing_is_tried_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1000")
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    tries = []

    def attempt() -> None:
        tries.append(1)
        raise remote.PassingError("away; run again")

    with pytest.raises(ConnectionError, match="away"):
        remote.patiently(attempt)
    assert 2 <= len(tries) <= 6
