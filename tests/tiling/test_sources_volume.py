"""NIfTI volumes as nibabel sees them."""

import contextlib
import gzip
import pickle

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiling
from tests.tiling.files import AFFINES, affine_of, rotation, write_volume
from tests.tiling.refusals import refused
from tests.tiling.strategies import boxes
from tiling.box import Box

SHAPE = (11, 9, 13)  # z, y, x
WHOLE = Box.whole(SHAPE)


def noise(dtype="int16", shape=SHAPE[::-1], seed=0) -> np.ndarray:
    """(x, y, z), as nibabel has it."""
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    return {
        "plain": write_volume(folder / "a.nii", noise()),
        "packed": write_volume(folder / "a.nii.gz", noise()),
        "big-endian": write_volume(folder / "b.nii", noise(), big_endian=True),
        "big-endian, packed": write_volume(folder / "b.nii.gz", noise(), big_endian=True),
        "one more side": write_volume(folder / "c.nii.gz", noise()[..., None]),
    }


@pytest.mark.parametrize("name", ["plain", "packed", "big-endian", "big-endian, packed", "one more side"])
@settings(max_examples=15)
@given(box=boxes(SHAPE))
def test_reading_a_box_is_slicing_the_whole_volume(volumes, name, box):
    source = tiling.open(volumes[name])
    pixels = source.read(box)
    assert source.space.shape == SHAPE
    assert pixels.values.dtype == source.dtype == np.dtype("int16")
    assert np.array_equal(pixels.values[0], noise().T[box.slices])
    assert pixels.valid.all()


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_a_volume_of_many_slabs_reads_as_one_of_a_single_slab(volumes, monkeypatch, name):
    monkeypatch.setattr("tiling.sources.volume._SLAB", 1000)
    assert np.array_equal(tiling.open(volumes[name]).read(WHOLE).values[0], noise().T)


def test_nibabel_reads_the_same(volumes):
    for file in volumes.values():
        expected = np.squeeze(nibabel.load(file).get_fdata()).T
        assert np.array_equal(tiling.open(file).read(WHOLE).values[0], expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "uint32", "float64"])
