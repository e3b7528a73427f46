"""Hyper-parameter search with Optuna."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmseg_core.errors import ModelError, TrainingError
from lmseg_core.training.folder import SEARCH
from lmseg_core.training.run import Report
from lmseg_core.training.settings import Settings, parse_settings, put

Run = Callable[[Settings, bool, Sequence[TrainerCallback]], Report]
_BEFORE_PRUNING = 4  # trials that run to their end, whatever they are like


def search(settings: Settings, run: Run, fresh: bool = False) -> dict[str, str]:
    """Train as often as `settings.search` says, and return the best values found, as facts for people.

    Everything goes into the folder `search` of the output: trials into `trials.db`, each with a folder of its own, and
    the settings with the best values into `best.yaml`. The same call again goes on with the trial that was interrupted
    and adds those that are missing; `fresh` forgets earlier trials. A trial that falls behind the median of the others
    at the same step is stopped. Raises ModelError for values that the settings refuse, before the first trial.
    """
    told, folder = settings.search, settings.output / SEARCH
    assert told is not None
    for key, values in told.space.items():
        for value in _examples(key, values):
            _changed(settings, {key: value})
    if fresh and (folder / "trials.db").exists():
        shutil.rmtree(folder)
    study = _study(settings, folder)

    def objective(trial: optuna.Trial) -> float:
        chosen = {key: _suggest(trial, key, values) for key, values in told.space.items()}
        try:
            report = run(_changed(settings, chosen), False, [_Pruning(trial, settings.watch.metric)])
        except TrainingError as error:
            trial.set_user_attr("stopped", str(error))
            raise optuna.TrialPruned from error
        return report.figures[settings.watch.metric]

    study.optimize(objective, n_trials=max(told.trials - len(_done(study)), 0))
    finished = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    if not finished:
        stopped = next((t.user_attrs["stopped"] for t in study.trials if "stopped" in t.user_attrs), "all were pruned")
        raise TrainingError(f"no trial of {folder} came to its end ({stopped}); change search.space.")
    best = {key: _meant(values, study.best_params[key]) for key, values in told.space.items()}
    _write_best(settings, best, folder / "best.yaml")
    pruned = len(_done(study)) - len(finished)
    return {
        settings.watch.metric.replace("_", " "): f"{study.best_value:.4f}",
        **{key: str(value) for key, value in best.items()},
        "trials": f"{len(_done(study))}, of which {pruned} were stopped early",
        "written": str(folder / "best.yaml"),
    }


def _study(settings: Settings, folder: Path) -> optuna.Study:
    """Return the study in the folder, with the trial that was interrupted as its next."""
    assert settings.search is not None
    # Other values or lengths are another search; more trials are not.
    told = json.dumps([settings.search.space, settings.search.steps])
    name = f"{settings.digest}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'trials.db'}",
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING),
    )
    trials = study.trials
    # One seed for all parts of a search would draw the same values in each.
    study.sampler = optuna.samplers.TPESampler(seed=settings.seed + len(trials))
    if trials and trials[-1].state in (TrialState.RUNNING, TrialState.FAIL):
        if trials[-1].state is TrialState.RUNNING:  # killed before it could say so
            study.tell(trials[-1].number, state=TrialState.FAIL)
        if trials[-1].params:
            study.enqueue_trial(trials[-1].params)
    return study


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


class _Pruning(TrainerCallback):
    """Tells Optuna how a trial does, and stops it when it falls behind."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self._trial = trial
        self._metric = f"eval_{metric}"

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        self._trial.report(named["metrics"][self._metric], state.global_step)
        if state.global_step < state.max_steps and self._trial.should_prune():
            raise optuna.TrialPruned


def _changed(settings: Settings, chosen: Mapping[str, Any]) -> Settings:
    """The settings of one trial; ModelError where a key does not exist or a value is refused.

    The folder is named by what is chosen, so that an interrupted trial finds its checkpoints again.
    """
    assert settings.search is not None
    raw = settings.model_dump(mode="json")
    raw["search"] = None
    raw["optimise"]["steps"] = settings.search.steps
    for key, value in chosen.items():
        put(raw, key, value)
    told = parse_settings(raw, "search.space")
    return told.model_copy(update={"output": settings.output / SEARCH / f"trial-{told.digest}"})


def _write_best(settings: Settings, best: Mapping[str, Any], path: Path) -> None:
    raw = settings.model_dump(mode="json", exclude={"search"}, exclude_unset=True)
    for key, value in best.items():
        put(raw, key, value)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


def _is_range(values: Sequence[Any]) -> bool:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values[:2])
    return len(values) >= 2 and numbers and list(values[2:]) in ([], ["log"])


def _examples(key: str, values: Sequence[Any]) -> list[Any]:
    """The values that must be allowed: both ends of a range, or every choice."""
    if len(values) < 2:
        raise ModelError(f"search.space has {key} with {values}; give a range [low, high], or two choices or more.")
    if not _is_range(values):
        return list(values)
    low, high = values[:2]
    if low >= high or (len(values) == 3 and low <= 0):
        raise ModelError(f"search.space has {key} with {values}; let the range rise, and begin above 0 with log.")
    return [low, high]


def _suggest(trial: optuna.Trial, key: str, values: Sequence[Any]) -> Any:
    if not _is_range(values):
        # By their text: Optuna stores lists and mappings only so.
        return _meant(values, trial.suggest_categorical(key, [str(value) for value in values]))
    low, high, log = values[0], values[1], len(values) == 3
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=log)
    return trial.suggest_float(key, low, high, log=log)


def _meant(values: Sequence[Any], stored: Any) -> Any:
    """The value of the file that a stored one stands for."""
    return stored if _is_range(values) else next(value for value in values if str(value) == stored)
