"""transformers' Trainer, with our loss, averaged weights, and checkpoints that are whole or not there."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmseg_core.adapters import orthogonality
from lmseg_core.errors import TrainingError, first_line
from lmseg_core.metrics import Confusion
from lmseg_core.training.average import Average
from lmseg_core.training.folder import write_json
from lmseg_core.training.windows import Example

AVERAGE = "average.safetensors"
COMPLETE = "complete.json"  # written last: a checkpoint without it was cut off
Loss = Callable[[Tensor, tuple[Tensor, ...] | None, Tensor], Tensor]


class WindowTrainer(Trainer):
    """Trains on windows; evaluates and keeps the averaged weights.

    Besides the arguments of Trainer: `loss` of (logits, auxiliary, labels); `average` of the weights, or None;
    `freeze`, parts whose norm layers keep their statistics; `keep`, called with the folder for the best model.
    """

    def __init__(
        self,
        *,
        loss: Loss,
        average: Average | None,
        freeze: list[nn.Module],
        keep: Callable[[Path], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        assert self.args.output_dir is not None
        self._output = Path(self.args.output_dir)
        self._network = kwargs["model"]
        self._examples: Sequence[Example] = kwargs["train_dataset"].examples
        self._loss = loss
        self._average = average
        self._freeze = freeze
        self._keep = keep
        self._batch: list[int] = []  # examples of the windows of the last step
        self.waited = 0.0  # seconds that steps stood still for want of data
        self._began = time.perf_counter()
        checkpoint = last_checkpoint(self._output)
        self._before = json.loads((checkpoint / COMPLETE).read_text())["seconds"] if checkpoint else 0.0
        if average is not None:
            self.add_callback(_Averaging(average))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and its logits where they are asked for."""
        if model.training:
            for part in self._freeze:
                part.eval()
        labels = inputs["labels"]
        output = model(pixel_values=inputs["pixel_values"])
        loss = self._loss(output.logits, output.auxiliary, labels)
        if model.training and (self._network.config.lm_adapter or {}).get("method") == "adalora":
            loss = loss + 0.5 * orthogonality(self._network)  # the weight of Zhang et al. 2023
        return (loss, {"loss": loss, "logits": output.logits}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **named: Any) -> Tensor:
        """Take a step; a loss that is not a number stops the training before it spoils the weights."""
        loss: Tensor = super().training_step(model, inputs, *rest, **named)
        self._batch = inputs["example"].tolist()
        if not torch.isfinite(loss):
            raise self._spoiled(f"the loss became {loss.item()} in step {self.state.global_step + 1}")
        return loss

    def _spoiled(self, what: str) -> TrainingError:
        examples = ", ".join(sorted({self._examples[i].name for i in self._batch}))
        return TrainingError(
            f"{what}, on windows of {examples}; the last checkpoint is kept. Lower optimise.rate, or look at these "
            "images."
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *rest: Any, **named: Any) -> Any:
        """Fetch the batches of a step, and time the wait."""
        began = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, *rest, **named)
        self.waited += time.perf_counter() - began
        return batches

    def evaluate(self, *rest: Any, **named: Any) -> dict[str, float]:
        """Evaluate the averaged weights."""
        if self._average is None:
            return super().evaluate(*rest, **named)
        with self._average.swapped(self._network):
            return super().evaluate(*rest, **named)

    @property
    def seconds(self) -> float:
        """Time spent so far, with that of the parts before the last checkpoint."""
        return self._before + time.perf_counter() - self._began

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A loss that is a number may have a gradient that is none, and statistics of norm layers overflow before it.
        if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
            raise self._spoiled(f"the weights became nan in step {self.state.global_step}")
        folder = self._output / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if not self.args.should_save:
                return
            if self._average is not None:
                self._average.save(folder / AVERAGE)
            if self.state.best_global_step == self.state.global_step:
                self._keep_best()
            write_json(folder / COMPLETE, {"steps": self.state.global_step, "seconds": self.seconds})
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise TrainingError(
                f"{folder} cannot be written ({first_line(error)}); the checkpoint before it is kept. Make room and "
                "run again."
            ) from error
        # Not Trainer's own limit: it removes the checkpoint before this one ere this one is whole.
        for old in _checkpoints(self._output)[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._average is not None:
            folder = Path(resume_from_checkpoint)
            self._average.load(folder / AVERAGE, json.loads((folder / COMPLETE).read_text())["steps"])

    def _keep_best(self) -> None:
        if self._average is None:
            self._keep(self._output / "best")
            return
        with self._average.swapped(self._network):
            self._keep(self._output / "best")


class _Averaging(TrainerCallback):
    """Takes the weights after each step into the average."""

    def __init__(self, average: Average) -> None:
        self._average = average

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        self._average.update(named["model"])


def last_checkpoint(output: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end."""
    whole = [folder for folder in _checkpoints(output) if (folder / COMPLETE).exists()]
    return whole[-1] if whole else None


def _checkpoints(output: Path) -> list[Path]:
    return sorted(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))


class Scores:
    """Figures of a validation, batch by batch: what Trainer calls with `batch_eval_metrics`."""

    def __init__(self, classes: int) -> None:
        self._confusion = Confusion(classes)

    def __call__(self, batch: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        self.add(batch.predictions, batch.label_ids)
        return self.result() if compute_result else {}

    def add(self, prediction: Any, truth: Any) -> None:
        """Count a batch of labels."""
        self._confusion.add(_numpy(prediction), _numpy(truth))

    def result(self) -> dict[str, float]:
        """Return the figures of what was counted since the last time."""
        whole, self._confusion = self._confusion, Confusion(self._confusion.classes)
        foreground = whole.dice[1:]
        figures = {
            "mean_iou": whole.mean_iou,
            "mean_dice": whole.mean_dice,
            "foreground_dice": float(np.nanmean(foreground)) if np.isfinite(foreground).any() else float("nan"),
            "pixel_accuracy": whole.pixel_accuracy,
        }
        return figures | {f"iou_{i}": float(value) for i, value in enumerate(whole.iou)}


def to_labels(logits: Tensor | tuple[Tensor, ...], _labels: Tensor) -> Tensor:
    """Return the most likely class of each pixel, so that scores are not kept: (B, K, *S) -> (B, *S) uint8."""
    scores = logits[0] if isinstance(logits, tuple) else logits
    return scores.argmax(1).to(torch.uint8)  # there are 255 classes at most, and NCCL knows no int16


def _numpy(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
