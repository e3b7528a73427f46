"""A file that a run did not write is never replaced: whatever lies in the way, and however the run began or ended."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio

import tiling
from flows import stages
from flows.parameters import RegionParameters
from tests.tiling.files import NORTH_UP, write_tiff
from tests.tiling.rasters import noise
from tests.tiling.s3 import BUCKET, ObjectStore
from tiling import InputError

from .conftest import Cli, SmallDisk

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["flows.cli", "flows.console", "flows.preview", "lmseg_core.predictor"])

MINE = b"years of work"
SHAPE = (64, 70)
AREA = {
    "type": "Polygon",
    "coordinates": [[[499980, 5300040], [500480, 5300040], [500480, 5299540], [499980, 5299540], [499980, 5300040]]],
    "crs": {"type": "name", "properties": {"name": "EPSG:32633"}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an image and a volume."""
    write_tiff(tmp_path / "scene.tif", noise(shape=SHAPE))
    values = np.random.default_rng(0).integers(0, 99, (18, 17, 16)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "case.nii.gz")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(MINE) and None


def link(name: str, to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(folder / to)


def images(*names: str, bands: int = 3) -> Callable[[Path], None]:
    return lambda folder: [write_tiff(folder / n, noise(bands, shape=SHAPE)) for n in names] and None


def mosaic(folder: Path) -> None:
    write_tiff(folder / "m_labels.tif", noise(shape=SHAPE))
    import rasterio.shutil

    rasterio.shutil.copy(folder / "m_labels.tif", folder / "m.vrt", driver="VRT")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every file by its number and content, every link by where it points."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_ino,
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "",
        )
        for path in folder.rglob("*")
    }


def both(*steps: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda folder: [step(folder) for step in steps] and None


FOREIGN, INPUT = "exists and is not what this run wrote", "is an input of this run"

# What is in the way of `lmseg segment ...`, and the words of the one line.
SEGMENT: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "labels": (put("out/scene_labels.tif"), "scene.tif -o out", f"out/scene_labels.tif {FOREIGN}"),
    "labels beside the image": (put("scene_labels.tif"), "scene.tif", f"scene_labels.tif {FOREIGN}"),
    "class names": (put("out/scene_labels.tif.aux.xml"), "scene.tif -o out", f"scene_labels.tif.aux.xml {FOREIGN}"),
    "preview": (put("scene_preview.png"), "scene.tif", f"scene_preview.png {FOREIGN}"),
    "report": (put("out/scene.run.json"), "scene.tif -o out", f"scene.run.json {FOREIGN}"),
    "probabilities": (put("scene_prob.tif"), "scene.tif --probability", f"scene_prob.tif {FOREIGN}"),
    "uncertainty": (put("scene_uncertainty.tif"), "scene.tif --uncertainty", f"scene_uncertainty.tif {FOREIGN}"),
    "fresh": (put("out/scene_labels.tif"), "scene.tif -o out --fresh", FOREIGN),
    "empty file": (lambda f: (f / "scene_labels.tif").touch(), "scene.tif", FOREIGN),
    "link to a file": (both(put("mine.tif"), link("scene_labels.tif", "mine.tif")), "scene.tif", FOREIGN),
    "link to nowhere": (link("scene_labels.tif", "nowhere.tif"), "scene.tif", FOREIGN),
    "pipe": (lambda f: os.mkfifo(f / "scene_labels.tif"), "scene.tif", FOREIGN),
    "folder": (lambda f: (f / "scene_labels.tif").mkdir(), "scene.tif --overwrite", "scene_labels.tif is a folder"),
    "folder behind a link": (
        both(put("out/scene_labels.tif"), link("there", "out")),
        "scene.tif -o there",
        f"out/scene_labels.tif {FOREIGN}",
    ),
    "second source": (images("scene_labels.tif"), "scene.tif scene_labels.tif", INPUT),
    "second source, overwrite": (images("scene_labels.tif"), "scene.tif scene_labels.tif --overwrite", INPUT),
    "first source": (images("scene_labels.tif"), "./scene_labels.tif scene.tif --overwrite", INPUT),
    "source by another name": (images("scene_labels.tif"), "scene.tif out/../scene_labels.tif --overwrite", INPUT),
    "hard link of the source": (
        lambda f: os.link(f / "scene.tif", f / "out/scene_labels.tif"),
        "scene.tif -o out --overwrite",
        INPUT,
    ),
    "link to the source": (link("scene_labels.tif", "scene.tif"), "scene.tif --overwrite", INPUT),
    "source is a link": (
        both(images("out/scene_labels.tif"), link("b.tif", "out/scene_labels.tif")),
        "scene.tif b.tif -o out --overwrite",
        INPUT,
    ),
    "joined source": (images("a.tif", "a_labels.tif", "b.tif", bands=1), "a.tif,a_labels.tif,b.tif --overwrite", INPUT),
    "leaf of a VRT": (mosaic, "m.vrt --overwrite", f"m_labels.tif {INPUT}"),
    "area of interest": (
        lambda f: (f / "scene.run.json").write_text(json.dumps(AREA)),
        "scene.tif --area scene.run.json --overwrite",
        f"scene.run.json {INPUT}",
    ),
    "in the model's folder": (put("model/scene_preview.png"), "scene.tif -o model --overwrite", "belongs to"),
    "segments": (put("out/case_seg.nii.gz"), "case.nii.gz -o out", f"case_seg.nii.gz {FOREIGN}"),
    "table of ITK-SNAP": (put("case_seg.label"), "case.nii.gz", f"case_seg.label {FOREIGN}"),
    "table of 3D Slicer": (put("case_seg.ctbl"), "case.nii.gz", f"case_seg.ctbl {FOREIGN}"),
    "second volume": (
        lambda f: shutil.copy(f / "case.nii.gz", f / "case_seg.nii.gz"),
        "case.nii.gz case_seg.nii.gz --overwrite",
        INPUT,
    ),
}


