"""Extras: what each holds, and one line where it is missing."""

import re
import tomllib
from pathlib import Path

import pytest

from tiling import InputError
from tiling.extras import _PACKAGES, missing, require

ROOT = Path(__file__).parents[2]


def test_every_package_is_listed_under_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in _PACKAGES.items():
        listed = {re.split(r"[<>=\[]", line)[0].replace("-", "_") for line in extras[extra]}
        assert {*packages} <= listed


def test_an_installed_extra_passes() -> None:
    assert missing("volumes") == ()
    require("volumes", "NIfTI volumes")


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python itself keeps of a package that is not there.
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(InputError) as refusal:
        require("volumes", "NIfTI volumes")
    assert str(refusal.value) == "NIfTI volumes need nibabel; pip install 'lmseg[volumes]'"
