"""Packages of other people named `flows` or `tiling` are noticed, in real folders and processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPEN = "import lmseg; print(lmseg.open.__module__)"


def _run(arguments: list[str], folder: Path, *search: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*search, ROOT]))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _package(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text('"""Somebody else\'s."""\n')
    return folder / name


def _module(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text('"""Somebody else\'s."""\n')
    return folder / f"{name}.py"


def _bare_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    return folder / name


@pytest.mark.parametrize("make", [_package, _module])
def test_another_tiling_is_named(make, tmp_path: Path) -> None:
    other = make(tmp_path, "tiling")
    done = _run(["-c", OPEN], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {other} is in the way of lmseg's package 'tiling'")


def test_another_tiling_that_is_loaded_already_is_named(tmp_path: Path) -> None:
    other = _package(tmp_path, "tiling")
    done = _run(["-c", f"import tiling; {OPEN}"], tmp_path)
    assert f"ImportError: {other} is in the way" in done.stderr


@pytest.mark.parametrize("make", [_package, _module, _bare_folder])
def test_a_project_with_flows_of_its_own_imports_lmseg_and_its_flows(make, tmp_path: Path) -> None:
    other = make(tmp_path, "flows")
    done = _run(
        ["-c", f"{OPEN}; import flows; print(flows.__path__[0] if hasattr(flows, '__path__') else 0)"], tmp_path
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith("tiling.")
    # A folder without __init__.py never wins over a package.
    if make is _package:
        assert done.stdout.splitlines()[1] == str(other)


@pytest.mark.parametrize("name", ["flows", "tiling", "lmseg_core"])
@pytest.mark.parametrize("make", [_package, _module, _bare_folder])
def test_the_command_works_in_a_folder_with_packages_of_these_names(make, name: str, tmp_path: Path) -> None:
    make(tmp_path, name)
    done = _run(["-m", "lmseg", "models"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "land-cover-tiny" in done.stdout


@pytest.mark.parametrize("name", ["flows", "tiling", "lmseg_core"])
def test_the_command_names_what_is_in_the_way_on_the_search_path(name: str, tmp_path: Path) -> None:
    other = _package(tmp_path / "theirs", name)
    done = _run(["-m", "lmseg", "models"], tmp_path, tmp_path / "theirs")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"lmseg: {other} is in the way of lmseg's package {name!r}")


def test_a_package_that_was_installed_over_ours_is_noticed(tmp_path: Path) -> None:
    """What `pip install tiling` does to an installed lmseg: it replaces files in the same folder."""
    for package in ("lmseg", "tiling"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "tiling" / "__init__.py").write_text('"""Somebody else\'s."""\n')
    done = _run(["-c", OPEN], tmp_path)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: another package has replaced lmseg's in {tmp_path / 'tiling'}; "
        "pip uninstall it and install lmseg again"
    )
