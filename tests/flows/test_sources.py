"""Images of several sources, of which some are missing: what is written is what the network says when it is told."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
import SimpleITK as sitk
import torch

import tiling
from flows import stages
from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor
from tests.tiling.files import AFFINES, write_tiff, write_volume

from .conftest import Cli

MEAN, STD = [100.0, 90.0, 80.0, 40.0], [50.0, 40.0, 30.0, 20.0]


def _save(folder: Path, mode: str = "image", **settings: object) -> str:
    torch.manual_seed(1)
    config = LMSegConfig(widths=[4, 8], id2label={0: "ground", 1: "water", 2: "ice"}, **settings)  # type: ignore[arg-type]  # of the tests
    network = LMSegForSemanticSegmentation(config)
    for weight in network.head.parameters():  # an untrained head says nearly the same everywhere
        torch.nn.init.normal_(weight, std=2)
    network.save_pretrained(folder)
    own = {"image_mean": MEAN, "image_std": STD} if mode == "fixed" else {}
    LMSegImageProcessor(mode=mode, **own).save_pretrained(folder)  # type: ignore[arg-type]  # of the tests
    return str(folder)


@pytest.fixture(scope="module", params=["stack", "separate"])
def pair_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of two sources, of 3 bands and 1, with statistics of its own and a tile as large as them."""
    bands = ["red", "green", "blue", "height"]
    folder = tmp_path_factory.mktemp("pair")
    return _save(folder, "fixed", in_channels=4, bands=bands, sources=[3, 1], fusion=request.param, tile=[40, 56])


