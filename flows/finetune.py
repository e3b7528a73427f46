"""The flow `finetune`: a training as one Prefect task."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field, field_validator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flows.training import load_settings, run_training

_SECONDS = 5.0


class FinetuneParameters(BaseModel):
    """What a training run is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path = Field(description="Absolute path of the YAML file with the settings.")
    changes: dict[str, Any] = Field({}, description='Settings put over the file\'s: {"optimise.rate": 0.001}.')
    output: Path | None = Field(None, description="Absolute folder of the result; that of the file if empty.")
    fresh: bool = Field(False, description="Start again instead of going on.")

    @field_validator("config", "output")
    @classmethod
    def _is_absolute(cls, path: Path | None) -> Path | None:
        # A worker runs in a temporary folder: what is relative to it is lost.
        if path is not None and not path.is_absolute():
            raise ValueError(f"{path} is relative; give an absolute path")
        return path


@flow(name="finetune", flow_run_name="finetune {parameters.config.stem}", validate_parameters=True)
def finetune(parameters: FinetuneParameters) -> dict[str, Any]:
    """Train a network as a YAML file says; the same run again goes on where it stopped."""
    return _train(parameters)


@task(name="train", cache_policy=NO_CACHE, persist_result=False)
def _train(parameters: FinetuneParameters) -> dict[str, Any]:
    changes = dict(parameters.changes)
    if parameters.output is not None:
        changes["output"] = str(parameters.output)
    settings = load_settings(parameters.config, changes)
    if not settings.output.is_absolute():
        # Relative names of a file count from the file, as a worker has no folder of its own.
        settings = load_settings(
            parameters.config, changes | {"output": str(parameters.config.parent / settings.output)}
        )
    report = asdict(run_training(settings, parameters.fresh, [_Progress(settings.watch.metric)]))
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in report["figures"].items())
    create_markdown_artifact(f"| figure | validation |\n| --- | ---: |\n{rows}\n", key="finetune-figures")
    return report


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
        update_progress_artifact(self._artifact, 100 * state.global_step / state.max_steps, done)
