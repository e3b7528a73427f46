"""Several NIfTI files as one volume, and files that are missing, as nibabel and SimpleITK see those that are there."""

import pickle

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings

import tiling
from tests.tiling.files import AFFINES, write_tiff, write_volume
from tests.tiling.refusals import refused
from tests.tiling.strategies import boxes
from tiling.box import Box
from tiling.predict import check_sources
from tiling.sources import Part, is_volume

SHAPE = (11, 9, 13)  # z, y, x
WHOLE = Box.whole(SHAPE)
NAMES = ("t1.nii.gz", "t2.nii", "flair.nii.gz")


def voxels(seed: int, dtype: str = "int16") -> np.ndarray:
    """(x, y, z), as nibabel has it."""
    return np.random.default_rng(seed).integers(0, 120, SHAPE[::-1]).astype(dtype)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    return [
        str(write_volume(folder / name, voxels(seed), AFFINES["oblique, mirrored"])) for seed, name in enumerate(NAMES)
    ]


def join(*files: object) -> str:
    return ",".join(map(str, files))


@settings(max_examples=15)
@given(box=boxes(SHAPE))
def test_each_file_is_a_channel(case, box):
    source = tiling.open(join(*case))
    pixels = source.read(box)
    assert (source.channels, source.dtype, source.space.shape) == (3, np.dtype("int16"), SHAPE)
    for channel, file in zip(pixels.values, case, strict=True):
        assert np.array_equal(channel, np.asarray(nibabel.load(file).dataobj).T[box.slices])
    assert pixels.valid.all()


def test_the_place_is_itk_s(case):
    source = tiling.open(join(*case))
    for file in case:
        image = sitk.ReadImage(file)
        for index in ((0, 0, 0), (12, 8, 10), (3, 7, 1)):
            x, y, z = image.TransformIndexToPhysicalPoint(index)  # LPS
            assert np.allclose(source.space.to_world(index[::-1]), (-x, -y, z), atol=1e-4)


def test_a_missing_file_gives_no_channel_and_keeps_its_place(case):
    t1, t2, flair = case
    source = tiling.open(join("-", t2, "-", flair))
    assert source.channels == 2
    assert source.parts == (Part("-", 0), Part(t2, 1), Part("-", 0), Part(flair, 1))
    assert [part.missing for part in source.parts] == [True, False, True, False]
    assert source.space == tiling.open(t2).space
    assert np.array_equal(source.read(WHOLE).values, [voxels(1).T, voxels(2).T])
    assert tiling.open(t1).parts == (Part(t1, 1),)


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (("int16", "uint8"), "int16"),
        (("int8", "uint8"), "int16"),
        (("uint16", "int16"), "int32"),
        (("int16", "float32"), "float32"),
        (("int32", "float64"), "float32"),
        (("uint8", "uint32"), "float32"),
    ],
)
def test_the_type_is_the_smallest_that_holds_all(tmp_path, dtypes, common):
    files = [write_volume(tmp_path / f"{i}.nii", voxels(i, dtype)) for i, dtype in enumerate(dtypes)]
    source = tiling.open(join(*files))
    values = source.read(WHOLE).values
    assert source.dtype == values.dtype == np.dtype(common)
    assert np.array_equal(values, [voxels(0).T, voxels(1).T])


def test_a_voxel_that_is_not_finite_in_one_file_is_masked_and_counted_once(tmp_path):
    one, two = voxels(0, "float32"), voxels(1, "float32")
    one[1, 2, 3] = two[1, 2, 3] = np.nan
    two[4, 5, 6] = np.inf
    files = [write_volume(tmp_path / f"{i}.nii.gz", values) for i, values in enumerate((one, two))]
    pixels = tiling.open(join(*files)).read(WHOLE)
    assert np.array_equal(pixels.valid, (np.isfinite(one) & np.isfinite(two)).T)
    assert pixels.nonfinite == 2
    assert np.isfinite(pixels.values).all()


