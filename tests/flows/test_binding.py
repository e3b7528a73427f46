"""Whether a model is for an image: its pixels, the order of its bands, its values."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

import tiling
from flows.binding import bind_model
from flows.parameters import RegionParameters, VolumeParameters
from tests.flows.conftest import Cli
from tiling import Area, Box, InputError

UTM = {"crs": "EPSG:32618", "transform": Affine(10, 0, 441730, 0, -10, 4176460)}


def write(path: Path, scene: Path, change: Callable[[np.ndarray], np.ndarray] = lambda v: v, **profile: Any) -> str:
    """A GeoTIFF of a part of the Sentinel-2 sample, with other values, bands or geometry."""
    names = profile.pop("names", None)
    with rasterio.open(scene) as image:
        values = change(image.read(window=((200, 328), (200, 328))))
        names = image.descriptions if names is None else names
    settings = {"driver": "GTiff", "height": 128, "width": 128, "count": len(values), "dtype": values.dtype} | UTM
    with rasterio.open(path, "w", **settings | profile) as target:
        target.write(values)
        target.descriptions = names
    return str(path)


def doubts(source: str, **parameters: Any) -> tuple[str, ...]:
    """What is doubtful about a raster for land-cover-tiny."""
    told = RegionParameters(sources=[source], output=Path("/nowhere"), **{"model": "land-cover-tiny"} | parameters)
    image = tiling.open(source, bands=tuple(told.bands) if told.bands else None)
    return bind_model(image, Area(Box.whole(image.space.shape)), told).doubts


def test_the_bundled_samples_are_beyond_doubt(scene: Path) -> None:
    assert doubts(str(scene)) == ()
    assert doubts(str(scene.parent / "yellowstone.jpg"), model="aerial-tiny") == ()


@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        ({"transform": Affine(30, 0, 441730, 0, -30, 4176460)}, "pixels of 30 m"),
        ({"transform": Affine(1, 0, 441730, 0, -1, 4176460)}, "pixels of 1 m"),
        ({"crs": "EPSG:4326", "transform": Affine(0.01, 0, -75.7, 0, -0.01, 37.7)}, "pixels of 889 x 1.11e+03 m"),
        ({"crs": "EPSG:3857", "transform": Affine(20, 0, -8e6, 0, -20, 0)}, "pixels of 20 x 19.9 m"),
    ],
)
def test_pixels_of_another_size_are_refused(scene: Path, tmp_path: Path, geometry: dict[str, Any], size: str) -> None:
    source = write(tmp_path / "a.tif", scene, **geometry)
    with pytest.raises(InputError, match="--any-spacing") as caught:
        doubts(source)
    assert f"{size}, but land-cover-tiny is for 10 m and was tested from 0.5 to 1.5 times that" in str(caught.value)
    (line,) = doubts(source, any_spacing=True)
    assert size in line


@pytest.mark.parametrize(
    "geometry",
    [
        {"transform": Affine(12, 0, 441730, 0, -12, 4176460)},
        {"crs": "EPSG:3857", "transform": Affine(20, 0, -8e6, 0, -20, 8.4e6)},  # 10 m at 60 degrees north
        {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, -75.7, 0, -1e-4, 37.7)},
    ],
)
def test_pixels_within_the_range_pass(scene: Path, tmp_path: Path, geometry: dict[str, Any]) -> None:
    assert doubts(write(tmp_path / "a.tif", scene, **geometry)) == ()


def test_pixels_of_no_known_size_are_said(scene: Path, tmp_path: Path) -> None:
    (line,) = doubts(write(tmp_path / "a.tif", scene, crs=None))
    assert "does not say how large its pixels are; land-cover-tiny is for 10 m" in line


def test_voxels_of_another_size_are_refused(brain: Path, tmp_path: Path, cli: Cli) -> None:
    image: Any = nibabel.load(brain)
    part = np.asarray(image.dataobj)[60:100, 90:130, 50:90]
    path = tmp_path / "half.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.kron(part, np.ones((2, 2, 2), np.uint8)), np.diag([0.5, 0.5, 0.5, 1])), path)
    code, _, err = cli("segment", path, "-o", tmp_path / "out")
    assert code == 2
    assert "voxels of 0.5 mm, but hippocampus-tiny is for 1 mm and was tested from 0.8 to 1.25 times that" in err
    assert "--any-spacing" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    told = VolumeParameters(sources=[str(path)], output=tmp_path, any_spacing=True)
    volume = tiling.open(path)
    (line,) = bind_model(volume, Area(Box.whole(volume.space.shape)), told).doubts
    assert "voxels of 0.5 mm" in line


def test_a_run_that_goes_on_says_so(scene: Path, tmp_path: Path, cli: Cli) -> None:
    source = write(tmp_path / "coarse.tif", scene, transform=Affine(30, 0, 441730, 0, -30, 4176460))
    assert cli("segment", source, "-o", tmp_path / "out")[0] == 2
    code, _, err = cli("segment", source, "-o", tmp_path / "out", "--any-spacing")
    assert code == 0, err
    assert "30 m" in json.dumps(json.loads((tmp_path / "out" / "coarse.run.json").read_text())["warnings"])


def test_bands_in_another_order_are_refused(scene: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("segment", scene, "--bands", "6,5,4,3,2,1", "-o", tmp_path / "out")
    assert code == 2
    assert "has B12 where the model expects B02; pass --bands 1,2,3,4,5,6" in err
    assert err.count("\n") == 1
    source = write(tmp_path / "turned.tif", scene, lambda v: v[::-1], names=("B12", "B11", "B08", "B04", "B03", "B02"))
    with pytest.raises(InputError, match="pass --bands 6,5,4,3,2,1"):
        doubts(source)
    assert doubts(source, bands=[6, 5, 4, 3, 2, 1]) == ()


def test_the_right_bands_of_many_are_named(scene: Path, tmp_path: Path) -> None:
    names = ("B01", "B02", "B03", "B04", "B08", "B11", "B12")
    source = write(tmp_path / "seven.tif", scene, lambda v: np.concatenate([v[:1], v]), names=names)
    with pytest.raises(InputError, match="has 7 bands, but the model expects 6; pass --bands 2,3,4,5,6,7"):
        doubts(source)


@pytest.mark.parametrize(
    ("change", "likely"),
    [
        (lambda v: (v / 10_000).astype(np.float32), "reflectance from 0 to 1"),
        (lambda v: np.clip(v / 40, 0, 255).astype(np.uint8), "8-bit values"),
        (lambda v: (v * 12.0).astype(np.float32), "digital numbers of more bits"),
        (lambda v: (v - 9000.0).astype(np.float32), "values with another offset"),
    ],
)
def test_values_in_other_units_are_said(
    scene: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], likely: str
) -> None:
    (line,) = doubts(write(tmp_path / "a.tif", scene, change))
    assert f"they look like {likely}" in line
    assert line.isprintable()


@pytest.mark.parametrize(
    "change",
    [
        lambda v: np.where(np.arange(128) < 120, 0, v).astype(np.uint16),  # nodata for the most part
        lambda v: np.zeros_like(v),
        lambda v: np.full_like(v, 900) + (np.arange(128) % 7).astype(np.uint16),  # calm water
        lambda v: (v * 1.3).astype(np.uint16),  # haze
    ],
)
def test_unusual_scenes_in_the_same_units_pass(
    scene: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert doubts(write(tmp_path / "a.tif", scene, change, nodata=0)) == ()


def test_a_damaged_model_is_one_line_before_torch(scene: Path, raster_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in Path(raster_model).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"blocks": 10_000_000}))
    code = "import sys\nfrom flows.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, "segment", scene, "-m", folder, "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.count("\n") == 1
    assert "config.json has blocks 10000000; give 1 to 100 blocks a stage" in done.stderr
    assert not (tmp_path / "out").exists()
