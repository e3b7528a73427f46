"""Every command and code block of the documentation runs, in order, in one folder."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import Affine
from rasterio.windows import Window

import flows.overlap
from flows.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# What continuous integration runs itself, in a fresh environment.
INSTALLS = {
    "pip install -e . -c constraints.txt && lmseg demo",
    'pip install -e ".[test]" -c constraints.txt && pytest',
}
# Minutes each, and in need of data that is not bundled.
BENCHMARKS = "python benchmarks/"
# Of the bundled scene: as much as the boxes and areas of the pages lie in.
PART = Window(col_off=0, row_off=208, width=544, height=512)


def _blocks(page: Path) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, body) for language, body in found if language in ("console", "python", "yaml")]


def _crop(source: Path, path: Path, window: Window) -> None:
    with rasterio.open(source) as image:
        moved = image.transform @ Affine.translation(window.col_off, window.row_off)
        place = {"height": window.height, "width": window.width, "transform": moved}
        with rasterio.open(path, "w", **(image.profile | place)) as target:
            target.descriptions = image.descriptions
            target.write(image.read(window=window))


@pytest.fixture
def desk(tmp_path: Path, scene: Path, brain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages speak of."""
    _crop(scene, tmp_path / "scene.tif", PART)
    shutil.copy(brain, tmp_path / "brain.nii.gz")
    with rasterio.open(tmp_path / "scene.tif") as image:
        profile = image.profile | {"count": 1}
        for band, name in enumerate(image.descriptions, 1):
            with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as target:
                target.write(image.read(band), 1)
        with rasterio.open(tmp_path / "truth.tif", "w", **(profile | {"dtype": "uint8", "predictor": 1})) as target:
            fields = np.random.default_rng(0).integers(0, 3, (PART.height // 16, PART.width // 16))
            target.write(np.kron(fields, np.ones((16, 16))).astype(np.uint8), 1)
    (tmp_path / "area.geojson").write_text(
        '{"type": "Polygon", "coordinates": '
        "[[[-75.64, 37.67], [-75.60, 37.67], [-75.60, 37.70], [-75.64, 37.70], [-75.64, 37.67]]]}"
    )
    _cohort(brain, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _cohort(brain: Path, folder: Path) -> None:
    """Write two crops around the hippocampi of a brain, and labels of as many experts."""
    image: Any = nibabel.load(brain)
    (folder / "cohort").mkdir()
    (folder / "experts").mkdir()
    for number, x in enumerate((60, 105), 1):
        crop = image.slicer[x : x + 40, 90:140, 40:75]
        nibabel.save(crop, folder / "cohort" / f"case-{number:02}.nii.gz")
        labels = (np.asarray(crop.dataobj) > 128).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, crop.affine), folder / "experts" / f"case-{number:02}.nii.gz")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_runs(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A plan of seams looks at as many places for each overlap that it tries.
    monkeypatch.setattr(flows.overlap, "PLACES", 12)
    for language, body in _blocks(page):
        if language == "python":
            exec(compile(body, str(page), "exec"), {})
            continue
        if language == "yaml":
            # A file where its first line is a comment with a name; others only show what can be written.
            name = re.match(r"# (\S+\.yaml)\n", body)
            if name is not None:
                (desk / name[1]).write_text(body)
            assert yaml.safe_load(body)
            continue
        for line in filter(None, body.splitlines()):
            if line in INSTALLS or line.startswith(BENCHMARKS):
                continue
            words = shlex.split(line)
            assert words[0] == "lmseg", f"{page.name} shows a command that no test runs: {line}"
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code, line


def test_benchmarks_that_are_shown_exist() -> None:
    for page in PAGES:
        for _, body in _blocks(page):
            for line in body.splitlines():
                if line.startswith(BENCHMARKS):
                    assert (ROOT / line.split()[1]).is_file(), line


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "deployments" / "README.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