@pytest.mark.parametrize("case", SEGMENT)
def test_segment_replaces_nothing_that_it_did_not_write(
    case: str, cli: Cli, folder: Path, raster_model: str, volume_model: str
) -> None:
    arrange, line, words = SEGMENT[case]
    shutil.copytree(volume_model if "case.nii.gz" in line else raster_model, folder / "model")
    arrange(folder)
    before = snapshot(folder)
    code, out, err = cli("segment", *line.split(), "-m", "model")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert snapshot(folder) == before


def segmented(cli: Cli, model: str, *options: object) -> None:
    code, _, err = cli("segment", "scene.tif", "-m", model, "-o", "out", *options)
    assert code == 0, err


# What is in the way of a command on a finished run in `out`.
FINISHED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "export over the source": (lambda f: None, "export out/scene.zarr scene.tif", INPUT),
    "export over the source, overwrite": (lambda f: None, "export out/scene.zarr ./scene.tif --overwrite", INPUT),
    "export over a link to the source": (
        link("s2.tif", "scene.tif"),
        "export out/scene.zarr s2.tif --overwrite",
        INPUT,
    ),
    "export over a file": (put("s2.tif"), "export out/scene.zarr s2.tif", f"s2.tif {FOREIGN}"),
    "export beside a table": (put("s2.tif.aux.xml"), "export out/scene.zarr s2.tif", f"s2.tif.aux.xml {FOREIGN}"),
    "export over a copy": (
        lambda f: shutil.copy(f / "out/scene_labels.tif", f / "out/backup.tif"),
        "export out/scene.zarr out/backup.tif",
        f"backup.tif {FOREIGN}",
    ),
    "export over what the run wrote, by a link": (
        link("there.tif", "out/scene_labels.tif"),
        "export out/scene.zarr there.tif",
        FOREIGN,
    ),
    "map of seams": (
        put("out/scene_seams.geojson"),
        "verify out/scene.zarr --seams --places 1",
        f"scene_seams.geojson {FOREIGN}",
    ),
    "labels edited": (
        lambda f: edit(f / "out/scene_labels.tif"),
        "segment scene.tif -m model -o out",
        f"scene_labels.tif {FOREIGN}",
    ),
    "labels edited, fresh": (
        lambda f: edit(f / "out/scene_labels.tif"),
        "segment scene.tif -m model -o out --fresh",
        f"scene_labels.tif {FOREIGN}",
    ),
    "a byte changed, size and time kept": (
        lambda f: swap(f / "out/scene_preview.png"),
        "segment scene.tif -m model -o out",
        f"scene_preview.png {FOREIGN}",
    ),
    "report edited": (
        lambda f: (f / "out/scene.run.json").write_text("{}"),
        "segment scene.tif -m model -o out",
        f"scene.run.json {FOREIGN}",
    ),
    "store deleted": (
        lambda f: shutil.rmtree(f / "out/scene.zarr"),
        "segment scene.tif -m model -o out",
        FOREIGN,
    ),
    "notes damaged": (
        lambda f: [note.write_text('{"a": ') for note in (f / "out/scene.zarr/record/files").iterdir()],
        "segment scene.tif -m model -o out",
        FOREIGN,
    ),
    "notes replaced by folders": (
        lambda f: [(note.unlink(), note.mkdir()) for note in (f / "out/scene.zarr/record/files").iterdir()],
        "segment scene.tif -m model -o out",
        FOREIGN,
    ),
    "labels of an earlier run as input": (
        lambda f: None,
        "segment scene.tif out/scene_labels.tif -m model -o out --overwrite",
        INPUT,
    ),
}