def test_the_fingerprint_tells_which_files_are_there_and_changes_with_each(tmp_path):
    a, b = (write_volume(tmp_path / f"{name}.nii", voxels(seed)) for seed, name in enumerate("ab"))
    names = [a, join(a, b), join(b, a), join(a, "-"), join("-", a), join(a, "-", "-"), join(a, b, "-")]
    before = [tiling.open(name).fingerprint for name in names]
    assert len(set(before)) == len(names)
    write_volume(b, voxels(5))
    after = [tiling.open(name).fingerprint for name in names]
    assert [x != y for x, y in zip(before, after, strict=True)] == [False, True, True, False, False, False, True]


def test_a_source_travels_to_workers_small(case):
    source = tiling.open(join(*case))
    sent = pickle.dumps(source)
    assert len(sent) < 10_000
    assert pickle.loads(sent) == source
    assert isinstance(source, tiling.Source)


def test_one_form_is_chosen_for_all(tmp_path):
    moved = AFFINES["oblique"].copy()
    moved[0, 3] += 12
    for name in "ab":
        image = nibabel.Nifti1Image(voxels(0), None)
        image.header.set_qform(AFFINES["oblique"], code=1)
        image.header.set_sform(moved, code=2)
        nibabel.save(nibabel.Nifti1Image(voxels(0), None, image.header), tmp_path / f"{name}.nii")
    files = join(tmp_path / "a.nii", tmp_path / "b.nii")
    with refused("a.nii", "--form sform or --form qform"):
        tiling.open(files)
    assert np.allclose(np.array(tiling.open(files, form="sform").space.affine), moved[:3], atol=1e-4)


# --- bad input ---


def test_volumes_of_other_sizes_are_refused(case, tmp_path):
    small = write_volume(tmp_path / "small.nii", voxels(0)[:, :, 1:], AFFINES["oblique, mirrored"])
    with refused(small, "13 x 9 x 10", case[0], "13 x 9 x 11", "resample"):
        tiling.open(join(case[0], "-", small))


@pytest.mark.parametrize(("step", "shown"), [(0.004, "0.004 mm"), (3.0, "3 mm")])
def test_volumes_that_lie_apart_are_refused(case, tmp_path, step, shown):
    affine = AFFINES["oblique, mirrored"].copy()
    affine[1, 3] += step
    other = write_volume(tmp_path / "other.nii", voxels(0), affine)
    with refused(other, case[0], shown, "resample"):
        tiling.open(join(case[0], other))


def test_volumes_that_lie_apart_only_at_the_far_corner_are_refused(case, tmp_path):
    affine = AFFINES["oblique, mirrored"] @ np.diag([1.001, 1, 1, 1])
    other = write_volume(tmp_path / "other.nii", voxels(0), affine)
    with refused(other, case[0], "mm apart"):
        tiling.open(join(case[0], other))


def test_rounding_in_a_header_is_no_other_place(case, tmp_path):
    affine = AFFINES["oblique, mirrored"].copy()
    affine[:, 3] += 2e-4
    assert tiling.open(join(case[0], write_volume(tmp_path / "a.nii", voxels(0), affine))).channels == 2


def test_volumes_and_rasters_do_not_mix(case, tmp_path):
    raster = write_tiff(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8))
    for name in (join(case[0], raster), join(raster, "-", case[0])):
        with refused(name, "joins volumes and rasters", "one kind"):
            tiling.open(name)


@pytest.mark.parametrize("name", ["-", "-,-", "", ","])
def test_no_file_at_all_is_refused(name):
    with refused(repr(name), "names no file"):
        tiling.open(name)


def test_a_file_that_is_not_there_is_named(case):
    with refused("no.nii.gz does not exist"):
        tiling.open(join(case[0], "no.nii.gz"))
    with refused("no bands", "--bands"):
        tiling.open(join(*case), bands=(1,))


