"""Paths that runs of a server may be told."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo


def _check_absolute(path: Path, info: ValidationInfo) -> Path:
    # A deployment runs in a temporary working directory: what is relative to it is lost.
    if not path.is_absolute():
        name = info.field_name
        raise ValueError(f"{name} {str(path)!r} is relative; give an absolute path such as {os.sep}data{os.sep}{name}")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_check_absolute)]