def edit(labels: Path) -> None:
    with rasterio.open(labels, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as image:
        values = image.read(1)
        values[:5] = 1 - np.minimum(values[:5], 1)
        image.write(values, 1)


def swap(file: Path) -> None:
    status, content = file.stat(), bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("case", FINISHED)
def test_nothing_else_is_replaced_beside_a_finished_run(case: str, cli: Cli, folder: Path, raster_model: str) -> None:
    arrange, line, words = FINISHED[case]
    # One band, so that the labels can be an input too.
    (folder / "model").symlink_to(raster_model)
    segmented(cli, "model")
    if case == "labels of an earlier run as input":
        write_tiff(folder / "out/scene_labels.tif", noise(shape=SHAPE))
    arrange(folder)
    before = snapshot(folder)
    code, out, err = cli(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert snapshot(folder) == before


# What happens to a finished run before its command is given again, with these options, and is done.
AGAIN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda f: None, ""),
    "fresh": (lambda f: None, "--fresh"),
    "fresh, other tiles": (lambda f: None, "--fresh --tile 32"),
    "fresh, more maps": (lambda f: None, "--fresh --probability --uncertainty"),
    "killed before the report": (lambda f: (f / "out/scene.run.json").unlink(), ""),
    "killed after the labels": (
        lambda f: [(f / "out" / n).unlink() for n in ("scene.run.json", "scene_preview.png")],
        "",
    ),
    "exports deleted": (lambda f: [p.unlink() for p in (f / "out").iterdir() if p.is_file()], ""),
    "touched": (lambda f: [os.utime(p) for p in (f / "out").iterdir() if p.is_file()], ""),
    "folder moved": (
        lambda f: ((f / "out").rename(f / "elsewhere"), (f / "out").symlink_to(f / "elsewhere")),
        "",
    ),
    "folder copied": (
        lambda f: (shutil.copytree(f / "out", f / "copy"), shutil.rmtree(f / "out"), (f / "copy").rename(f / "out")),
        "",
    ),
    "labels edited": (lambda f: edit(f / "out/scene_labels.tif"), "--overwrite"),
    "labels replaced by a link": (
        lambda f: ((f / "out/scene_labels.tif").unlink(), put("mine")(f), link("out/scene_labels.tif", "mine")(f)),
        "--overwrite",
    ),
}


