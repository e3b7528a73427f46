"""Where Python finds the packages `tiling`, `lmseg_core` and `flows`: ours, or others of the same name."""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("tiling", "lmseg_core", "flows")

# Where this installation lies, and a word in each package's docstring that others of the same name do not have.
_HOME = Path(__file__).resolve().parents[1]
_SIGNATURE = "lmseg"


def check_origin(package: str) -> None:
    """Check that an import of this package gives the one of this installation.

    Raises:
        ImportError: one line with the folder or file that is in the way, and what to do.
    """
    folder = _find(package)
    if folder is None:
        raise ImportError(f"lmseg's package {package!r} is missing from {_HOME}; install lmseg again")
    if folder.parent != _HOME:
        raise ImportError(
            f"{folder} is in the way of lmseg's package {package!r}, which is in {_HOME}; rename it, start Python "
            f"elsewhere, take its folder from PYTHONPATH, or pip uninstall it"
        )
    first = folder / "__init__.py"
    if not first.is_file() or _SIGNATURE not in first.read_text(encoding="utf-8"):
        raise ImportError(f"another package has replaced lmseg's in {folder}; pip uninstall it and install lmseg again")


def leave_current_folder() -> None:
    """Take the current folder from the search path, where `python -m` puts it and the command `lmseg` does not."""
    here = Path.cwd()
    if here != _HOME and Path(sys.path[0]).resolve() == here:
        del sys.path[0]


def _find(package: str) -> Path | None:
    """Return the folder or file that an import of a package loads, or None where there is none."""
    module = sys.modules.get(package)
    spec = find_spec(package) if module is None else module.__spec__
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    file = folders[0] if folders else spec.origin
    return None if file is None else Path(file).resolve()
