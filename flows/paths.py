"""Paths that runs of a server may be told."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo


def check_absolute(path: Path, name: str, example: str) -> Path:
    """The path of the field `name`; ValueError where it is relative, with one that would do."""
    # A deployment runs in a temporary working directory: what is relative to it is lost.
    if not path.is_absolute():
        raise ValueError(
            f"{name} {str(path)!r} is relative; give an absolute path such as {os.sep}data{os.sep}{example}"
        )
    return path


def _of_field(path: Path, info: ValidationInfo) -> Path:
    return check_absolute(path, str(info.field_name), str(info.field_name))


AbsolutePath = Annotated[Path, AfterValidator(_of_field)]
