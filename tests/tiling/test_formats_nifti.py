"""Exports of volumes, as ITK and nibabel open them."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import tiling
from tests.tiling.files import AFFINES, affine_of, write_volume
from tests.tiling.predictors import Mixing, Picture
from tests.tiling.refusals import refused
from tiling import ArraySource, Box, Grid, Space
from tiling.formats.nifti import check_length

SHAPE = (9, 11, 13)  # x, y, z
PART = Box((4, 2, 3), (12, 9, 8))


def labelled(folder, values, *, part=None, name="source.nii.gz", outputs=(), predict=None, form=None, **options):
    """A source file whose voxels are its labels, and the finished run over it."""
    file = write_volume(folder / name, values, **options)
    source = tiling.open(file, form=form)
    grid = Grid.regular(source.space.shape, 4, 0.25, 100, part)
    predict = predict or Picture(1, grid.tile, n_classes=5)
    store = tiling.create(folder / "run.zarr", source, grid, predict, outputs=outputs)
    tiling.segment(source, predict, store)
    return file, store


def noise(n=5):
    return np.random.default_rng(0).integers(0, n, SHAPE).astype(np.uint8)


def itk(file):
    return sitk.ReadImage(str(file))


@pytest.mark.parametrize(
    ("name", "forms", "units"),
    [
        *((n, f, "mm") for n in AFFINES for f in ("both", "sform", "qform", "neither")),
        *(("oblique", "both", u) for u in ("meter", "micron", "unknown")),
    ],
)
def test_origin_spacing_and_direction_are_the_source_s_in_itk(tmp_path, name, forms, units):
    source, store = labelled(tmp_path, noise(), affine=AFFINES[name], forms=forms, units=units)
    out = itk(tiling.export(store, tmp_path / "seg.nii.gz")[0])
    given = itk(source)
    assert out.GetSize() == given.GetSize()
    assert out.GetOrigin() == given.GetOrigin()
    assert out.GetSpacing() == given.GetSpacing()
    assert out.GetDirection() == given.GetDirection()
    assert np.array_equal(sitk.GetArrayFromImage(out), sitk.GetArrayFromImage(given))


@pytest.mark.parametrize("forms", ["both", "sform", "qform", "neither"])
@pytest.mark.parametrize("name", ["LAS", "permuted", "oblique"])
def test_codes_and_numbers_of_both_forms_are_copied_to_the_last_bit(tmp_path, name, forms):
    source, store = labelled(tmp_path, noise(), affine=AFFINES[name], forms=forms)
    out, given = (nibabel.load(f).header for f in (tiling.export(store, tmp_path / "seg.nii.gz")[0], source))
    for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"):
        assert out[field] == given[field]
    for field in ("srow_x", "srow_y", "srow_z"):
        assert np.array_equal(out[field], given[field])
    assert np.array_equal(out["pixdim"][:4], given["pixdim"][:4])


@pytest.mark.parametrize(
    ("name", "forms", "units"),
    [
        *((n, f, "mm") for n in AFFINES for f in ("both", "sform", "qform")),
        *(("oblique", f, u) for f in ("sform", "qform") for u in ("meter", "micron")),
    ],
)
def test_a_marker_in_a_part_lies_on_the_same_world_point_in_itk(tmp_path, name, forms, units):
    values = np.zeros(SHAPE, np.uint8)
    marker = {(4, 3, 5): 1, (5, 3, 5): 2, (4, 4, 5): 3, (4, 3, 7): 4}  # x, y, z
    for index, value in marker.items():
        values[index] = value
    source, store = labelled(tmp_path, values, affine=AFFINES[name], forms=forms, units=units, part=PART)
    given, out = itk(source), itk(tiling.export(store, tmp_path / "seg.nii.gz")[0])
    assert out.GetSize() == PART.shape[::-1]
    step = min(given.GetSpacing())
    for index, value in marker.items():
        point = given.TransformIndexToPhysicalPoint(index)
        there = out.TransformPhysicalPointToIndex(point)
        assert out[there] == value
        assert np.allclose(out.TransformIndexToPhysicalPoint(there), point, rtol=1e-5, atol=1e-3 * step)
    assert np.allclose(out.GetDirection(), given.GetDirection(), atol=1e-6)
    assert np.allclose(out.GetSpacing(), given.GetSpacing(), rtol=1e-6)


@pytest.mark.parametrize("part", [PART, Box((0, 0, 0), (12, 9, 8))])
def test_a_part_of_a_volume_without_any_form_lies_where_nibabel_has_it(tmp_path, part):
    source, store = labelled(tmp_path, noise(), forms="neither", part=part)
    out = nibabel.load(tiling.export(store, tmp_path / "seg.nii.gz")[0])
    (z0, y0, x0), (z1, y1, x1) = part.start, part.stop
    expected = nibabel.load(source).slicer[x0:x1, y0:y1, z0:z1]
    assert np.allclose(out.affine, nibabel.load(source).affine @ nibabel.affines.from_matvec(np.eye(3), (x0, y0, z0)))
    assert np.array_equal(np.asarray(out.dataobj), np.asarray(expected.dataobj))


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_forms_that_disagree_are_both_copied(tmp_path, form):
    image = nibabel.Nifti1Image(noise(), None)
    image.header.set_qform(AFFINES["oblique"], code=1)
    image.header.set_sform(AFFINES["LPS"], code=2)
    nibabel.save(nibabel.Nifti1Image(noise(), None, image.header), tmp_path / "source.nii")
    source = tiling.open(tmp_path / "source.nii", form=form)
    grid = Grid.regular(source.space.shape, 4, 0.25, 6)
    predict = Picture(1, grid.tile, n_classes=5)
    store = tiling.create(tmp_path / "run.zarr", source, grid, predict)
    tiling.segment(source, predict, store)
    out, given = nibabel.load(tiling.export(store, tmp_path / "seg.nii")[0]), nibabel.load(tmp_path / "source.nii")
    assert np.array_equal(out.get_qform(), given.get_qform())
    assert np.array_equal(out.get_sform(), given.get_sform())


def test_the_header_is_new_and_says_labels(tmp_path):
    source, store = labelled(tmp_path, noise().astype(np.int16))
    assert b"MUSTERMANN" in gzip.decompress(source.read_bytes())
    out = tiling.export(store, tmp_path / "seg.nii.gz")[0]
    header = nibabel.load(out).header
    assert int(header["intent_code"]) == 1002
    assert header.get_data_dtype() == np.uint8
    assert bytes(header["descrip"]).strip(b"\0") == b""
    assert bytes(header["aux_file"]).strip(b"\0") == b""
    assert b"MUSTERMANN" not in gzip.decompress(out.read_bytes())
    assert header.get_slope_inter() in ((None, None), (1.0, 0.0))
    assert header["cal_max"] == 4
    assert header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_label_is_as_it_was_and_the_file_as_long_as_it_says(tmp_path, ending):
    _, store = labelled(tmp_path, noise())
    out = tiling.export(store, tmp_path / f"seg{ending}")[0]
    assert np.array_equal(np.asarray(nibabel.load(out).dataobj), noise())
    raw = out.read_bytes() if ending == ".nii" else gzip.decompress(out.read_bytes())
    assert len(raw) == 352 + noise().size


def test_exports_are_the_same_bytes_every_time(tmp_path):
    _, store = labelled(tmp_path, noise())
    first = tiling.export(store, tmp_path / "seg.nii.gz")[0].read_bytes()
    assert tiling.export(store, tmp_path / "seg.nii.gz")[0].read_bytes() == first


def test_class_tables_of_itk_snap_and_slicer_lie_beside_it(tmp_path):
    class Organs(Picture):
        @property
        def classes(self):
            return [
                (0, "background", "#000000", None),
                (1, "left kidney", "#e31a1c", "64033007"),
                (4, "liver", "#1f78b4", None),
            ]

    _, store = labelled(tmp_path, noise(2), predict=Organs(1, (4, 4, 4), n_classes=3))
    files = tiling.export(store, tmp_path / "case_seg.nii.gz")
    assert [f.name for f in files] == ["case_seg.nii.gz", "case_seg.label", "case_seg.ctbl"]
    rows = [line.split(maxsplit=7) for line in files[1].read_text().splitlines() if not line.startswith("#")]
    assert rows == [
        ["0", "0", "0", "0", "0", "0", "0", '"background"'],
        ["1", "227", "26", "28", "1", "1", "1", '"left kidney"'],
        ["4", "31", "120", "180", "1", "1", "1", '"liver"'],
    ]
    rows = [line.split() for line in files[2].read_text().splitlines() if not line.startswith("#")]
    assert rows == [
        ["0", "background", "0", "0", "0", "0"],
        ["1", "left_kidney", "227", "26", "28", "255"],
        ["4", "liver", "31", "120", "180", "255"],
    ]


def test_more_than_254_classes_are_uint16(tmp_path):
    values = np.random.default_rng(0).integers(0, 300, SHAPE).astype(np.int16)
    _, store = labelled(tmp_path, values, predict=Picture(1, (4, 4, 4), n_classes=300))
    image = nibabel.load(tiling.export(store, tmp_path / "seg.nii.gz")[0])
    assert image.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(image.dataobj), values)


def test_probability_is_a_volume_a_class_scaled_to_one(tmp_path):
    _, store = labelled(tmp_path, noise(), outputs=("probability", "uncertainty"), predict=Mixing(1, (4, 4, 4)))
    files = tiling.export(store, tmp_path / "prob.nii.gz", "probability")
    assert files == [tmp_path / "prob.nii.gz"]
    image = nibabel.load(files[0])
    stored = store.read(Box.whole(SHAPE[::-1]), "probability")
    assert image.shape == (*SHAPE, 3)
    assert np.array_equal(np.asarray(image.dataobj.get_unscaled()), stored.transpose(3, 2, 1, 0))
    assert np.allclose(image.get_fdata().sum(axis=3), 1, atol=0.01)
    image = nibabel.load(tiling.export(store, tmp_path / "unc.nii.gz", "uncertainty")[0])
    assert np.array_equal(np.asarray(image.dataobj.get_unscaled()), store.read(Box.whole(SHAPE[::-1]), "uncertainty").T)


@pytest.mark.parametrize("name", AFFINES)
def test_an_array_with_a_placement_and_no_header_lies_there(tmp_path, name):
    values = noise().T[None]
    source = ArraySource(values, Space(SHAPE[::-1], tuple(map(tuple, AFFINES[name][:3]))))
    grid, predict = Grid.regular(SHAPE[::-1], 4, 0, 6), Picture(1, (4, 4, 4), n_classes=5)
    store = tiling.create(tmp_path / "run.zarr", source, grid, predict)
    tiling.segment(source, predict, store)
    out = nibabel.load(tiling.export(store, tmp_path / "seg.nii")[0])
    assert np.allclose(out.affine, AFFINES[name], atol=1e-5)
    assert np.allclose(out.get_qform(), AFFINES[name], atol=1e-4)
    assert np.array_equal(np.asarray(out.dataobj), noise())


def test_the_slabs_of_a_long_volume_join(tmp_path):
    values = np.random.default_rng(0).integers(0, 5, (4, 5, 150)).astype(np.uint8)
    _, store = labelled(tmp_path, values, predict=Picture(1, (4, 4, 4), n_classes=5))
    assert np.array_equal(np.asarray(nibabel.load(tiling.export(store, tmp_path / "s.nii")[0]).dataobj), values)


# --- what goes wrong ---


def test_a_side_too_long_for_nifti_is_refused():
    check_length((32767, 10, 10), "a.nii")
    with refused("a.nii", 32768, 32767, "--box"):
        check_length((10, 32768, 10), "a.nii")


def test_a_side_too_long_leaves_no_file(tmp_path):
    source = ArraySource(np.zeros((1, 1, 1, 32800), np.uint8))
    grid = Grid.regular((1, 1, 32800), (1, 1, 32800), 0)
    predict = Picture(1, grid.tile, batch=1)
    store = tiling.create(tmp_path / "run.zarr", source, grid, predict)
    tiling.segment(source, predict, store)
    with refused("seg.nii.gz", 32800, 32767):
        tiling.export(store, tmp_path / "out" / "seg.nii.gz")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused_and_left(tmp_path):
    _, store = labelled(tmp_path, noise())
    (tmp_path / "out").write_text("me")
    with refused(tmp_path / "out", "cannot be written"):
        tiling.export(store, tmp_path / "out" / "seg.nii.gz")
    assert (tmp_path / "out").read_text() == "me"


def test_an_ending_that_does_not_fit_is_refused(tmp_path):
    _, store = labelled(tmp_path, noise())
    with refused("seg.tif", "use .nii or .nii.gz"):
        tiling.export(store, tmp_path / "seg.tif")


def test_a_thin_oblique_source_of_float_spacing_keeps_its_place(tmp_path):
    affine = affine_of(
        AFFINES["oblique"][:3, :3] / np.linalg.norm(AFFINES["oblique"][:3, :3], axis=0), (0.4883, 0.4883, 5)
    )
    source, store = labelled(tmp_path, noise(), affine=affine)
    out, given = itk(tiling.export(store, tmp_path / "seg.nii.gz")[0]), itk(source)
    assert out.GetOrigin() == given.GetOrigin()
    assert out.GetDirection() == given.GetDirection()
