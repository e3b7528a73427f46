"""What may import what."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_importing_tiling_loads_no_network_and_no_orchestrator():
    code = (
        "import sys, tiling; [getattr(tiling, n) for n in tiling.__all__]; "
        "import tiling.formats.cog, tiling.formats.nifti; "
        "print([m for m in ('torch', 'transformers', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_looking_at_a_header_needs_no_zarr_and_no_dask():
    code = (
        "import sys, tiling; tiling.open, tiling.Grid; "
        "print([m for m in ('zarr', 'dask', 'distributed', 'rasterio', 'nibabel') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import tiling

    assert all(hasattr(tiling, name) for name in tiling.__all__)
    assert dir(tiling) == tiling.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tiling.nothing  # noqa: B018  # looked up for its error


def test_packages_import_in_one_direction():
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
