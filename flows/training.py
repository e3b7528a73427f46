"""A training from a YAML file, as the command line and the Prefect flow both run it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tiling import InputError

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from lmseg_core.training.run import Report
    from lmseg_core.training.settings import Settings

# What the extra `train` brings; asked for before anything slow is imported.
_NEEDED = ("accelerate", "matplotlib")


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """`optimise.rate=1e-3` as a key and its YAML value.

    Raises:
        InputError: where there is no `=`.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, found, value = text.partition("=")
        if not found or not key:
            raise InputError(f"--set {text!r} names no value; write it as optimise.rate=0.001")
        changes[key] = _number(yaml.safe_load(value))
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

    return read_settings(config, changes)


def run_training(settings: Settings, fresh: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> Report:
    """Opens the data and trains; the same settings again go on where they stopped.

    Args:
        fresh: forget what the output folder holds of an earlier training.

    Raises:
        InputError, ModelError: where the settings or the data cannot be used.
        TrainingError: where the training had to stop.
    """
    from flows.training_data import examples
    from lmseg_core.training.network import class_names
    from lmseg_core.training.run import SETTINGS, train

    names = class_names(settings.model)
    training = examples(settings.data, settings.data.train, names)
    validation = examples(settings.data, settings.data.validation, names)
    # Only what this command made is removed, and only after everything else was found good.
    if fresh and (settings.output / SETTINGS).is_file():
        shutil.rmtree(settings.output)
    return train(settings, training, validation, callbacks)


def run_search(settings: Settings) -> dict[str, str]:
    """Tries settings with Optuna, as `search` in the file says, and returns the best as facts for people.

    Raises:
        InputError: where Optuna is not installed, or the file has no `search`.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--search needs optuna; pip install 'lmseg[train]'")
    if settings.search is None:
        raise InputError("--search finds no search: in the file; add trials and a space")
    from lmseg_core.training.search import search

    return search(settings, run_training)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
