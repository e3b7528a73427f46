"""What may be compared with what."""

from pathlib import Path

import numpy as np
from rasterio.transform import Affine

import tiling
from tests.flows.conftest import Cli
from tests.flows.evaluation.conftest import Pair
from tests.flows.evaluation.label_maps import PLACE, scores_of, write_labels, write_run


def test_other_grids_are_refused(cli: Cli, tmp_path: Path, pair: Pair) -> None:
    p_path, _, _, truth = pair
    wide = truth.astype(np.int16)
    others = {
        "places": write_labels(tmp_path / "moved.tif", truth, PLACE @ Affine.translation(1, 0)),
        "shape": write_labels(tmp_path / "smaller.tif", truth[1:]),
        "fractions": write_labels(tmp_path / "f.tif", truth.astype(np.float32) + 0.5, nodata=None),
        "different CRS": write_labels(tmp_path / "crs.tif", truth, crs="EPSG:32633"),
        "holds the value 300": write_labels(tmp_path / "wide.tif", np.where(wide == 1, 300, wide)),
        "holds the value -7": write_labels(tmp_path / "low.tif", np.where(wide == 1, -7, wide)),
        "share no pixel": write_labels(tmp_path / "empty.tif", np.full_like(truth, 255)),
    }
    for word, other in others.items():
        code, _, err = cli("evaluate", p_path, other)
        assert (code, err.count("\n")) == (2, 1), word
        assert word in err


def test_a_small_shift_of_fine_pixels_is_another_place(cli: Cli, tmp_path: Path) -> None:
    """A metre is nothing to a northing of four million, and three pixels of 0.3 m."""
    labels = np.zeros((20, 20), np.uint8)
    fine = Affine(0.3, 0, 500_000, 0, -0.3, 4_000_000)
    p, t = (write_labels(tmp_path / f"{n}.tif", labels, Affine.translation(0, n) @ fine) for n in (0, 1))
    code, _, err = cli("evaluate", p, t)
    assert code == 2
    assert "3.33 pixels apart" in err


def test_the_store_is_taken_and_not_its_export(cli: Cli, tmp_path: Path) -> None:
    store = write_run(tmp_path / "out" / "scene.zarr", ("probability",))
    for name, what in (("labels", "labels"), ("prob", "probability")):
        tiling.export(store, tmp_path / "out" / f"scene_{name}.tif", what)
    (tmp_path / "out" / "scene_preview.png").write_bytes(b"")
    (tmp_path / "truth").mkdir()
    labels = store.read(tiling.Box.whole((96, 80)))
    write_labels(tmp_path / "truth" / "scene.tif", labels, Affine.identity(), crs=None)
    scores = scores_of(cli, tmp_path / "out", tmp_path / "truth")
    assert scores["cases"][0]["prediction"].endswith("scene.zarr")
    assert scores["ece"] is not None


def test_cases_must_match(cli: Cli, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    p, t = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    truth = t / "case0_labels.nii.gz"
    checks: list[tuple[Path, Path, str]] = [
        (p, truth, "is not; give two label maps or two folders"),
        (p, empty, "holds no label maps"),
        (tmp_path / "gone", t, "gone"),
    ]
    for one, other, word in checks:
        code, _, err = cli("evaluate", one, other)
        assert (code, err.count("\n")) == (2, 1)
        assert word in err
    (p / "case3_seg.nii").write_bytes((p / "case0_seg.nii").read_bytes())
    assert "case3_seg.nii has no partner in" in cli("evaluate", p, t)[2]
    (p / "case3_seg.nii").rename(p / "case0.nii")
    assert "are both named case0" in cli("evaluate", p, t)[2]
