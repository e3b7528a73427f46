"""One training, from examples to a model folder; the same call again goes on where it stopped."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback

from lmseg_core.adapters import merge, save_adapter, update_rank
from lmseg_core.bundled import WEIGHTS
from lmseg_core.config import LMSegConfig
from lmseg_core.description import CONFIG
from lmseg_core.errors import ModelError, TrainingError, first_line
from lmseg_core.loss import SegmentationLoss
from lmseg_core.mirror import mirrored
from lmseg_core.model import LMSegForSemanticSegmentation
from lmseg_core.processor import LMSegImageProcessor
from lmseg_core.training import census
from lmseg_core.training.average import Average
from lmseg_core.training.card import write_card
from lmseg_core.training.console import Console, quietly
from lmseg_core.training.folder import REPORT, begin, earlier, write_json
from lmseg_core.training.network import build, count
from lmseg_core.training.normalisation import choose_processor, normalised
from lmseg_core.training.optimiser import optimiser, schedule
from lmseg_core.training.pictures import draw_curves, draw_validation
from lmseg_core.training.scale import set_scale
from lmseg_core.training.settings import Settings
from lmseg_core.training.trainer import Scores, WindowTrainer, last_checkpoint, to_labels
from lmseg_core.training.windows import Example, GridWindows, RandomWindows, cached


@dataclass(frozen=True)
class Report:
    """What came out of a training.

    folder: the finished model. figures: those of the validation data, by name. seconds: of training and validation,
    over all its parts. trained, weights: how many weights were trained, and how many there are. waiting: share of the
    training time spent waiting for data, of the last part.
    """

    folder: str
    steps: int
    seconds: float
    trained: int
    weights: int
    waiting: float
    figures: dict[str, float]

    def facts(self) -> dict[str, str]:
        """Return it for people."""
        return {
            "model": self.folder,
            "steps": str(self.steps),
            "time": f"{self.seconds / 60:.1f} min, {self.waiting:.1%} of the training spent waiting for data",
            "weights": f"{self.weights:,}, of which {self.trained:,} trained",
            **{name.replace("_", " "): f"{value:.4f}" for name, value in self.figures.items()},
        }


def train(
    settings: Settings,
    training: Sequence[Example],
    validation: Sequence[Example],
    extra: Sequence[TrainerCallback] = (),
    network: LMSegForSemanticSegmentation | None = None,
    fresh: bool = False,
) -> Report:
    """Train a network on random windows and return what was measured on the validation examples.

    `network` takes the place of the one that `settings.model` describes; `fresh` forgets an earlier training.

    Writes into `settings.output`: checkpoints, `best/`, `model/`, `curves.png`, `validation.png`, `report.json`. A
    folder that holds a finished training with the same settings is not trained again. Raises ModelError for what
    cannot be trained on, before anything is written, and TrainingError where a training had to stop.
    """
    if not fresh:
        done = earlier(settings)
        if done is not None:
            return Report(**done)
    with quietly():
        try:
            return _train(settings, training, validation, extra, network, fresh)
        except (OSError, SafetensorError) as error:  # all that is written here and not in a checkpoint
            raise TrainingError(
                f"{settings.output} cannot be written ({first_line(error)}); the last checkpoint is kept. Make room "
                "and run again."
            ) from error


def _train(
    settings: Settings,
    training: Sequence[Example],
    validation: Sequence[Example],
    extra: Sequence[TrainerCallback],
    given: LMSegForSemanticSegmentation | None,
    fresh: bool,
) -> Report:
    output = settings.output
    set_seed(settings.seed)
    network = given or build(settings, _sources(settings, training))
    _check(settings, training)
    training, validation = (_fitted(settings, network, examples) for examples in (training, validation))
    processor = choose_processor(settings, training)
    training, validation = (normalised(processor, examples) for examples in (training, validation))
    names = [entry.name for entry in network.config.classes]
    set_scale(cast(LMSegConfig, network.config), training, settings.model.config)
    counted = census.take(training, len(names), names)
    counted.check(names)
    _check_validation(settings, census.take(validation, len(names), names), names)
    length = settings.optimise.steps * settings.optimise.batch * settings.optimise.accumulate * _processes()
    half = settings.data.cache // 2
    random_windows = RandomWindows(cached(training, half), counted, settings, length)
    grid_windows = GridWindows(cached(validation, half), network.config.tile)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[network.config.ndim]
    if settings.optimise.checkpointing:
        network.gradient_checkpointing_enable()  # type: ignore[no-untyped-call]
    network.to(memory_format=layout)  # type: ignore[call-arg]  # torch's stubs forget it
    arguments = _arguments(settings)  # before anything is written: it refuses what cannot be had here
    if os.environ.get("RANK", "0") == "0":
        begin(settings, fresh)
    chosen = optimiser(network.parts(), settings.optimise)
    trainer = WindowTrainer(
        model=network,
        args=arguments,
        train_dataset=random_windows,
        eval_dataset=grid_windows,
        compute_metrics=Scores(len(names)),
        preprocess_logits_for_metrics=to_labels,
        optimizers=(chosen, schedule(chosen, settings.optimise)),
        loss=SegmentationLoss(settings.loss, counted.share),
        average=Average(network, settings.optimise.ema) if settings.optimise.ema else None,
        freeze=[network.parts()[part] for part in settings.optimise.freeze],
        keep=lambda folder: _keep(network, processor, folder),
    )
    trainer.remove_callback(PrinterCallback)
    console = Console(trainer, settings.watch.metric)
    for callback in (console, *_callbacks(settings), *extra):
        trainer.add_callback(callback)
    checkpoint = None if fresh else last_checkpoint(output)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not trainer.is_world_process_zero():
        return Report("", trainer.state.global_step, trainer.seconds, *count(network), console.waiting, {})
    finished = _finish(settings, processor, type(network))
    nn.Module.to(finished, trainer.args.device)
    report = Report(
        folder=str(output / "model"),
        steps=trainer.state.global_step,
        seconds=trainer.seconds,
        trained=count(network)[0],
        weights=count(finished)[1],
        waiting=console.waiting,
        figures=measure(finished, grid_windows, settings.optimise.batch),
    )
    draw_curves(trainer.state.log_history, settings.watch.metric, output / "curves.png")
    draw_validation(finished, grid_windows, finished.config.classes, output / "validation.png")
    write_card(output / "model" / "README.md", settings, asdict(report))
    write_json(output / REPORT, asdict(report))  # last: a training with a report is done
    return report


@torch.inference_mode()
def measure(network: LMSegForSemanticSegmentation, windows: GridWindows, batch: int) -> dict[str, float]:
    """Return the figures of a network on validation windows, averaged over mirror images where it predicts so."""
    device, scores = next(network.parameters()).device, Scores(len(network.config.classes))
    nn.Module.eval(network)

    def score(values: Tensor) -> Tensor:
        return torch.softmax(network(pixel_values=values).logits.float(), dim=1)

    for items in DataLoader(windows, batch_size=batch):
        found = mirrored(score, items["pixel_values"].to(device), network.config.mirror)
        scores.add(to_labels(found, items["labels"]), items["labels"])
    return scores.result()


def _sources(settings: Settings, training: Sequence[Example]) -> tuple[int, ...]:
    """Return the bands of each source, none where they do not add up, which is told of the image later."""
    sources = training[0].sources
    return sources if sum(sources) == len(settings.model.bands) else ()


def _fitted(settings: Settings, network: LMSegForSemanticSegmentation, examples: Sequence[Example]) -> list[Example]:
    """Return the examples with the sources of the network; ModelError where bands, sources or sizes do not agree."""
    wanted, sources = network.config.in_channels, tuple(network.config.sources or ())
    for example in examples:
        if example.image.shape[0] != wanted:
            raise ModelError(
                f"{example.name} has {example.image.shape[0]} bands and model.bands {wanted}; name each band, or "
                "choose with bands: in data."
            )
        if sources and example.sources not in ((), sources):
            raise ModelError(
                f"{example.name} has sources of {list(example.sources)} bands and the network of {list(sources)}; list "
                "the same sources in every pair."
            )
    if settings.augment.source_dropout and len(sources) < 2:
        raise ModelError(
            "augment.source_dropout is set for one source; list several as image: in data, or set it to 0."
        )
    return [replace(example, sources=sources) for example in examples]


def _check(settings: Settings, training: Sequence[Example]) -> None:
    for axis, want in enumerate(settings.data.window):
        largest = max((e.labels.shape[axis] for e in training if axis < len(e.labels.shape)), default=want)
        if want > largest:
            raise ModelError(
                f"data.window is {settings.data.window}, larger than every training image along axis {axis} "
                f"({training[0].name} has {training[0].labels.shape}); set it to {largest} or less there."
            )
    if settings.optimise.precision == "float16" and not torch.cuda.is_available():
        raise ModelError("optimise.precision is float16, which trains on a GPU only; use float32 or bfloat16.")


def _check_validation(settings: Settings, counted: census.Census, names: Sequence[str]) -> None:
    """ModelError where the figure that picks the best weights would be no number."""
    if settings.watch.metric == "foreground_dice" and not counted.counts[:, 1:].any():
        raise ModelError(
            f"the validation labels hold nothing but {names[0]}, which watch.metric foreground_dice leaves out; add "
            "labels that have more, or choose another metric."
        )


def _processes() -> int:
    """How many processes train together, as `accelerate launch` says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _arguments(settings: Settings) -> TrainingArguments:
    told, every = settings.optimise, min(settings.watch.evaluate, settings.optimise.steps)
    return TrainingArguments(
        output_dir=str(settings.output),
        max_steps=told.steps,
        per_device_train_batch_size=told.batch,
        per_device_eval_batch_size=told.batch,
        gradient_accumulation_steps=told.accumulate,
        max_grad_norm=told.clip,
        use_cpu=not torch.accelerator.is_available(),  # said, or bfloat16 is refused
        bf16=told.precision == "bfloat16",
        fp16=told.precision == "float16",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        logging_steps=max(1, every // 10),
        logging_nan_inf_filter=False,
        metric_for_best_model=settings.watch.metric,
        greater_is_better=True,
        batch_eval_metrics=True,
        label_names=["labels"],
        remove_unused_columns=False,
        # Windows are drawn by their number, so their order is the order of training.
        train_sampling_strategy="sequential",
        dataloader_num_workers=settings.data.workers,
        # Not forked: a process that also talks to Prefect or Dask has threads and handlers that a fork tears.
        dataloader_multiprocessing_context="spawn" if settings.data.workers else None,
        dataloader_persistent_workers=settings.data.workers > 0,
        dataloader_prefetch_factor=4 if settings.data.workers else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        report_to=list(settings.watch.report_to) or "none",
        seed=settings.seed,
        disable_tqdm=True,
    )


def _callbacks(settings: Settings) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if settings.watch.patience is not None:
        callbacks.append(EarlyStoppingCallback(settings.watch.patience))
    language = settings.model.language_model
    if language is not None and language.tune == "adalora":
        callbacks.append(_Ranks())
    return callbacks


class _Ranks(TrainerCallback):
    """Lets AdaLoRA move its ranks to where they matter, while the gradients are still there."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        update_rank(named["model"], state.global_step)


def _keep(network: LMSegForSemanticSegmentation, processor: LMSegImageProcessor, folder: Path) -> None:
    """Write a model folder in one piece: it is the old one or the new one, whenever the machine stops."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        network.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        # safetensors writes for nobody else, and a worker may run under another name.
        (fresh / WEIGHTS).chmod((fresh / CONFIG).stat().st_mode)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)  # on a full disk its half would only be in the way
        raise
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _finish(
    settings: Settings, processor: LMSegImageProcessor, kind: type[LMSegForSemanticSegmentation]
) -> LMSegForSemanticSegmentation:
    """Write the best weights as the finished model, adapters folded in, and return it as it was written."""
    output = settings.output
    network: LMSegForSemanticSegmentation = kind.from_pretrained(output / "best")
    if network.config.lm_adapter is not None:
        save_adapter(network, output / "adapter")
        merge(network)
    if settings.model.save_as == "float16":
        nn.Module.to(network, torch.float16)
    _keep(network, processor, output / "model")
    nn.Module.to(network, torch.float32)
    network.train(False)
    return network
