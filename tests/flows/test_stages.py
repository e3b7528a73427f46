"""The stages of a run with real models: the same answer however the work is parted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import safetensors.numpy

import tiling
from flows import stages
from flows.exports import exports_of
from flows.parameters import Parameters, RegionParameters, VolumeParameters
from tiling import Box, InputError
from tiling.store import Store


def _segment(parameters: Parameters, blocks: list[int] | None = None) -> stages.Run:
    (run,) = stages.prepare(parameters)
    with stages.workers(parameters) as executor:
        stages.compute(run, stages.pending(run) if blocks is None else blocks, executor)
    return run


def _labels(store: Store) -> np.ndarray:
    return store.read(Box.whole(store.out_space.shape))


def test_labels_do_not_depend_on_workers_or_blocks(wide: str, raster_model: str, tmp_path: Path) -> None:
    """One process, two or four, one block or many: bit-identical labels and probabilities."""
    common = {"sources": [wide], "model": raster_model, "tile": 256, "probability": True}
    one = _segment(RegionParameters(output=tmp_path / "one", **common))
    whole = Box.whole(one.store.out_space.shape)
    for workers in (2, 4):
        out = tmp_path / str(workers)
        many = _segment(RegionParameters(output=out, memory="460MiB", workers=workers, **common))
        assert many.store.grid.n_blocks > one.store.grid.n_blocks
        np.testing.assert_array_equal(_labels(one.store), _labels(many.store))
        np.testing.assert_array_equal(one.store.read(whole, "probability"), many.store.read(whole, "probability"))


def test_a_block_done_again_changes_nothing(wide: str, raster_model: str, tmp_path: Path) -> None:
    parameters = RegionParameters(sources=[wide], output=tmp_path, model=raster_model, tile=256, memory="460MiB")
    run = _segment(parameters)
    before = _labels(run.store)
    again = [0, run.store.grid.n_blocks - 1, 0]
    stages.compute(run, again)
    np.testing.assert_array_equal(_labels(run.store), before)
    assert stages.pending(run) == []


def test_blocks_run_on_a_cluster_that_is_there_already(
    cluster: object, picture: str, raster_model: str, tmp_path: Path
) -> None:
    address = cluster.scheduler_address  # type: ignore[attr-defined]  # distributed ships no types
    here = _segment(RegionParameters(sources=[picture], output=tmp_path / "here", model=raster_model))
    there = _segment(
        RegionParameters(sources=[picture], output=tmp_path / "there", model=raster_model, cluster=address)
    )
    np.testing.assert_array_equal(_labels(here.store), _labels(there.store))


def test_a_cluster_that_is_not_there_is_bad_input(picture: str, raster_model: str, tmp_path: Path) -> None:
    parameters = RegionParameters(
        sources=[picture], output=tmp_path, model=raster_model, cluster="nonsense-scheduler:1"
    )
    with pytest.raises(InputError, match="nonsense-scheduler"), stages.workers(parameters):
        pass


def test_a_part_of_a_raster_has_the_labels_of_the_whole(picture: str, fixed_model: str, tmp_path: Path) -> None:
    """The grid is the image's, so an area changes nothing where it is; for a model with statistics of its own."""
    west, south, east, north = 442_000, 4_174_000, 443_500, 4_175_500
    common = {"sources": [picture], "model": fixed_model}
    whole = _segment(RegionParameters(output=tmp_path / "whole", **common))
    part = _segment(RegionParameters(output=tmp_path / "part", bbox=(west, south, east, north), **common))
    box = part.store.area.box
    assert part.store.out_space.to_world((0, 0)) == (west, north)
    assert box.shape == (150, 150)
    np.testing.assert_array_equal(_labels(part.store), whole.store.read(box))


def test_geojson_in_degrees_selects_pixels_of_a_utm_image(picture: str, raster_model: str, tmp_path: Path) -> None:
    from rasterio.features import geometry_mask
    from rasterio.warp import transform_geom

    triangle = {
        "type": "Polygon",
        "coordinates": [[[442_000, 4_174_000], [444_000, 4_174_100], [443_000, 4_176_000], [442_000, 4_174_000]]],
    }
    degrees = transform_geom("EPSG:32618", "EPSG:4326", triangle, precision=12)
    run = _segment(RegionParameters(sources=[picture], output=tmp_path, model=raster_model, area=json.dumps(degrees)))
    space = run.store.out_space
    inside = geometry_mask([triangle], space.shape, rasterio.Affine(*space.affine[0], *space.affine[1]), invert=True)
    labelled = _labels(run.store) != 255
    # The edge is a straight line in degrees and a curve of millimetres in metres: pixels on it may differ.
    assert np.count_nonzero(labelled != inside) <= 3
    assert labelled.any()