@pytest.mark.parametrize("case", AGAIN)
def test_a_run_replaces_what_it_wrote(case: str, cli: Cli, folder: Path, raster_model: str) -> None:
    arrange, options = AGAIN[case]
    segmented(cli, raster_model)
    arrange(folder)
    segmented(cli, raster_model, *options.split())
    # And knows it again.
    segmented(cli, raster_model, *[o for o in options.split() if o not in ("--fresh", "--overwrite")])
    assert cli("verify", "out/scene.zarr")[0] == 0
    assert not (folder / "mine").exists() or (folder / "mine").read_bytes() == MINE
    assert not [p.name for p in (folder / "out").iterdir() if p.name.startswith(".")]


def test_exports_of_one_run_replace_each_other(cli: Cli, folder: Path, raster_model: str) -> None:
    segmented(cli, raster_model, "--probability")
    for out in ("out/scene_labels.tif", "far.tif", "far.tif", folder / "far.tif"):
        assert cli("export", "out/scene.zarr", out)[0] == 0
    assert cli("export", "out/scene.zarr", "far.tif", "--what", "probability")[0] == 0
    (folder / "far.tif").write_bytes(MINE)
    assert cli("export", "out/scene.zarr", "far.tif")[0] == 2
    assert cli("export", "out/scene.zarr", "far.tif", "--overwrite")[0] == 0
    assert cli("export", "out/scene.zarr", "far.tif")[0] == 0
    for _ in range(2):
        assert cli("verify", "out/scene.zarr", "--seams", "--places", 1)[0] == 0
    # A run of another image knows nothing of them.
    write_tiff(folder / "b.tif", noise(shape=SHAPE, seed=1))
    assert cli("segment", "b.tif", "-m", raster_model)[0] == 0
    code, _, err = cli("export", "b.zarr", "far.tif")
    assert (code, FOREIGN in err) == (2, True)


@pytest.mark.parametrize(
    "name", ["scene_labels.tif", "scene_labels.tif.aux.xml", "scene_preview.png", "scene.run.json"]
)
def test_a_file_that_appears_during_the_run_is_kept(name: str, folder: Path, raster_model: str) -> None:
    parameters = RegionParameters(sources=["scene.tif"], output=folder / "out", model=raster_model)
    (run,) = stages.prepare(parameters)
    stages.compute(run, stages.pending(run))
    (folder / "out" / name).write_bytes(MINE)
    with pytest.raises(InputError, match=f"{name} {FOREIGN}"):
        stages.finish(run)
    assert (folder / "out" / name).read_bytes() == MINE
    (run,) = stages.prepare(parameters.model_copy(update={"overwrite": True}))
    stages.finish(run)
    assert (folder / "out" / name).read_bytes() != MINE


