"""Small untrained models, and the command line called in this process."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from flows.cli import main


@pytest.fixture(scope="session")
def raster_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model for 3 bands and 4 classes."""
    return _save_model(tmp_path_factory.mktemp("models") / "raster", ndim=2, channels=3, tile=[64, 64])


@pytest.fixture(scope="session")
def volume_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model for volumes and 4 classes."""
    return _save_model(tmp_path_factory.mktemp("models") / "volume", ndim=3, channels=1, tile=[16, 16, 16])


@pytest.fixture(scope="session")
def fixed_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model for 3 bands that normalises by statistics of its own."""
    folder = tmp_path_factory.mktemp("models") / "fixed"
    return _save_model(folder, ndim=2, channels=3, tile=[64, 64], mode="fixed")


def _save_model(folder: Path, ndim: int, channels: int, tile: list[int], mode: str = "image") -> str:
    import torch

    from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor

    torch.manual_seed(0)
    names = {i: f"class {i}" for i in range(4)}
    config = LMSegConfig(ndim=ndim, in_channels=channels, widths=[4, 8], tile=tile, id2label=names)
    LMSegForSemanticSegmentation(config).save_pretrained(folder)
    statistics = {"image_mean": [128.0] * channels, "image_std": [60.0] * channels} if mode == "fixed" else {}
    LMSegImageProcessor(mode=mode, **statistics).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GeoTIFF of 3 x 300 x 260 smooth pixels in UTM."""
    return _picture(tmp_path_factory.mktemp("images") / "picture.tif", 300, 260)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GeoTIFF of 3 x 2200 x 2100 smooth pixels in UTM, enough for several blocks."""
    return _picture(tmp_path_factory.mktemp("images") / "wide.tif", 2200, 2100)


def _picture(path: Path, height: int, width: int) -> str:
    y, x = np.mgrid[:height, :width]
    bands = [np.sin(x / (7 + i)) + np.cos(y / (11 - i)) for i in range(3)]
    values = (60 * np.stack(bands) + 128).astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8", crs="EPSG:32618",
        transform=Affine(10, 0, 441730, 0, -10, 4176460),
    ) as target:  # fmt: skip
        target.write(values)
    return str(path)


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs `lmseg ARGUMENTS` in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmseg", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory that is soon full."""

    folder: Path

    def resize(self, size: str) -> None:
        """Give it another size, such as `70k`."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 1 MiB; skips the test where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    yield SmallDisk(folder)
    subprocess.run(["umount", folder], check=True)
