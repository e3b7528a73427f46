"""What lies in the same place, as label maps that are compared and as images that are learned from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.transform import Affine

from flows.evaluation.cases import pair
from flows.training.data import examples
from lmseg_core.training.settings import DataSettings
from tests.flows.training.small import PLACE, write_raster, write_volume
from tiling import InputError


def _compare(one: str, other: str) -> None:
    pair(one, other)


def _learn(one: str, other: str) -> None:
    entry = {"image": one, "label": other}
    window = [4] * (3 if one.endswith(".nii.gz") else 2)
    data = DataSettings.model_validate({"root": "/", "train": [entry], "validation": [entry], "window": window})
    examples(data, data.train, ("dark", "bright"))


Use = Callable[[str, str], None]
USES = pytest.mark.parametrize("use", [_compare, _learn], ids=["compared", "learned"])
NEAR = {_compare: 0.05, _learn: 0.01}  # of a pixel


def _raster(path: Path, shape: tuple[int, int] = (8, 8), **profile: Any) -> str:
    return write_raster(path, np.zeros(shape, np.uint8), **profile)


@USES
def test_what_two_tools_round_a_placement_by_is_the_same_place(use: Use, tmp_path: Path) -> None:
    one = _raster(tmp_path / "one.tif")
    for name, step in (("same", 0), ("rounded", 0.8 * NEAR[use])):
        use(one, _raster(tmp_path / f"{name}.tif", transform=PLACE["transform"] @ Affine.translation(step, 0)))
    far = _raster(tmp_path / "far.tif", transform=PLACE["transform"] @ Affine.translation(1.2 * NEAR[use], 0))
    with pytest.raises(InputError, match="lie at different places"):
        use(one, far)
    use(one, _raster(tmp_path / "bare.tif", crs=None))  # an export without a CRS says nothing against it


@USES
@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"shape": (7, 8)}, r"one.tif has shape \(8, 8\) and .*other.tif \(7, 8\); crop one to the other"),
        ({"crs": "EPSG:32619"}, "have different CRS, EPSG:32618 and EPSG:32619; warp"),
        ({"transform": PLACE["transform"] @ Affine.translation(0, 0.06)}, "0.06 pixels apart; warp one onto the other"),
        # Its corner is the same: the far one is where it shows.
        ({"transform": PLACE["transform"] @ Affine.scale(1.02)}, "0.157 pixels apart"),
    ],
)
def test_other_places_are_refused(use: Use, profile: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        use(_raster(tmp_path / "one.tif"), _raster(tmp_path / "other.tif", **profile))
    assert "\n" not in str(caught.value)


@USES
def test_volumes_lie_voxels_apart(use: Use, tmp_path: Path) -> None:
    moved = np.eye(4)
    moved[2, 3] = 2
    one, other = (
        write_volume(tmp_path / f"{name}.nii.gz", np.zeros((8, 8, 8), np.uint8), place)
        for name, place in (("one", np.eye(4)), ("other", moved))
    )
    with pytest.raises(InputError, match="2 voxels apart"):
        use(one, other)
