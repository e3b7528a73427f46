"""The flow `evaluate`: scores of label maps against the truth, with a page of them on the server."""

from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed
from prefect.utilities.annotations import quote

from flows.evaluation.report import check_folder, write_report
from flows.evaluation.scores import Evaluation, EvaluationParameters
from flows.evaluation.scores import evaluate as score
from flows.evaluation.tables import markdown
from flows.segment import can_pass
from tiling import InputError

_T = TypeVar("_T")

# Nothing is kept by Prefect, and what can pass (a network) is tried again, as in `flows.segment`.
_OPTIONS: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [5, 20, 60],
    "retry_condition_fn": can_pass,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def _as_is(value: _T) -> _T:
    """`value` as an argument of a task that Prefect neither copies nor walks through."""
    return cast(_T, quote(value))


@task(name="score", **_OPTIONS)
def _score(parameters: EvaluationParameters) -> Evaluation:
    return score(parameters)


@task(name="report", **_OPTIONS)
def _report(evaluation: Evaluation, parameters: EvaluationParameters) -> Path:
    return write_report(evaluation, parameters)


@flow(name="evaluate", persist_result=False)
def evaluate(parameters: EvaluationParameters) -> dict[str, Any] | State[Any]:
    """Score label maps against the truth.

    Returns every figure, as `lmseg evaluate --json` prints it, and where the report lies. Fails at once, with one line
    that says why, for input that cannot be compared.
    """
    try:
        check_folder(parameters)
        evaluation = _score(_as_is(parameters))
        page = None if parameters.report is None else _report(_as_is(evaluation), _as_is(parameters))
    except InputError as error:
        return Failed(message=str(error), data=error)
    create_markdown_artifact(
        markdown(evaluation) + (f"\n[Report with pictures]({page.as_uri()})\n" if page else ""),
        key="evaluate",
        description=f"{parameters.prediction} against {parameters.truth}",
    )
    return {**evaluation.scores, "report": str(page) if page else None}
