"""A training from a YAML file, as the command line and the Prefect flow both run it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lmseg_core.errors import ModelError
from tiling import InputError

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from lmseg_core.training.run import Report
    from lmseg_core.training.settings import Settings

# What the extra `train` brings; asked for before anything slow is imported.
_NEEDED = ("accelerate", "matplotlib")
# How torch words what a process that reads data raised.
_WORKER = re.compile(r"^Caught \w+ in DataLoader worker")


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """`optimise.rate=1e-3` as a key and its YAML value.

    Raises:
        InputError: where there is no `=`, or the value is not YAML.
    """
    from lmseg_core.training.settings import parse_yaml

    changes: dict[str, Any] = {}
    for text in texts:
        key, found, value = text.partition("=")
        if not found or not key:
            raise InputError(f"--set {text!r} names no value; write it as optimise.rate=0.001")
        try:
            changes[key] = parse_yaml(value)
        except yaml.YAMLError:
            raise InputError(f"--set {text!r} has a value that is not YAML; put it into quotes") from None
    return changes


def load_settings(config: Path, changes: Mapping[str, Any]) -> Settings:
    """The settings in a file, with changes put over them.

    Raises:
        InputError: where the extra that trains is not installed.
        ModelError: where the file cannot be used.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"training needs {', '.join(missing)}; pip install 'lmseg[train]'")
    from lmseg_core.training.settings import read_settings

    settings = read_settings(config, changes)
    for name in settings.watch.report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"watch.report_to has {name}, which is not installed; pip install {name}")
    return settings


def run_training(settings: Settings, fresh: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> Report:
    """Opens the data and trains; the same settings again go on where they stopped.

    Args:
        fresh: forget what the output folder holds of an earlier training.

    Raises:
        InputError, ModelError: where the settings or the data cannot be used.
        TrainingError: where the training had to stop.
    """
    from flows.training.data import examples
    from lmseg_core.training.network import class_names
    from lmseg_core.training.run import train

    try:
        names = class_names(settings.model)
        training = examples(settings.data, settings.data.train, names)
        validation = examples(settings.data, settings.data.validation, names)
        return train(settings, training, validation, callbacks, fresh=fresh)
    except (InputError, ModelError) as error:
        if not _WORKER.match(str(error)):
            raise
        # The message holds the traceback of the other process; its last line is the error's own.
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None


def run_search(settings: Settings, fresh: bool = False) -> dict[str, str]:
    """Tries settings with Optuna, as `search` in the file says, and returns the best as facts for people.

    Args:
        fresh: forget earlier trials.

    Raises:
        InputError: where Optuna is not installed, or the file has no `search`.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--search needs optuna; pip install 'lmseg[train]'")
    if settings.search is None:
        raise InputError("--search finds no search: in the file; add trials and a space")
    from lmseg_core.training.search import search

    return search(settings, run_training, fresh)
