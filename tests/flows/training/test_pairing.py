"""Files that belong together find each other, and those that have no partner are refused."""

from pathlib import Path

import numpy as np
import pytest

from flows.training.pairing import rows
from tests.flows.training.small import bright, opened, pixels, write_pair, write_raster, write_volume
from tiling import InputError

WHOLE = (slice(0, 40), slice(0, 40))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_folders_are_matched_by_name(tmp_path: Path, ending: str) -> None:
    lossless = {} if ending == ".png" else {"QUALITY": 100}
    for name in ("b", "a"):
        write_raster(tmp_path / "images" / f"{name}{ending}", pixels(bands=3, seed=ord(name)), **lossless)
        write_raster(tmp_path / "labels" / f"{name}_mask.png", bright(pixels(seed=ord(name))))
    (tmp_path / "labels" / "notes.txt").write_text("not an image")
    found = opened(tmp_path, "images", "labels")
    assert [Path(example.name).name for example in found] == [f"a{ending}", f"b{ending}"]
    for example, name in zip(found, "ab", strict=True):
        np.testing.assert_array_equal(example.labels.read(WHOLE), bright(pixels(seed=ord(name))))
        assert example.image.read(WHOLE).shape == (3, 40, 40)


def test_patterns_are_matched_by_what_stands_in_place_of_wildcards(tmp_path: Path) -> None:
    for case in ("sub-1", "sub-2"):
        (tmp_path / case).mkdir()
        for kind in ("t1", "flair", "seg"):
            write_volume(tmp_path / case / f"{kind}.nii.gz", np.full((8, 8, 8), int(case[-1]), np.uint8))
    found = opened(tmp_path, ["*/t1.nii.gz", "*/flair.nii.gz"], "*/seg.nii.gz", window=[4, 4, 4])
    assert [Path(example.name).parent.name for example in found] == ["sub-1", "sub-2"]
    for value, example in enumerate(found, 1):
        box = (slice(0, 2),) * 3
        assert np.unique(example.image.read(box)).tolist() == np.unique(example.labels.read(box)).tolist() == [value]
        assert example.sources == (1, 1)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["no.tif", "a_labels.tif"], r"no\.tif does not exist; mend .* data\.root"),
        (["no*.tif", "a_labels.tif"], r"no\*\.tif matches no file"),
        (["void", "a_labels.tif"], "void holds no image"),
        (["images", "labels"], "images: y has no partner in labels; add it"),
        (["twice", "twice"], r"x\.tif and .*x_labels\.tif, which are one case"),
    ],
)
def test_what_has_no_partner_is_refused(names: list[str], words: str, tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "void").mkdir()
    for name in ("images/x", "images/y", "labels/x_labels", "twice/x", "twice/x_labels"):
        write_raster(tmp_path / f"{name}.tif", pixels(bands=1))
    with pytest.raises(InputError, match=words) as caught:
        rows(tmp_path, names)
    assert "\n" not in str(caught.value)
