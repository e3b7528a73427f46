"""Paths are absolute wherever a run of a server is told one."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from flows.evaluation.scores import EvaluationParameters
from flows.finetune import FinetuneParameters
from tiling import InputError

TOLD: dict[type[BaseModel], dict[str, Any]] = {
    EvaluationParameters: {"prediction": "/a", "truth": "/b"},
    FinetuneParameters: {"config": "/a.yaml"},
}


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (EvaluationParameters, "report"),
        (FinetuneParameters, "config"),
        (FinetuneParameters, "output"),
        (FinetuneParameters, "data"),
    ],
)
def test_relative_paths_are_refused(model: type[BaseModel], field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field} 'here/a' is relative; give an absolute path such as /data/"):
        model.model_validate(TOLD[model] | {field: "here/a"})
    assert str(getattr(model.model_validate(TOLD[model] | {field: "/here/a"}), field)) == "/here/a"


def test_a_refusal_of_ours_is_one_that_pydantic_takes_for_a_wrong_value() -> None:
    assert issubclass(InputError, ValueError)