def test_values_keep_their_type_and_those_too_wide_become_float32(tmp_path, dtype):
    source = tiling.open(write_volume(tmp_path / "a.nii", noise(dtype)))
    assert source.dtype.name == (dtype if dtype not in ("uint32", "float64") else "float32")
    assert np.array_equal(source.read(WHOLE).values[0], noise(dtype).T)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (0.25, 0.0), (1.7, 13.25), (-2.0, 3.0)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slope_and_intercept_are_applied_as_nibabel_applies_them(tmp_path, slope, intercept, ending):
    file = tmp_path / f"a{ending}"
    image = nibabel.Nifti1Image(noise(), np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    # nibabel would choose a scale of its own on saving: put ours into the bytes.
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    file.write_bytes(gzip.compress(bytes(raw)) if ending == ".nii.gz" else bytes(raw))
    loaded = nibabel.load(file)
    assert (loaded.dataobj.slope, loaded.dataobj.inter) == (np.float32(slope), np.float32(intercept))
    source = tiling.open(file)
    assert source.dtype == np.float32
    assert np.allclose(source.read(WHOLE).values[0], loaded.get_fdata().T, rtol=1e-6)


def test_nan_and_infinity_are_masked_and_counted(tmp_path):
    values = noise("float32")
    values[1, 2, 3], values[4, 5, 6], values[0, 0, 0] = np.nan, np.inf, -np.inf
    pixels = tiling.open(write_volume(tmp_path / "a.nii", values)).read(WHOLE)
    assert np.array_equal(pixels.valid, np.isfinite(values).T)
    assert pixels.nonfinite == 3
    assert np.isfinite(pixels.values).all()


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("forms", ["both", "sform", "qform", "neither"])
def test_the_affine_is_nibabel_s(tmp_path, name, forms):
    file = write_volume(tmp_path / "a.nii", noise(), AFFINES[name], forms=forms)
    assert np.array_equal(np.array(tiling.open(file).space.affine), nibabel.load(file).affine[:3])


@pytest.mark.parametrize(("units", "to_mm"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_the_world_is_in_millimetres_whatever_the_file_s_unit(tmp_path, units, to_mm):
    file = write_volume(tmp_path / "a.nii", noise(), AFFINES["oblique"], units=units)
    assert np.allclose(tiling.open(file).space.affine, to_mm * AFFINES["oblique"][:3], atol=1e-5 * to_mm)


def test_a_source_travels_to_workers_small(volumes):
    source = tiling.open(volumes["packed"])
    sent = pickle.dumps(source)
    assert len(sent) < 10_000
    assert pickle.loads(sent) == source


def test_threads_may_read_one_source_at_once(volumes):
    from concurrent.futures import ThreadPoolExecutor

    for name in ("plain", "packed"):
        source = tiling.open(volumes[name])
        parts = list(WHOLE.split((2, 4, 5))) * 3
        with ThreadPoolExecutor(4) as pool:
            for part, pixels in zip(parts, pool.map(source.read, parts), strict=True):
                assert np.array_equal(pixels.values[0], noise().T[part.slices])


def test_the_fingerprint_changes_with_the_bytes_and_the_form(tmp_path):
    file = write_volume(tmp_path / "a.nii", noise())
    first = tiling.open(file).fingerprint
    assert tiling.open(file).fingerprint == first
    assert tiling.open(file, form="qform").fingerprint != first
    write_volume(file, noise(seed=1))
    again = tiling.open(file)
    assert again.fingerprint != first
    assert np.array_equal(again.read(WHOLE).values[0], noise(seed=1).T)


# --- forms that disagree ---


@pytest.fixture
def torn(tmp_path):
    """A file whose qform and sform are 12 mm apart."""
    image = nibabel.Nifti1Image(noise(), None)
    moved = AFFINES["oblique"].copy()
    moved[0, 3] += 12
    image.header.set_qform(AFFINES["oblique"], code=1)
    image.header.set_sform(moved, code=2)
    nibabel.save(nibabel.Nifti1Image(noise(), None, image.header), tmp_path / "torn.nii")
    return tmp_path / "torn.nii"


def test_forms_that_disagree_are_refused_until_one_is_chosen(torn):
    with refused(torn, "12 mm apart", "--form sform or --form qform"):
        tiling.open(torn)
    q, s = (np.array(tiling.open(torn, form=form).space.affine) for form in ("qform", "sform"))
    assert np.allclose(q, nibabel.load(torn).get_qform()[:3], atol=1e-5)
    assert np.allclose(s, nibabel.load(torn).get_sform()[:3], atol=1e-5)
    assert np.isclose(s[0, 3] - q[0, 3], 12, atol=1e-4)


@pytest.mark.parametrize("change", ["turned", "mirrored", "stretched"])
def test_forms_that_differ_only_away_from_the_origin_disagree_too(tmp_path, change):
    affine = affine_of(np.eye(3), (1, 1, 1))
    axes = {"turned": rotation(5), "mirrored": np.diag([-1.0, 1, 1]), "stretched": np.diag([1, 1, 1.1])}[change]
    other = affine_of(axes, (1, 1, 1))
    image = nibabel.Nifti1Image(noise(), None)
    image.header.set_qform(affine, code=1)
    image.header.set_sform(other, code=1)
    nibabel.save(nibabel.Nifti1Image(noise(), None, image.header), tmp_path / "a.nii")
    with refused("a.nii", "apart"):
        tiling.open(tmp_path / "a.nii")


def test_forms_that_differ_by_rounding_agree(tmp_path):
    affine = affine_of(rotation(31.7), (0.48828125, 0.48828125, 0.625))
    source = tiling.open(write_volume(tmp_path / "a.nii", noise(), affine))
    assert np.allclose(source.space.affine, affine[:3], atol=1e-5)


@pytest.mark.parametrize(("forms", "missing"), [("sform", "qform"), ("qform", "sform")])
def test_a_form_that_is_not_there_cannot_be_chosen(tmp_path, forms, missing):
    file = write_volume(tmp_path / "a.nii", noise(), forms=forms)
    with refused(file, f"no {missing}", "--form"):
        tiling.open(file, form=missing)
    tiling.open(file, form=forms)


# --- bad input ---


def test_a_missing_file_is_refused(tmp_path):
    with refused(tmp_path / "no.nii.gz", "does not exist", "check the path"):
        tiling.open(tmp_path / "no.nii.gz")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("content", [b"", b"x", b"hello, I am text\n" * 40, bytes(1000), b"\x1f\x8b\x08\0"])
def test_a_file_that_is_no_volume_is_refused(tmp_path, content, ending):
    file = tmp_path / f"a{ending}"
    file.write_bytes(content)
    with refused(file, "cannot be opened as NIfTI"):
        tiling.open(file)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2), (5, 6, 7, 1, 3)])
