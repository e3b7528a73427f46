"""What a training shows while it runs."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from lmseg_core.training.trainer import WindowTrainer


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from drawing a bar for every file, and from reporting what is meant to be."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class Console(TrainerCallback):
    """A progress bar on a terminal, and a line for each validation anywhere."""

    def __init__(self, trainer: WindowTrainer, metric: str) -> None:
        self._trainer = trainer
        self._metric = metric
        self._terminal = Terminal(stderr=True)
        self._bar = Progress(
            TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=self._terminal, disable=not sys.stderr.isatty(),
            transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=1)
        self._began = time.perf_counter()
        self._paused = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        if "loss" in named["logs"]:
            self._bar.update(self._task, description=f"loss {named['logs']['loss']:.3f}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        metrics: dict[str, float] = named["metrics"]
        self._paused += metrics.get("eval_runtime", 0.0)
        if not state.is_world_process_zero:
            return
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        loss = losses[-1] if losses else math.nan
        self._terminal.print(
            f"step {state.global_step}/{state.max_steps}  loss {loss:.3f}  {self._metric} "
            f"{metrics[f'eval_{self._metric}']:.4f}  waiting for data {self.waiting:.1%}",
            highlight=False,
        )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.stop()

    @property
    def waiting(self) -> float:
        """Share of the training time, validation left out, that was spent waiting for data."""
        return self._trainer.waited / max(time.perf_counter() - self._began - self._paused, 1e-9)
