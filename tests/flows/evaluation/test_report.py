"""The report of an evaluation: complete or not there."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.flows.conftest import Cli


def test_report_is_a_page_of_its_own(cli: Cli, tmp_path: Path, scene_pair: tuple[Path, Path]) -> None:
    folder = tmp_path / "deep" / "report"
    code, out, _ = cli("evaluate", *scene_pair, "--report", folder)
    assert code == 0
    assert out.splitlines()[-1] == str(folder / "index.html")
    page = (folder / "index.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert pictures == ["confusion.png", *(f"{kind}-{i}.png" for kind in ("worst", "best") for i in (1, 2, 3))]
    for picture in pictures:
        assert Image.open(folder / picture).size > (200, 200)
    # Nothing is fetched from elsewhere.
    assert "://" not in page
    shown = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert shown == json.loads(cli("evaluate", *scene_pair, "--json")[1])
    assert oct(folder.stat().st_mode)[-3:] == "755"


def test_only_an_earlier_report_is_replaced(cli: Cli, tmp_path: Path, scene_pair: tuple[Path, Path]) -> None:
    folder = tmp_path / "report"
    arguments = ("evaluate", *scene_pair, "--no-surface", "--report", folder)
    assert cli(*arguments)[0] == 0
    (folder / "best-3.png").unlink()
    assert cli(*arguments)[0] == 0
    assert (folder / "best-3.png").is_file()
    (folder / "thesis.doc").write_text("years of work")
    code, _, err = cli(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds thesis.doc, which is no part of a report" in err
    assert (folder / "thesis.doc").read_text() == "years of work"
    assert "is a file" in cli("evaluate", *scene_pair, "--report", scene_pair[0])[2]


@pytest.mark.parametrize("name", ["index.html", "scores.json", "best-1.png", "files.json"])
@pytest.mark.parametrize("with_report", [True, False])
def test_a_page_of_somebody_else_is_kept(
    name: str, with_report: bool, cli: Cli, tmp_path: Path, scene_pair: tuple[Path, Path]
) -> None:
    """Alone in the folder, or edited in an earlier report."""
    folder = tmp_path / "site"
    arguments = ("evaluate", *scene_pair, "--no-surface", "--report", folder)
    if with_report:
        assert cli(*arguments)[0] == 0
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    code, _, err = cli(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "which is not what a report wrote; choose another folder, or pass --overwrite" in err
    assert (folder / name).read_text() == "years of work"
    assert len([*folder.iterdir()]) == 1 or with_report
    assert cli(*arguments, "--overwrite")[0] == 0
    assert cli(*arguments)[0] == 0


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_images_that_are_compared_are_never_replaced(
    options: tuple[str, ...], cli: Cli, tmp_path: Path, scene_pair: tuple[Path, Path]
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    prediction = scene_pair[0].rename(folder / "best-1.png")
    before = prediction.read_bytes()
    code, _, err = cli("evaluate", prediction, scene_pair[1], "--report", folder, *options)
    assert (code, "inputs are never replaced" in err) == (2, True)
    assert prediction.read_bytes() == before


@pytest.mark.parametrize("name", ["thesis.doc", ".hidden", "best-1.png/", "files.json/"])
def test_overwrite_replaces_no_more_than_a_report(
    name: str, cli: Cli, tmp_path: Path, scene_pair: tuple[Path, Path]
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("years of work")
    code, _, err = cli("evaluate", *scene_pair, "--no-surface", "--report", folder, "--overwrite")
    assert (code, f"holds {name.rstrip('/')}, which is no part of a report" in err) == (2, True)
    assert (folder / name).exists()


def test_nothing_is_left_of_a_report_that_fails(cli: Cli, tmp_path: Path, scene_pair: tuple[Path, Path]) -> None:
    before = sorted(f.name for f in tmp_path.iterdir())
    assert cli("evaluate", scene_pair[0], tmp_path / "none.tif", "--report", tmp_path / "report")[0] == 2
    assert sorted(f.name for f in tmp_path.iterdir()) == before
