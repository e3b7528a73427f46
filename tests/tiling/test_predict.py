"""Volumes seen from the side that a model knows."""

from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiling
from tests.tiling.files import affine_of, rotation
from tests.tiling.predictors import Identity, Mixing
from tests.tiling.refusals import refused
from tiling.predict import Oriented, check_bands, check_kind


@dataclass(frozen=True)
class Looking(Identity):
    """Remembers what it saw and marks places in the volume's own order."""

    seen: list[Any] = field(default_factory=list)

    def __call__(self, batch: Any) -> Any:
        self.seen.append(np.array(batch))
        places = np.arange(np.prod(batch.shape[2:]), dtype=np.float32).reshape(batch.shape[2:])
        return batch + places


turns = st.tuples(st.permutations(range(3)), st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3), st.floats(-25, 25))


def axes_of(turn) -> np.ndarray:
    order, signs, degrees = turn
    return rotation(degrees) @ np.eye(3)[:, list(order)] @ np.diag(signs)


def file_order(image) -> np.ndarray:
    """(z, y, x) of a nibabel image."""
    return np.asarray(image.dataobj).T


@given(turns)
def test_the_model_sees_what_nibabel_calls_closest_to_ras(turn):
    values = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(values, affine_of(axes_of(turn)))
    canonical = file_order(nibabel.as_closest_canonical(image))
    looking = Looking(1, canonical.shape)
    oriented = Oriented(looking, tuple(map(tuple, image.affine[:3])))
    assert oriented.tile == file_order(image).shape
    scores = oriented(oriented.place(file_order(image)[None], None)[None])
    assert np.array_equal(looking.seen[0][0, 0], canonical)
    # What the model said of each RAS+ voxel comes back at that voxel of the file.
    places = np.arange(values.size, dtype=np.float32).reshape(canonical.shape)
    said = nibabel.Nifti1Image((canonical + places).T, nibabel.as_closest_canonical(image).affine)
    to_file = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(said.affine), nibabel.io_orientation(image.affine)
    )
    assert np.array_equal(scores[0, 0], file_order(said.as_reoriented(to_file)))


@given(turns)
def test_scores_of_several_classes_and_tiles_turn_back_each_on_its_own(turn):
    model = Identity(3, (3, 4, 5))
    oriented = Oriented(model, tuple(map(tuple, affine_of(axes_of(turn))[:3])))
    batch = np.random.default_rng(0).random((2, 3, *oriented.tile), np.float32)
    assert np.array_equal(oriented(batch), batch)


def test_torch_tensors_turn_as_numpy_does():
    torch = pytest.importorskip("torch")
    model = Looking(1, (3, 4, 5))
    affine = affine_of(axes_of(([2, 0, 1], (-1.0, 1.0, -1.0), 10.0)))
    oriented = Oriented(model, tuple(map(tuple, affine[:3])))
    batch = np.random.default_rng(0).random((2, 1, *oriented.tile), np.float32)

    @dataclass(frozen=True)
    class Torch(Identity):
        def __call__(self, batch: Any) -> Any:
            return batch + torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)

    turned = Oriented(Torch(1, (3, 4, 5)), tuple(map(tuple, affine[:3])))(torch.from_numpy(batch))
    assert np.array_equal(turned.numpy(), oriented(batch))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_every_type_turns_in_every_orientation(dtype, order):
    torch = pytest.importorskip("torch")
    for signs in product((-1.0, 1.0), repeat=3):
        affine = affine_of(axes_of((order, signs, 0.0)))
        values = np.arange(60).astype(dtype).reshape(3, 4, 5)
        image = nibabel.Nifti1Image(values.astype(np.float32), affine)
        canonical = file_order(nibabel.as_closest_canonical(image)).astype(dtype)
        looking = Looking(1, canonical.shape)
        Oriented(looking, tuple(map(tuple, affine[:3])))(torch.from_numpy(file_order(image).astype(dtype))[None, None])
        assert looking.seen[0].dtype == dtype
        assert np.array_equal(looking.seen[0][0, 0], canonical)


def test_the_digest_tells_orientations_apart_and_the_rest_is_the_model_s():
    model = Mixing(1, (3, 4, 5))
    digests = set()
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        for sign in (1.0, -1.0):
            affine = affine_of(axes_of((order, (sign, 1.0, 1.0), 0.0)))
            oriented = Oriented(model, tuple(map(tuple, affine[:3])))
            digests.add(oriented.digest)
            assert (oriented.channels, oriented.ndim, oriented.batch, oriented.peak_memory()) == (1, 3, 3, 0)
            assert oriented.classes == model.classes
    assert len(digests) == 6


def test_a_flipped_file_gets_the_labels_of_the_unflipped_one_flipped(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.integers(0, 64, (16, 12, 8)).astype(np.uint8)
    labels = {}
    for name, flip in (("ras", False), ("las", True)):
        affine = affine_of(np.eye(3), (1.0, 1.0, 1.0))
        stored = values[::-1] if flip else values
        if flip:
            affine[0, 3] += 15
            affine[0, 0] = -1
        nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / f"{name}.nii")
        source = tiling.open(tmp_path / f"{name}.nii")
        predict = Oriented(Mixing(1, (8, 6, 4)), source.space.affine)
        # With no overlap tiles fall on the same voxels from either end.
        grid = tiling.Grid.regular(source.space.shape, predict.tile, 0, (8, 12, 16))
        store = tiling.create(tmp_path / f"{name}.zarr", source, grid, predict)
        tiling.segment(source, predict, store)
        labels[name] = store.read(grid.area)
    assert np.array_equal(labels["las"], labels["ras"][:, :, ::-1])
    assert len(np.unique(labels["ras"])) == 3


def test_a_model_of_another_kind_is_refused():
    with refused("a.tif", "2D raster", "3D volume", "--model"):
        check_kind(Identity(1, (4, 4, 4)), 2, "a.tif")
    with refused("a.nii", "3D volume", "2D raster", "--model"):
        check_kind(Identity(1, (4, 4)), 3, "a.nii")
    check_kind(Identity(1, (4, 4)), 2, "a.tif")


def test_a_wrong_number_of_bands_is_refused():
    with refused("a.tif has 4 bands", "expects 3", "--bands 1,2,3"):
        check_bands(Identity(3, (4, 4)), 4, "a.tif")
    with refused("a.tif has 1 bands", "expects 3", "another --model"):
        check_bands(Identity(3, (4, 4)), 1, "a.tif")
    with refused("a.nii has 1 bands", "expects 3", "join as many files by commas"):
        check_bands(Identity(3, (4, 4, 4)), 1, "a.nii")
    check_bands(Identity(3, (4, 4)), 3, "a.tif")