def test_a_volume_is_segmented_the_same_in_any_voxel_order(volume_model: str, tmp_path: Path) -> None:
    """LPS instead of RAS storage: the same label at the same millimetre."""
    import nibabel

    values = np.random.default_rng(0).normal(size=(32, 48, 16)).astype(np.float32)
    ras = nibabel.Nifti1Image(values, np.diag([1, 1.5, 2, 1]))
    lps = ras.as_reoriented(nibabel.orientations.axcodes2ornt("LPS", (("L", "R"), ("P", "A"), ("I", "S"))))
    results = {}
    for name, image in (("ras", ras), ("lps", lps)):
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
        run = _segment(
            VolumeParameters(sources=[str(tmp_path / f"{name}.nii.gz")], output=tmp_path, model=volume_model, overlap=0)
        )
        stages.finish(run)
        results[name] = nibabel.load(tmp_path / f"{name}_seg.nii.gz")
    assert nibabel.aff2axcodes(results["lps"].affine) == ("L", "P", "S")
    turned = nibabel.as_closest_canonical(results["lps"])
    np.testing.assert_allclose(turned.affine, results["ras"].affine)
    # Sides are whole tiles, so both orders cut the same ones; statistics are summed in another order.
    same = np.asarray(turned.dataobj) == np.asarray(results["ras"].dataobj)
    assert same.mean() > 0.999


def test_prepare_does_not_touch_the_disk_for_bad_input(picture: str, tmp_path: Path) -> None:
    parameters = RegionParameters(sources=[picture], output=tmp_path / "out", model="land-cover-tiny")
    with pytest.raises(InputError, match="3 bands, but the model expects 6"):
        stages.prepare(parameters)
    assert not (tmp_path / "out").exists()


def test_finish_refuses_an_unfinished_run(picture: str, raster_model: str, tmp_path: Path) -> None:
    (run,) = stages.prepare(RegionParameters(sources=[picture], output=tmp_path, model=raster_model))
    with pytest.raises(InputError, match="still lacks 1 of 1 blocks"):
        stages.finish(run)
    assert {p.name for p in tmp_path.iterdir()} == {"picture.zarr"}


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        ("/data/ct.nii.gz", "ct"),
        ("scene.v2.tif", "scene.v2"),
        ("https://host/a/b.tif?token=1.2", "b"),
        ("s3://bucket/B02.jp2,s3://bucket/B03.jp2", "B02"),
        ("/data/t1.nii.gz,/data/t2.nii.gz", "t1"),
        ("-,/data/t2.nii.gz,-", "t2"),
    ],
)
def test_results_are_named_after_the_source(source: str, stem: str) -> None:
    assert stages.stem(source) == stem


def test_a_store_knows_its_source_again(picture: str, raster_model: str, tmp_path: Path) -> None:
    run = _segment(RegionParameters(sources=[picture], output=tmp_path, model=raster_model))
    store = tiling.open_store(tmp_path / "picture.zarr")
    again = stages.reopen(store)
    assert again is not None
    assert again.space == run.image.space
    assert exports_of(Path(store.path)) == []
    stages.finish(run)
    assert [p.name for p in exports_of(Path(store.path))] == ["picture_labels.tif"]


def test_a_model_replaced_under_a_run_is_refused_by_workers(
    cluster: object, picture: str, raster_model: str, tmp_path: Path
) -> None:
    model = shutil.copytree(raster_model, tmp_path / "model")
    address = cluster.scheduler_address  # type: ignore[attr-defined]  # distributed ships no types
    (run,) = stages.prepare(
        RegionParameters(sources=[picture], output=tmp_path / "out", model=str(model), cluster=address)
    )
    weights = safetensors.numpy.load_file(model / "model.safetensors")
    doubled = {name: np.asarray(value * 2) for name, value in weights.items()}
    safetensors.numpy.save_file(doubled, model / "model.safetensors")
    pending = stages.pending(run)
    with (
        stages.workers(run.parameters) as executor,
        pytest.raises(InputError, match=r"the model of .* is another on a worker than where the run began"),
    ):
        stages.compute(run, pending, executor)
    assert stages.pending(run) == pending
