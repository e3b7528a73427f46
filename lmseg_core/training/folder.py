"""The folder of a training: whose it is, whether it is done, and what in it may be removed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lmseg_core.errors import ModelError
from lmseg_core.training.settings import NUMERICS, Settings

SETTINGS, REPORT, SEARCH = "settings.json", "report.json", "search"
# All that a training writes. What else lies in the folder is the user's.
_NAMES = ("best", "model", "adapter", "runs", "curves.png", "validation.png", REPORT, SETTINGS)
_OURS = ("checkpoint-*", *_NAMES, *(f"{name}.new" for name in _NAMES))


def earlier(settings: Settings) -> dict[str, Any] | None:
    """Return the report of this training where it is done already; ModelError where the folder is another's."""
    output, mine = settings.output, settings.model_dump(mode="json")
    file = output / SETTINGS
    kept = _kept(file)
    if kept is None:
        _check_empty(output)
        return None
    if kept.get("numerics") != NUMERICS:
        raise ModelError(
            f"{output} holds a training of another version of lmseg, which computes other weights; pass --fresh, or "
            "another output."
        )
    if kept["digest"] != settings.digest:
        changed = ", ".join(sorted(_differences(kept["settings"], mine)))
        raise ModelError(f"{output} holds a training with another {changed}; pass --fresh, or another output.")
    report = output / REPORT
    return dict(json.loads(report.read_text())) if report.exists() else None


def begin(settings: Settings, fresh: bool) -> None:
    """Make the folder and write down whose it is; `fresh` removes an earlier training, and nothing else.

    Raises ModelError where it cannot be written, or holds something else.
    """
    output = settings.output
    if _kept(output / SETTINGS) is None:
        _check_empty(output)
    elif fresh:
        start = Path(settings.model.start or "")
        if settings.model.start and start.exists() and start.resolve().is_relative_to(output.resolve()):
            raise ModelError(f"model.start {start} lies in {output}, which would be removed; give another output.")
        for pattern in _OURS:
            for path in output.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        output.mkdir(parents=True, exist_ok=True)
        mine = {"digest": settings.digest, "numerics": NUMERICS, "settings": settings.model_dump(mode="json")}
        write_json(output / SETTINGS, mine)
    except OSError as error:
        raise ModelError(f"{output} cannot be written ({error.strerror}); give another folder as output.") from None


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole or not there."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(json.dumps(content, indent=1))
    os.replace(fresh, path)


def _kept(file: Path) -> dict[str, Any] | None:
    """What a training wrote down of its settings; None where the file is missing or somebody else's."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(kept, dict) and isinstance(kept.get("digest"), str) and isinstance(kept.get("settings"), dict)
    return kept if ours else None


def _check_empty(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ModelError(f"{output} is a file; give a new folder as output.")
    others = [file.name for file in output.iterdir() if file.name != SEARCH] if output.exists() else []
    if others:
        raise ModelError(f"{output} holds other files, such as {others[0]}; give an empty or new folder as output.")


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for key in old.keys() | new.keys() for d in _differences(old.get(key), new.get(key), f"{path}.{key}")]
    return [] if old == new else [path.lstrip(".")]
