"""The flow `evaluate`, run in this process against the real server."""

from pathlib import Path

import pytest

from flows.evaluate import evaluate
from flows.evaluation.scores import EvaluationParameters
from tests.flows.evaluation.label_maps import scores_of, write_folders
from tests.local_server import Server

from .conftest import Cli


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_folders(tmp_path)


def test_flow_returns_figures_and_writes_the_report(
    prefect_server: Server, folders: tuple[Path, Path], tmp_path: Path, cli: Cli
) -> None:
    told = EvaluationParameters(prediction=str(folders[0]), truth=str(folders[1]), report=tmp_path / "report")
    result = evaluate(told)
    assert isinstance(result, dict)
    page = tmp_path / "report" / "index.html"
    assert result["report"] == str(page)
    assert page.is_file()
    assert {k: v for k, v in result.items() if k != "report"} == scores_of(cli, *folders)


def test_flow_fails_with_the_line_that_says_why(prefect_server: Server, folders: tuple[Path, Path]) -> None:
    told = EvaluationParameters(prediction=str(folders[0]), truth=str(folders[1] / "none.nii"))
    state = evaluate(told, return_state=True)
    assert state.is_failed()
    assert "give two label maps or two folders" in str(state.message)