def test_a_volume_of_other_than_three_dimensions_is_refused(tmp_path, shape):
    file = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), file)
    with refused(file, f"{len(shape)} dimensions {shape}", "one 3D volume"):
        tiling.open(file)


def test_a_volume_of_no_voxels_is_refused(tmp_path):
    raw = bytearray(nibabel.Nifti1Image(noise(), np.eye(4)).to_bytes())
    raw[42:44] = bytes(2)  # dim[1]
    (tmp_path / "a.nii").write_bytes(raw)
    with refused("a.nii", "no voxels"):
        tiling.open(tmp_path / "a.nii")


def test_colours_and_complex_numbers_are_refused(tmp_path):
    rgb = np.zeros((3, 4, 5), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(noise("complex64"), np.eye(4)), tmp_path / "b.nii")
    for name in ("a.nii", "b.nii"):
        with refused(name, "grey-value"):
            tiling.open(tmp_path / name)


def test_an_affine_that_folds_space_flat_is_refused(tmp_path):
    raw = bytearray(nibabel.Nifti1Image(noise(), np.diag([1.0, 1, 1, 1])).to_bytes())
    raw[252:256] = np.array([0, 2], "<i2").tobytes()  # qform_code, sform_code
    raw[280:328] = np.zeros(12, "<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(raw)
    with refused("a.nii", "cannot be inverted", "repair its header"):
        tiling.open(tmp_path / "a.nii")


def test_bands_cannot_be_chosen_from_a_volume(volumes):
    with refused(volumes["plain"], "no bands", "--bands"):
        tiling.open(volumes["plain"], bands=(1,))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_truncated_volume_is_refused_wherever_it_was_cut(tmp_path, ending):
    file = write_volume(tmp_path / f"a{ending}", noise())
    whole = file.read_bytes()
    n = len(whole)
    for cut in sorted({1, 2, 3, 10, 17, 100, 347, 348, 352, 353, n - 9, n - 8, n - 4, n - 1, *range(1, n, n // 40)}):
        file.write_bytes(whole[:cut])
        with refused(file):
            tiling.open(file).read(WHOLE)


def test_a_packed_volume_in_several_members_is_whole(tmp_path):
    raw = write_volume(tmp_path / "a.nii", noise()).read_bytes()
    file = tmp_path / "b.nii.gz"
    file.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))
    assert np.array_equal(tiling.open(file).read(WHOLE).values[0], noise().T)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_a_packed_volume_with_a_damaged_middle_is_never_silently_short(tmp_path_factory, seed):
    """Damage may change values, which only reading all of a file can tell, but what is read has the volume's shape."""
    file = write_volume(tmp_path_factory.mktemp("d") / "a.nii.gz", noise())
    raw = bytearray(file.read_bytes())
    rng = np.random.default_rng(seed)
    raw[int(rng.integers(20, len(raw) - 8))] ^= int(rng.integers(1, 256))
    file.write_bytes(raw)
    with contextlib.suppress(tiling.InputError):
        assert tiling.open(file).read(WHOLE).values.shape == (1, *SHAPE)
