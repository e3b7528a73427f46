"""The report of an evaluation: complete or not there."""

import json
import re
from pathlib import Path

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


def test_nothing_is_left_of_a_report_that_fails(cli: Cli, tmp_path: Path, scene_pair: tuple[Path, Path]) -> None:
    before = sorted(f.name for f in tmp_path.iterdir())
    assert cli("evaluate", scene_pair[0], tmp_path / "none.tif", "--report", tmp_path / "report")[0] == 2
    assert sorted(f.name for f in tmp_path.iterdir()) == before
