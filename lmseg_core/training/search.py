"""Hyper-parameter search with Optuna."""

from collections.abc import Callable, Sequence
from typing import Any

import optuna
import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmseg_core.errors import ModelError, TrainingError
from lmseg_core.training.run import Report
from lmseg_core.training.settings import Settings, parse_settings

Run = Callable[[Settings, bool, Sequence[TrainerCallback]], Report]


def search(settings: Settings, run: Run) -> dict[str, str]:
    """Train as often as `settings.search` says, and return the best values found, as facts for people.

    Trials are kept in `search.db` of the output folder, and the same call again adds those that are missing; the best
    values go to `search.yaml`. A trial that falls behind the median of the others at the same step is stopped.
    """
    told = settings.search
    assert told is not None
    for key, values in told.space.items():
        _check(key, values)
        _changed(settings, {key: _examples(values)[0]}, "check")
    settings.output.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{settings.output / 'search.db'}",
        study_name=settings.digest,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=settings.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )

    def objective(trial: optuna.Trial) -> float:
        chosen = {key: _suggest(trial, key, values) for key, values in told.space.items()}
        trial_settings = _changed(settings, chosen, f"trial-{trial.number}")
        report = run(trial_settings, True, [_Pruning(trial, settings.watch.metric)])
        return report.figures[settings.watch.metric]

    done = [trial for trial in study.trials if trial.state.is_finished()]
    study.optimize(objective, n_trials=max(told.trials - len(done), 0), catch=(TrainingError,))
    best = study.best_trial
    (settings.output / "search.yaml").write_text(yaml.safe_dump(dict(best.params)))
    return {
        settings.watch.metric.replace("_", " "): f"{best.value:.4f}",
        **{key: str(value) for key, value in best.params.items()},
        "trials": str(len(study.trials)),
        "written": str(settings.output / "search.yaml"),
    }


class _Pruning(TrainerCallback):
    """Tells Optuna how a trial does, and stops it when it falls behind."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self._trial = trial
        self._metric = f"eval_{metric}"

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        self._trial.report(named["metrics"][self._metric], state.global_step)
        if state.global_step < state.max_steps and self._trial.should_prune():
            raise optuna.TrialPruned


def _changed(settings: Settings, chosen: dict[str, Any], name: str) -> Settings:
    """The settings of one trial; ModelError where a key does not exist or a value is refused."""
    raw = settings.model_dump(mode="json")
    assert settings.search is not None
    raw["optimise"]["steps"] = settings.search.steps
    raw["output"] = str(settings.output / name)
    raw["search"] = None
    for key, value in chosen.items():
        place = raw
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return parse_settings(raw, "search.space")


def _check(key: str, values: list[Any]) -> None:
    if len(values) < 2:
        raise ModelError(f"search.space has {key} with {values}; give a range [low, high], or two choices or more.")


def _is_range(values: list[Any]) -> bool:
    numbers = values[:2]
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in numbers) and values[2:] in ([], ["log"])


def _examples(values: list[Any]) -> list[Any]:
    return values[:2] if _is_range(values) else values


def _suggest(trial: optuna.Trial, key: str, values: list[Any]) -> Any:
    if not _is_range(values):
        return trial.suggest_categorical(key, values)
    low, high, log = values[0], values[1], values[2:] == ["log"]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=log)
    return trial.suggest_float(key, low, high, log=log)
