"""Optional parts of lmseg: the packages that each extra installs, and the error that names a missing one."""

from importlib.util import find_spec

from tiling.errors import InputError

# What pyproject.toml lists under each extra, by the names that are imported.
_PACKAGES = {
    "volumes": ("nibabel", "indexed_gzip"),
    "evaluate": ("scipy",),
    "cluster": ("dask", "distributed"),
    "prefect": ("prefect",),
}


def missing(extra: str) -> tuple[str, ...]:
    """Return the packages of an extra that are not installed."""
    return tuple(package for package in _PACKAGES[extra] if find_spec(package) is None)


def require(extra: str, purpose: str) -> None:
    """Check that an extra is installed; `purpose` is the subject of the error, in the plural.

    Raises:
        InputError: one line with the missing packages and the command that installs them.
    """
    if packages := missing(extra):
        raise InputError(f"{purpose} need {' and '.join(packages)}; pip install 'lmseg[{extra}]'")
