"""The demo shows something true."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import rasterio
import SimpleITK
from PIL import Image

from flows.cli import main
from flows.demo import ADULT_LITRES, BRAIN, PICTURE, TEMPLATE_LITRES
from tests.local_server import Server


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, prefect_server: Server) -> tuple[Path, str]:
    """The folder that `lmseg demo` filled, run in an empty one, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    out = io.StringIO()
    # The demo sets what it wants of Prefect where nobody did.
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as here, contextlib.redirect_stdout(out):
        here.chdir(folder)
        here.setattr(sys, "argv", ["lmseg", "demo"])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder / "lmseg-demo", out.getvalue()


def test_prints_every_file_it_writes(demo: tuple[Path, str]) -> None:
    folder, out = demo
    written = [p for p in folder.iterdir() if not p.name.endswith(".zarr")]
    assert len(written) == 13
    for path in written:
        assert str(path) in out


def test_land_cover_of_the_scene(demo: tuple[Path, str]) -> None:
    """The crop is a coast: each class covers a fair share, and all of it is the crop's 69 square kilometres."""
    report = json.loads((demo[0] / "sentinel2_accomack.run.json").read_text())
    areas = {c["name"]: c["measure"] for c in report["classes"]}
    assert sum(areas.values()) == pytest.approx(832**2 * 1e-4)
    assert min(areas.values()) > 5


def test_trees_and_open_ground_of_the_aerial_picture(demo: tuple[Path, str]) -> None:
    """Which is all there is: what the model takes for buildings, roads and water is wrong, and the demo says so."""
    report = json.loads((demo[0] / "yellowstone.run.json").read_text())
    pixels = {c["name"]: c["pixels"] for c in report["classes"]}
    assert sum(pixels.values()) == 766 * 824
    assert pixels["land"] > pixels["vegetation"] > 0.3 * 766 * 824
    assert pixels["land"] + pixels["vegetation"] > 0.9 * 766 * 824
    # Trees are darker than the ground between them.
    brightness = np.asarray(Image.open(PICTURE).convert("L"))
    with rasterio.open(demo[0] / "yellowstone_labels.tif") as labels:
        found = labels.read(1)
    land, vegetation = (brightness[found == value].mean() for value in (1, 3))
    assert vegetation < 0.8 * land


def test_both_hippocampi_are_one_piece_of_plausible_size(demo: tuple[Path, str]) -> None:
    image = SimpleITK.ReadImage(demo[0] / "mni152_t1_seg.nii.gz")
    pieces = SimpleITK.RelabelComponent(SimpleITK.ConnectedComponent(image > 0))
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.Execute(pieces)
    total = float(np.count_nonzero(SimpleITK.GetArrayFromImage(image)))
    volumes = [shape.GetPhysicalSize(i) / 1000 for i in (1, 2)]
    # ITK's world is LPS: the right side of the body has negative x.
    sides = sorted(shape.GetCentroid(i)[0] for i in (1, 2))
    assert sides[0] < -15
    assert sides[1] > 15
    # The template is larger than an adult's brain, of which 3 to 4 ml a side are usual.
    assert all(3 < v * ADULT_LITRES / TEMPLATE_LITRES < 4 for v in volumes), volumes
    assert sum(volumes) * 1000 > 0.95 * total


def test_the_template_is_as_large_as_the_demo_says() -> None:
    image = SimpleITK.ReadImage(BRAIN)
    litres = np.count_nonzero(SimpleITK.GetArrayFromImage(image)) * np.prod(image.GetSpacing()) / 1e6
    assert litres == pytest.approx(TEMPLATE_LITRES, abs=0.01)


def test_previews_are_pictures(demo: tuple[Path, str]) -> None:
    for name in ("sentinel2_accomack_preview.png", "yellowstone_preview.png", "mni152_t1_preview.png"):
        picture = np.asarray(Image.open(demo[0] / name))
        assert picture.std() > 20
