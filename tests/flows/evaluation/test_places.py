"""Which places are shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.evaluation.places import chosen
from flows.evaluation.scores import EvaluationParameters, evaluate
from tests.flows.conftest import Cli
from tests.flows.evaluation.conftest import SIDE
from tests.tiling.files import write_tiff, write_volume


def _colours(picture: Path) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(Image.open(picture)).reshape(-1, 3).tolist()))


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