def _dies(arguments: list[str], moment: int) -> None:
    """`lmseg ARGUMENTS`, killed before (even moments) or after (odd ones) a file gets its name."""
    from flows.cli import main
    from tiling.place import Folder

    take, taken = Folder.take, 0

    def last(self: Folder, file: Path, *options: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken - 1 == moment // 2 and moment % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        done = take(self, file, *options)
        if taken - 1 == moment // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    Folder.take = last  # type: ignore[method-assign]  # the moment of a real kill
    sys.argv = ["lmseg", *arguments]
    main()


@pytest.mark.parametrize("moment", range(8))
def test_a_killed_run_knows_its_files_again(moment: int, cli: Cli, folder: Path, raster_model: str) -> None:
    """Its four files, before and after each gets its name, over those of an earlier run with other labels."""
    segmented(cli, raster_model, "--tile", 32)
    arguments = ["segment", str(folder / "scene.tif"), "-m", raster_model, "-o", str(folder / "out")]
    process = FORKS.Process(target=_dies, args=([*arguments, "--fresh"], moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    segmented(cli, raster_model)
    assert cli("verify", "out/scene.zarr")[0] == 0


def test_a_store_that_may_only_be_read_is_exported_once(
    cli: Cli, folder: Path, raster_model: str, small_disk: SmallDisk
) -> None:
    """Nothing can be noted in it, so the second export is refused; nothing is lost."""
    segmented(cli, raster_model)
    shutil.copytree("out/scene.zarr", small_disk.folder / "scene.zarr")
    small_disk.resize("1m,ro")
    assert cli("export", small_disk.folder / "scene.zarr", "far.tif")[0] == 0
    assert (folder / "far.tif").read_bytes() == (folder / "out/scene_labels.tif").read_bytes()
    code, _, err = cli("export", small_disk.folder / "scene.zarr", "far.tif")
    assert (code, FOREIGN in err) == (2, True)
    assert cli("export", small_disk.folder / "scene.zarr", "far.tif", "--overwrite")[0] == 0


def test_objects_that_a_run_did_not_write_are_kept(
    cli: Cli, folder: Path, fixed_model: str, bucket: ObjectStore, request: pytest.FixtureRequest
) -> None:
    prefix = f"{request.node.name}/out"
    out = f"s3://{BUCKET}/{prefix}"
    command = ["segment", "scene.tif", "-m", fixed_model, "-o", out]
    bucket.write(f"{prefix}/scene_labels.tif", MINE)
    code, _, err = cli(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{out}/scene_labels.tif {FOREIGN}" in err
    assert list(bucket.keys(prefix)) == ["scene_labels.tif"]
    assert cli(*command, "--overwrite")[0] == 0
    labels = bucket.read(f"{prefix}/scene_labels.tif")
    for options in ([], ["--fresh"]):
        assert cli(*command, *options)[0] == 0
    assert cli("export", f"{out}/scene.zarr", f"{out}/scene_labels.tif")[0] == 0
    for name in ("scene_preview.png", "scene.run.json"):
        kept = bucket.read(f"{prefix}/{name}")
        bucket.write(f"{prefix}/{name}", kept[:-1] + b"?")  # of the same length
        code, _, err = cli(*command, "--fresh")
        assert (code, f"{out}/{name} {FOREIGN}" in err) == (2, True), err
        assert bucket.read(f"{prefix}/{name}") == kept[:-1] + b"?"
        bucket.write(f"{prefix}/{name}", kept)
    assert bucket.read(f"{prefix}/scene_labels.tif") == labels
    # Its own source, by either of its names.
    bucket.put(f"{prefix}/b_labels.tif", write_tiff(folder / "b.tif", noise(shape=SHAPE)))
    before = bucket.keys(prefix)
    for name in (f"{out}/b_labels.tif", f"/vsis3/{BUCKET}/{prefix}/b_labels.tif"):
        code, _, err = cli("segment", "b.tif", name, "-m", fixed_model, "-o", out, "--overwrite")
        assert (code, f"{out}/b_labels.tif {INPUT}" in err) == (2, True), err
    assert bucket.keys(prefix) == before


def test_python_and_the_form_have_the_same_default(folder: Path, fixed_model: str) -> None:
    parameters = RegionParameters(sources=["scene.tif"], output=folder / "out", model=fixed_model)
    assert parameters.overwrite is False
    assert RegionParameters.model_json_schema()["properties"]["overwrite"]["default"] is False
    (run,) = stages.prepare(parameters)
    stages.compute(run, stages.pending(run))
    (folder / "mine.tif").write_bytes(MINE)
    with pytest.raises(InputError, match=FOREIGN):
        tiling.export(run.store, folder / "mine.tif")
    assert (folder / "mine.tif").read_bytes() == MINE
    tiling.export(run.store, folder / "mine.tif", overwrite=True)
    with rasterio.open(folder / "mine.tif") as labels:
        assert labels.transform == NORTH_UP