def test_volumes_are_told_by_their_name():
    assert is_volume("/data/CT.NII.GZ")
    assert is_volume("-,/data/CT.NII.GZ,a.nii")
    assert not is_volume("scene.tif,-")
    assert not is_volume("-")


# --- rasters with a missing file ---


def test_a_raster_without_one_of_its_files(tmp_path):
    values = np.random.default_rng(0).integers(0, 120, (5, 20, 30)).astype(np.uint16)
    optical = write_tiff(tmp_path / "s2.tif", values[:3])
    dem = write_tiff(tmp_path / "dem.tif", values[3:])
    whole = Box.whole((20, 30))
    for name, channels, parts in (
        (join(optical, "-", dem), [0, 1, 2, 3, 4], [3, 0, 2]),
        (join("-", dem, "-"), [3, 4], [0, 2, 0]),
        (join(optical, "-"), [0, 1, 2], [3, 0]),
        (join(optical, dem), [0, 1, 2, 3, 4], [3, 2]),
    ):
        source = tiling.open(name)
        assert [part.channels for part in source.parts] == parts
        assert np.array_equal(source.read(whole).values, values[channels])
        assert source.read(whole).values.dtype == np.uint16
    prints = {tiling.open(n).fingerprint for n in (optical, join(optical, "-"), join("-", optical), join(optical, dem))}
    assert len(prints) == 4


def test_bands_of_a_raster_without_one_of_its_files(tmp_path):
    optical = write_tiff(tmp_path / "s2.tif", np.ones((3, 8, 8), np.uint8))
    dem = write_tiff(tmp_path / "dem.tif", np.ones((1, 8, 8), np.uint8))
    source = tiling.open(join(optical, "-", dem), bands=(2, 1, 4))
    assert [part.channels for part in source.parts] == [2, 0, 1]
    with refused(optical, "--bands", "keep the files' order"):
        tiling.open(join(optical, "-", dem), bands=(4, 1, 2))
    assert tiling.open(join(optical, dem), bands=(4, 1, 2)).parts == (Part(join(optical, dem), 3),)


def test_names_together_longer_than_a_file_name_may_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [write_tiff(tmp_path / f"{'long' * 12}{i}.tif", np.ones((1, 4, 4), np.uint8)).name for i in range(8)]
    assert tiling.open(join(*names)).channels == 8


# --- the model's sources ---

THREE = (Part("s2.tif", 6), Part("-", 0), Part("dem.tif", 1))


def test_missing_sources_are_numbered():
    assert check_sources(THREE, (6, 2, 1), "x") == (1,)
    assert check_sources((Part("a.tif", 9),), (6, 2, 1), "a.tif") == ()
    assert check_sources((Part("a.tif", 3),), (), "a.tif") == ()
    assert check_sources([Part(f"B0{i}.tif", 1) for i in range(9)], (6, 2, 1), "B") == ()


@pytest.mark.parametrize(
    ("parts", "sources", "words"),
    [
        (THREE, (), ["s2.tif,-,dem.tif lacks a file", "no sources", "all of its bands"]),
        (THREE, (6, 1), ["7 bands in 3 parts", "6, 1 bands", "or - for each"]),
        (THREE[:2], (6, 2, 1), ["6 bands in 2 parts", "6, 2, 1 bands", "or - for each"]),
        ((THREE[0], THREE[2]), (6, 2, 1), ["7 bands in 2 parts", "6, 2, 1 bands", "or - for each"]),
        (THREE, (6, 2, 2), ["dem.tif has 1 bands", "source 3 of the model has 2", "order"]),
        ((THREE[2], THREE[0]), (6, 1), ["dem.tif has 1 bands", "source 1 of the model has 6", "order"]),
    ],
)
def test_files_that_are_not_the_model_s_sources_are_refused(parts, sources, words):
    with refused(*words):
        check_sources(parts, sources, ",".join(part.file for part in parts))
