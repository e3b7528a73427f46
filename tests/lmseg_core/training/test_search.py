"""A search finds the better value, stops the hopeless, and goes on after a kill."""

from collections.abc import Callable, Sequence
from typing import Any

import optuna
import pytest
import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState

from lmseg_core.errors import ModelError, TrainingError
from lmseg_core.training.run import Report
from lmseg_core.training.search import search
from lmseg_core.training.settings import Settings

Make = Callable[..., Settings]
SPACE = {"optimise.rate": [1e-5, 1e-1, "log"], "optimise.batch": [2, 9], "optimise.schedule": ["cosine", "poly"]}


def told(trials: int, space: dict[str, list[Any]] = SPACE) -> dict[str, Any]:
    return {"search": {"trials": trials, "steps": 40, "space": space}}


class Trainings:
    """Stands for trainings: the figure is the rate, reported twice on the way."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []
        self.killed: int | None = None
        self.spoiled: set[int] = set()

    def __call__(self, settings: Settings, fresh: bool, callbacks: Sequence[TrainerCallback]) -> Report:
        assert not fresh
        self.settings.append(settings)
        if len(self.settings) == self.killed:
            raise SystemExit  # what a kill leaves behind: a trial that nobody has ended
        if len(self.settings) in self.spoiled:
            raise TrainingError("the loss became nan in step 3")
        figure = settings.optimise.rate
        for step in (20, 40):
            state = TrainerState(global_step=step, max_steps=40)
            for callback in callbacks:
                callback.on_evaluate(None, state, TrainerControl(), metrics={"eval_mean_iou": figure})
        return Report("", 40, 1.0, 1, 1, 0.0, {"mean_iou": figure})


def test_it_finds_the_best_and_writes_settings_that_can_be_trained(make_settings: Make) -> None:
    run = Trainings()
    settings = make_settings(told(12))
    facts = search(settings, run)
    rates = [told.optimise.rate for told in run.settings]
    assert facts["mean iou"] == f"{max(rates):.4f}"
    assert facts["optimise.rate"] == str(max(rates))
    best = Settings.model_validate(yaml.safe_load((settings.output / "search" / "best.yaml").read_text()))
    assert (best.optimise.rate, best.optimise.steps, best.search) == (max(rates), 8, None)
    assert best.output == settings.output
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert {told.optimise.schedule for told in run.settings} == {"cosine", "poly"}
    assert len({told.output for told in run.settings}) == 12
    # Some of them fell behind, and were stopped at their first figure.
    assert "0 were stopped" not in facts["trials"]


def test_more_trials_go_on_and_draw_other_values(make_settings: Make) -> None:
    run = Trainings()
    search(make_settings(told(3)), run)
    search(make_settings(told(5)), run)
    assert len(run.settings) == 5
    assert len({told.optimise.rate for told in run.settings}) == 5
    search(make_settings(told(2)), run, fresh=True)
    assert len(run.settings) == 7


def test_a_killed_trial_comes_again_in_its_own_folder(make_settings: Make) -> None:
    run = Trainings()
    run.killed = 2
    with pytest.raises(SystemExit):
        search(make_settings(told(3)), run)
    search(make_settings(told(3)), run)
    assert len(run.settings) == 4
    assert run.settings[1] == run.settings[2]
    assert len({told.output for told in run.settings}) == 3


def test_a_spoiled_trial_counts_and_does_not_end_the_search(make_settings: Make) -> None:
    run = Trainings()
    run.spoiled = {1}
    assert search(make_settings(told(2)), run)["trials"].startswith("2, of which 1")
    run = Trainings()
    run.spoiled = {1, 2}
    with pytest.raises(TrainingError, match=r"no trial of .*the loss became nan"):
        search(make_settings(told(2) | {"output": str(make_settings().output) + "-2"}), run)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"optimise.rat": [0.1, 0.2]}, "did you mean"),
        ({"optimise.rate": [0.1]}, "two choices"),
        ({"optimise.rate": [0.0, 0.2, "log"]}, "begin above 0"),
        ({"optimise.rate": [0.1, -0.2]}, "rise"),
        ({"optimise.batch": [0, 4]}, "optimise.batch 0"),
        ({"seed.deep": [1, 2]}, "leads nowhere"),
    ],
)
def test_values_are_checked_before_the_first_trial(
    space: dict[str, list[Any]], words: str, make_settings: Make
) -> None:
    run = Trainings()
    settings = make_settings(told(2, space))
    with pytest.raises(ModelError, match=words):
        search(settings, run)
    assert not run.settings
    assert not settings.output.exists()


def test_the_pruner_is_that_of_optuna(make_settings: Make) -> None:
    run = Trainings()
    settings = make_settings(told(10))
    search(settings, run)
    (name,) = optuna.get_all_study_names(f"sqlite:///{settings.output / 'search' / 'trials.db'}")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{settings.output / 'search' / 'trials.db'}")
    pruned = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.number >= 4
        assert list(trial.intermediate_values) == [20]
