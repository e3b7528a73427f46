"""The flow `finetune`: a training as one Prefect task."""

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import task_run
from prefect.states import Failed
from prefect.utilities.annotations import quote
from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flows.paths import AbsolutePath
from flows.segment import can_pass
from flows.training.run import load_settings, run_training
from lmseg_core.errors import ModelError
from tiling import InputError

_SECONDS = 5.0


class FinetuneParameters(BaseModel):
    """Train a network as a YAML file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: AbsolutePath = Field(description="Absolute path of the YAML file with the settings.")
    output: AbsolutePath | None = Field(None, description="Absolute folder of the result; that of the file if empty.")
    data: AbsolutePath | None = Field(None, description="Absolute folder of the data; data.root of the file if empty.")
    changes: dict[str, Any] = Field({}, description='Settings put over the file\'s: {"optimise.rate": 0.001}.')
    fresh: bool = Field(False, description="Start again instead of going on.")


@flow(name="finetune", persist_result=False)
def finetune(parameters: FinetuneParameters) -> dict[str, Any] | State[Any]:
    """Train a network as a YAML file says; the same run again goes on where it stopped.

    Returns the folder of the model and its figures. Fails at once, with one line that says why, for settings or data
    that cannot be used; tries again what can pass.
    """
    try:
        report = _train(cast(FinetuneParameters, quote(parameters)))  # as it is: Prefect would walk through it
    except (InputError, ModelError) as error:
        return Failed(message=str(error), data=error)
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in report["figures"].items())
    create_markdown_artifact(
        f"| figure | validation |\n| --- | ---: |\n{rows}\n", key="finetune", description=report["folder"]
    )
    return report


@task(
    name="train",
    retries=3,
    retry_delay_seconds=[5, 20, 60],
    retry_condition_fn=can_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def _train(parameters: FinetuneParameters) -> dict[str, Any]:
    changes = dict(parameters.changes)
    for key, path in (("output", parameters.output), ("data.root", parameters.data)):
        if path is not None:
            changes[key] = str(path)
    settings = load_settings(parameters.config, changes)
    for key, path in (("output", settings.output), ("data.root", settings.data.root)):
        if not path.is_absolute():
            raise InputError(f"{parameters.config} has the relative {key} {path}; give an absolute one for a run")
    fresh = parameters.fresh and task_run.run_count == 1  # a retry goes on with what its first try began
    return asdict(run_training(settings, fresh, [_Progress(settings.watch.metric)]))


class _Progress(TrainerCallback):
    """A progress artifact, written every few seconds because each write takes 40 ms."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._artifact = cast(UUID, create_progress_artifact(0.0, key="finetune-progress", description="training"))
        self._written = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < state.max_steps and time.monotonic() - self._written < _SECONDS:
            return
        self._written = time.monotonic()
        best = "" if state.best_metric is None else f", best {self._metric} {state.best_metric:.4f}"
        done = f"step {state.global_step} of {state.max_steps}{best}"
        # A server that does not answer for a moment must not cost a training its work.
        with suppress(httpx.HTTPError):
            update_progress_artifact(self._artifact, 100 * state.global_step / state.max_steps, done)
