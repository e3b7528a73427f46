"""Importing the package, and what the command line needs of it, loads no torch."""

import subprocess
import sys

import pytest

import lmseg_core


@pytest.mark.parametrize(
    "line",
    [
        "import lmseg_core",
        "from lmseg_core.errors import ModelError",
        "from lmseg_core import ModelError, SegmentClass, Confusion",
        "from lmseg_core import bundled; bundled.names(); bundled.folder('land-cover-tiny')",
    ],
)
def test_light_imports_load_no_torch(line: str) -> None:
    check = f"{line}; import sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_public_name_resolves() -> None:
    for name in lmseg_core.__all__:
        assert getattr(lmseg_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = lmseg_core.Nothing
