"""The report of an evaluation: complete or not there, and pictures that show what is counted."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.evaluation.charts import confusion_chart, reliability_chart
from flows.evaluation.places import chosen
from flows.evaluation.scores import EvaluationParameters, evaluate
from lmseg_core.calibration import Reliability
from tests.flows.conftest import Cli
from tests.tiling.files import write_tiff, write_volume
from tiling import ClassTable

SIDE = 512


@pytest.fixture
def scene_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Three by two squares of stripes, of which the first is wrong most and the last never."""
    truth = np.zeros((2 * SIDE, 3 * SIDE), np.uint8)
    truth[:, ::2] = 1
    wrong = np.random.default_rng(0).random(truth.shape)
    share = np.kron(np.array([[0.5, 0.4, 0.3], [0.2, 0.1, 0.0]]), np.ones((SIDE, SIDE)))
    p = write_tiff(tmp_path / "p.tif", np.where(wrong < share, 2, truth)[None].astype(np.uint8))
    return p, write_tiff(tmp_path / "t.tif", truth[None])


def _colours(picture: Path) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(Image.open(picture)).reshape(-1, 3).tolist()))


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


def test_places_are_the_worst_and_the_best(scene_pair: tuple[Path, Path]) -> None:
    p, t = scene_pair
    evaluation = evaluate(EvaluationParameters(prediction=str(p), truth=str(t), surface=False))
    worst, best = chosen(evaluation, None)
    assert [place.box.start for place in worst] == [(0, 0), (0, SIDE), (0, 2 * SIDE)]
    assert [place.box.start for place in best] == [(SIDE, 2 * SIDE), (SIDE, SIDE), (SIDE, 0)]
    assert worst[0].wrong == pytest.approx(0.5, abs=0.01)
    assert worst[0].caption == "p, rows 0-512, columns 0-512: 50.0% wrong".replace("50.0%", f"{worst[0].wrong:.1%}")


def test_best_places_show_something(tmp_path: Path) -> None:
    """A square with one class only is right by itself."""
    truth = np.zeros((SIDE, 2 * SIDE), np.uint8)
    truth[:, :SIDE:2] = 1
    prediction = truth.copy()
    prediction[0, :9] = 2
    p, t = write_tiff(tmp_path / "p.tif", prediction[None]), write_tiff(tmp_path / "t.tif", truth[None])
    _, best = chosen(evaluate(EvaluationParameters(prediction=str(p), truth=str(t), surface=False)), None)
    assert [place.box.start for place in best] == []  # the only varied one is the worst too


def test_volumes_show_the_plane_with_most_wrong(cli: Cli, tmp_path: Path) -> None:
    for folder in ("p", "t"):
        (tmp_path / folder).mkdir()
    truth = np.zeros((30, 32, 12), np.uint8)
    truth[8:20, 8:22, 3:9] = 1
    for name, plane in (("a", 5), ("b", 7)):
        prediction = truth.copy()
        prediction[8:14, 8:22, plane] = 0
        prediction[20:23, 8:22, plane] = 1
        if name == "b":
            prediction[8:20, 8:22, 4] = 2
        write_volume(tmp_path / "p" / f"{name}.nii.gz", prediction)
        write_volume(tmp_path / "t" / f"{name}.nii.gz", truth)
    told = EvaluationParameters(prediction=str(tmp_path / "p"), truth=str(tmp_path / "t"))
    worst, best = chosen(evaluate(told), None)
    assert [(p.case.name, p.box.start[0]) for p in worst] == [("b", 4)]
    assert [p.case.name for p in best] == ["a"]
    assert cli("evaluate", tmp_path / "p", tmp_path / "t", "--report", tmp_path / "report")[0] == 0
    assert (213, 62, 79) in _colours(tmp_path / "report" / "worst-1.png")


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


@pytest.mark.parametrize("classes", [1, 6, 40])
def test_confusion_is_darkest_where_most_is(classes: int) -> None:
    table = ClassTable.numbered(classes)
    shares: Any = np.eye(classes)
    if classes > 1:
        shares[-1] = np.nan
    chart = np.asarray(confusion_chart(shares, table)).astype(int)
    assert (chart == (33, 102, 172)).all(axis=-1).any()


def test_reliability_shows_both_errors() -> None:
    sure, modest = Reliability(), Reliability()
    sure.add(np.full(100, 0.95), np.arange(100) < 60)
    modest.add(np.full(100, 0.5), np.arange(100) < 90)
    colours = set(map(tuple, np.asarray(reliability_chart(sure, modest, 2.0)).reshape(-1, 3).tolist()))
    assert {(231, 160, 160), (159, 211, 168)} <= colours