@pytest.fixture(scope="module")
def sequences_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of three volumes, with the statistics of each image and a tile as large as the volumes."""
    folder = tmp_path_factory.mktemp("sequences")
    return _save(folder, ndim=3, in_channels=3, sources=[1, 1, 1], fusion="separate", tile=[24, 20, 16])


@pytest.fixture(scope="module")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Three bands of uint16 and one of uint8, on one grid of 40 x 56."""
    folder = tmp_path_factory.mktemp("rasters")
    rng = np.random.default_rng(0)
    optical = write_tiff(folder / "s2.tif", rng.integers(0, 200, (3, 40, 56)).astype(np.uint16))
    return str(optical), str(write_tiff(folder / "dem.tif", rng.integers(0, 80, (1, 40, 56)).astype(np.uint8)))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three volumes of 20 x 24 x 16 voxels, whose axes point to front, top and left."""
    folder = tmp_path_factory.mktemp("sequences")
    rng = np.random.default_rng(0)
    dtypes = {"t1.nii.gz": "int16", "t2.nii.gz": "uint8", "flair.nii": "float32"}
    return [
        str(write_volume(folder / name, rng.integers(0, 99, (20, 24, 16)).astype(dtype), AFFINES["permuted"]))
        for name, dtype in dtypes.items()
    ]


def _said(model: str, x: np.ndarray, present: list[bool]) -> np.ndarray:
    """What the network says of a whole image (C, *S) of normalised values: (K, *S)."""
    network = LMSegForSemanticSegmentation.from_pretrained(model).eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(x.astype(np.float32))[None], source_mask=torch.tensor([present])).logits
    return np.asarray(logits.softmax(1)[0])


def _agree(labels: np.ndarray, probability: np.ndarray, said: np.ndarray) -> None:
    assert np.abs(probability - said).max() < 0.5 / 254 + 1e-4
    first, second = np.sort(said, axis=0)[[-1, -2]]
    sure = first - second > 1e-4
    assert sure.mean() > 0.99
    assert np.array_equal(labels[sure], said.argmax(0)[sure])
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize("kept", ["both", "optical", "height"])
def test_a_raster_has_what_the_network_says_of_the_sources_that_are_there(
    kept: str, cli: Cli, rasters: tuple[str, str], pair_model: str, tmp_path: Path
) -> None:
    optical, dem = rasters
    name = {"both": f"{optical},{dem}", "optical": f"{optical},-", "height": f"-,{dem}"}[kept]
    out, stem = tmp_path / "out", "dem" if kept == "height" else "s2"
    code, _, err = cli("segment", name, "-m", pair_model, "-o", out, "--probability")
    assert code == 0, err
    assert ("without the model's source" in err) == (kept != "both")
    with rasterio.open(out / f"{stem}_labels.tif") as image, rasterio.open(optical) as source:
        assert (image.transform, image.crs, image.shape) == (source.transform, source.crs, source.shape)
        labels = image.read(1)
    with rasterio.open(out / f"{stem}_prob.tif") as image:
        probability = image.read()
    values = np.concatenate([rasterio.open(file).read().astype(np.float32) for file in rasters])
    x = (values - np.reshape(MEAN, (4, 1, 1))) / np.reshape(STD, (4, 1, 1))
    present = [kept != "height", kept != "optical"]
    said = _said(pair_model, x, present)
    _agree(labels, probability / 254, said)
    # Whatever the missing file might hold.
    x[np.repeat(~np.array(present), [3, 1])] = 1e6
    assert np.array_equal(_said(pair_model, x, present), said)

    report = json.loads((out / f"{stem}.run.json").read_text())
    assert report["source"] == name
    assert report["parts"] == [
        {"file": file if here else "-", "channels": channels if here else 0}
        for file, channels, here in zip(rasters, (3, 1), present, strict=True)
    ]
    assert cli("verify", out / f"{stem}.zarr")[0] == 0
    assert cli("export", out / f"{stem}.zarr", tmp_path / "again.tif")[0] == 0
    assert cli("plan", name, "-m", pair_model)[0] == 0


@pytest.mark.parametrize("missing", [(), (1,), (0,), (0, 2)])
def test_volumes_have_what_the_network_says_of_the_sequences_that_are_there(
    missing: tuple[int, ...], cli: Cli, sequences: list[str], sequences_model: str, tmp_path: Path
) -> None:
    """The oracle turns the volumes to RAS+ with nibabel, asks the network, and turns its answer back."""
    present = [number not in missing for number in range(3)]
    name = ",".join(file if here else "-" for file, here in zip(sequences, present, strict=True))
    first = Path(sequences[present.index(True)])
    stem = first.name.split(".")[0]
    code, _, err = cli("segment", name, "-m", sequences_model, "-o", tmp_path, "--overlap", 0, "--probability")
    assert code == 0, err

    images = [nibabel.load(file) for file in sequences]
    turned = [nibabel.as_closest_canonical(image) for image in images]
    values = [np.asarray(image.dataobj).T.astype(np.float64) for image in turned]
    said = _said(sequences_model, np.stack([(v - v.mean()) / v.std() for v in values]), present)
    back = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(turned[0].affine), nibabel.io_orientation(images[0].affine)
    )
    said = np.stack([nibabel.Nifti1Image(k.T, turned[0].affine).as_reoriented(back).get_fdata() for k in said])

    seg = nibabel.load(tmp_path / f"{stem}_seg.nii.gz")
    probability = np.moveaxis(nibabel.load(tmp_path / f"{stem}_prob.nii.gz").get_fdata(), -1, 0)
    _agree(np.asarray(seg.dataobj), probability, said)
    labels, scan = sitk.ReadImage(str(tmp_path / f"{stem}_seg.nii.gz")), sitk.ReadImage(str(first))
    assert labels.GetSize() == scan.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(labels, get)(), getattr(scan, get)(), atol=1e-5)
    assert cli("verify", tmp_path / f"{stem}.zarr")[0] == 0
    assert cli("export", tmp_path / f"{stem}.zarr", tmp_path / "again.nii.gz")[0] == 0
    assert np.array_equal(nibabel.load(tmp_path / "again.nii.gz").dataobj, seg.dataobj)


def test_info_names_the_files(cli: Cli, rasters: tuple[str, str], sequences: list[str]) -> None:
    optical, dem = rasters
    facts = json.loads(cli("info", f"-,{optical},-,{dem}", "--json")[1])
    assert facts["files"] == f"- (missing), {optical} (3), - (missing), {dem} (1)"
    assert facts["bands"] == "1, 2, 3, 4"
    facts = json.loads(cli("info", ",".join(sequences), "--json")[1])
    assert facts["kind"] == "volume"
    assert facts["size"] == "20 x 24 x 16 (x, y, z)"
    assert facts["type"] == "float32"
    assert facts["to read"] == f"{20 * 24 * 16 * 3 * 4 / 2**20:.1f} MiB uncompressed"
    assert "files" not in json.loads(cli("info", optical, "--json")[1])


def test_a_run_resumes_only_with_the_same_sources(
    cli: Cli, sequences: list[str], sequences_model: str, tmp_path: Path
) -> None:
    t1, t2, flair = sequences
    command = ["-m", sequences_model, "-o", tmp_path, "--tile", 16]
    assert cli("segment", f"{t1},-,{flair}", *command)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "t1.zarr").rglob("c/*") if p.is_file()}
    assert cli("segment", f"{t1},-,{flair}", *command)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for other in (f"{t1},{t2},{flair}", f"{t1},{flair},-", f"{t1},-,-"):
        code, _, err = cli("segment", other, *command)
        assert code == 2
        assert "another source and model" in err or "another source" in err
        assert "--fresh" in err
    code, _, err = cli("segment", f"{t1},-,{flair}", f"{t1},{t2},-", *command)
    assert (code, "would both be written as t1" in err) == (2, True)


def test_a_store_knows_its_sources_again(cli: Cli, sequences: list[str], sequences_model: str, tmp_path: Path) -> None:
    import tiling

    assert cli("segment", f"-,-,{sequences[2]}", "-m", sequences_model, "-o", tmp_path, "--tile", 16)[0] == 0
    image = stages.reopen(tiling.open_store(tmp_path / "flair.zarr"))
    assert image is not None
    assert [part.file for part in image.parts] == ["-", "-", sequences[2]]


# name: (what is segmented, with which model, words of the one line)
BAD = {
    "none there": ("-,-", "pair", ["'-,-'", "names no file"]),
    "none there, alone": ("-", "pair", ["'-'", "names no file"]),
    "a model of one source": ("{optical},-", "plain", ["lacks a file", "no sources"]),
    "too many parts": ("{optical},-,{dem}", "pair", ["4 bands in 3 parts", "3, 1 bands", "or - for each"]),
    "too few parts": ("{optical}", "pair", ["3 bands in 1 parts", "3, 1 bands", "or - for each"]),
    "in the wrong place": ("-,{optical}", "pair", ["s2.tif has 3 bands", "source 2 of the model has 1"]),
    "in the wrong order": ("{dem},{optical}", "pair", ["dem.tif has 1 bands", "source 1 of the model has 3"]),
    "raster and volume": ("{dem},{t1}", "pair", ["joins volumes and rasters"]),
    "volume and raster": ("-,{t1},{dem}", "pair", ["joins volumes and rasters"]),
    "volumes apart": ("{t1},{apart},-", "sequences", ["apart.nii.gz", "t1.nii.gz", "5 mm apart", "resample"]),
    "volumes of other sizes": ("{t1},-,{small}", "sequences", ["small.nii.gz has 20 x 24 x 9", "20 x 24 x 16"]),
    "too many volumes": ("{t1},{t1},{t1},{t1}", "sequences", ["4 bands", "3", "join as many files"]),
    "a second file that is not there": ("{t1},{t1},no.nii", "sequences", ["no.nii does not exist"]),
    "volumes for a raster model": ("{t1},-", "pair", ["3D volume", "2D raster"]),
}


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _save(tmp_path_factory.mktemp("plain"), in_channels=4, tile=[32, 32])


@pytest.mark.parametrize("case", BAD, ids=lambda name: name.replace(" ", "-"))
def test_bad_sources_are_one_line_and_leave_nothing(
    case: str,
    cli: Cli,
    rasters: tuple[str, str],
    sequences: list[str],
    pair_model: str,
    sequences_model: str,
    plain_model: str,
    tmp_path: Path,
) -> None:
    source, model, words = BAD[case]
    voxels = np.zeros((20, 24, 16), np.uint8)
    moved = AFFINES["permuted"].copy()
    moved[2, 3] += 5
    files = {
        "optical": rasters[0],
        "dem": rasters[1],
        "t1": sequences[0],
        "apart": write_volume(tmp_path / "apart.nii.gz", voxels, moved),
        "small": write_volume(tmp_path / "small.nii.gz", voxels[:, :, :9], AFFINES["permuted"]),
    }
    models = {"pair": pair_model, "sequences": sequences_model, "plain": plain_model}
    for command in (["segment", "-o", tmp_path / "out"], ["plan"]):
        code, out, err = cli(*command, source.format(**files), "-m", models[model])
        assert code == 2, err
        assert err.startswith("lmseg: ")
        assert err.count("\n") == 1
        for word in words:
            assert word in err
        assert out == ""
        assert not (tmp_path / "out").exists()


# --- which image a store is of ---


def _patients(folder: Path) -> list[Path]:
    """Two files `T1.nii` of one size and time, whose first and last planes are the same."""
    files = []
    for seed, patient in enumerate(("sub-01", "sub-02")):
        (folder / patient).mkdir()
        values = np.zeros((64, 64, 40), np.int16)
        values[:, :, 16:24] = np.random.default_rng(seed).integers(0, 200, (64, 64, 8))
        files.append(write_volume(folder / patient / "T1.nii", values))
        os.utime(files[-1], ns=(10**18, 10**18))
    return files


def _scenes(folder: Path) -> list[Path]:
    files = []
    for seed, name in enumerate(("june", "july")):
        (folder / name).mkdir()
        values = np.zeros((3, 256, 256), np.uint8)
        values[:, 100:150] = np.random.default_rng(seed).integers(0, 200, (3, 50, 256))
        files.append(write_tiff(folder / name / "scene.tif", values))
        os.utime(files[-1], ns=(10**18, 10**18))
    return files


@pytest.mark.parametrize("kind", ["volume", "raster"])
def test_a_second_image_of_the_same_name_size_and_time_is_not_given_the_labels_of_the_first(
    cli: Cli, volume_model: str, raster_model: str, tmp_path: Path, kind: str
) -> None:
    first, second = _patients(tmp_path) if kind == "volume" else _scenes(tmp_path)
    assert first.stat().st_size == second.stat().st_size
    options = ["-m", volume_model if kind == "volume" else raster_model, "-o", tmp_path / "out"]
    assert cli("segment", first, *options)[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    code, _, err = cli("segment", second, *options)
    assert (code, "made with another source" in err, "--fresh" in err) == (2, True, True)
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()} == before


@pytest.mark.parametrize("check", ["auto", "content"])
def test_an_image_that_was_only_touched_or_moved_is_resumed_from_any_folder(
    cli: Cli, raster_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    image, _ = _scenes(tmp_path)
    options = ["-m", raster_model, "-o", tmp_path / "out", "--check", check]
    monkeypatch.chdir(tmp_path)
    assert cli("segment", "june/scene.tif", *options)[0] == 0
    store = tmp_path / "out" / "scene.zarr"
    assert tiling.open_store(store).uri == str(image)
    chunks = {p: p.stat().st_mtime_ns for p in store.rglob("c/*") if p.is_file()}
    os.utime(image)
    monkeypatch.chdir("/")
    assert cli("segment", image, *options)[0] == 0
    assert cli("verify", store)[0] == 0
    (tmp_path / "moved").mkdir()
    image.rename(tmp_path / "moved" / "scene.tif")
    assert cli("segment", tmp_path / "moved" / "scene.tif", *options)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in chunks} == chunks


def test_an_unknown_check_is_refused(cli: Cli, raster_model: str, rasters: tuple[str, str], tmp_path: Path) -> None:
    code, _, err = cli("segment", rasters[0], "-m", raster_model, "-o", tmp_path, "--check", "all")
    assert (code, err.count("\n"), "--check 'all'" in err, "'content'" in err) == (2, 1, True, True)
    assert not any(tmp_path.iterdir())
