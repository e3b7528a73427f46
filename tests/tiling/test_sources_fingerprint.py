"""Sources that change where it is hard to see, and sources that only seem to."""

import gzip
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import zarr

import tiling
from tests.tiling.files import write_tiff, write_volume
from tests.tiling.predictors import Identity
from tests.tiling.rasters import SHAPE, noise
from tests.tiling.refusals import refused
from tiling import Grid
from tiling.sources.fingerprint import WHOLE, same, undecided

Build = Callable[[Path], Path | str]
Change = Callable[[Path], object]


def poke(file: Path, share: float = 0.5, value: bytes = b"\x07") -> None:
    """Change a byte and keep size and time."""
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(int(status.st_size * share))
        stream.write(value)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def text(file: Path, old: str, new: str) -> None:
    status = file.stat()
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def tif(folder: Path, name: str = "a.tif", seed: int = 0, **options: object) -> Path:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    return write_tiff(folder / name, noise(seed=seed), **options)


def exchange(a: Path, b: Path) -> None:
    """Give each of two files the bytes of the other, and keep their times."""
    contents, times = [file.read_bytes() for file in (a, b)], [file.stat().st_mtime_ns for file in (a, b)]
    for file, content, time in zip((a, b), contents[::-1], times, strict=True):
        file.write_bytes(content)
        os.utime(file, ns=(time, time))


def vrt(folder: Path, name: str = "a.vrt", leaf: Path | str | None = None) -> Path:
    rasterio.shutil.copy(leaf or tif(folder, "leaves/a.tif"), folder / name, driver="VRT")
    return folder / name


def mosaic(folder: Path) -> Path:
    """A VRT of one band from each of two files of the same name."""
    tif(folder, "x/a.tif")
    tif(folder, "y/a.tif", 1)
    file = vrt(folder, leaf=folder / "x/a.tif")
    text(file, ">x/a.tif<", ">y/a.tif<")
    return file


def placed(folder: Path) -> Path:
    """An image whose georeference and nodata lie beside it."""
    file = write_tiff(folder / "a.tif", noise(), crs=None, transform=None)
    (folder / "a.tfw").write_text("10\n0\n0\n-10\n500005\n5300035\n")
    aux(file, '<SRS>EPSG:32633</SRS><PAMRasterBand band="1"><NoDataValue>3</NoDataValue></PAMRasterBand>')
    return file


def aux(file: Path, content: str) -> None:
    Path(f"{file}.aux.xml").write_text(f"<PAMDataset>{content}</PAMDataset>")


def masked(folder: Path, name: str = "a.tif") -> Path:
    file = tif(folder, name)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(file, "r+") as image:
        image.write_mask(np.ones(SHAPE, bool))
    return file


def zipped(folder: Path) -> str:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for seed, name in enumerate(("one/T1.tif", "two/T1.tif")):
            archive.write(tif(folder, name, seed), name)
    return f"/vsizip/{folder}/a.zip/one/T1.tif"


def zipped_vrt(folder: Path) -> str:
    file = vrt(folder)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(file, "a.vrt")
        archive.write(folder / "leaves/a.tif", "leaves/a.tif")
    return f"/vsizip/{folder}/a.zip/a.vrt"


def tarred(folder: Path) -> str:
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(tif(folder), "a.tif")
    return f"/vsitar/{folder}/a.tar/a.tif"


def gzipped(folder: Path, seed: int = 0) -> str:
    (folder / "a.tif.gz").write_bytes(gzip.compress(tif(folder, seed=seed).read_bytes()))
    return f"/vsigzip/{folder}/a.tif.gz"


def chunks(folder: Path) -> Path:
    array = zarr.open_array(
        folder / "a.zarr", mode="w", shape=SHAPE, chunks=(50, 50), dtype="u1", zarr_format=2, compressor=None
    )
    array[:] = noise(1)[0]
    return folder / "a.zarr"


def volume(folder: Path, name: str = "T1.nii", seed: int = 0) -> Path:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    values = np.random.default_rng(seed).integers(0, 99, (40, 40, 40)).astype(np.int16)
    return write_volume(folder / name, values)


def huge(folder: Path, name: str = "T1.nii") -> Path:
    """A sparse volume of more bytes than are always read, of which samples miss the first after the middle."""
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    header = nibabel.Nifti1Header()
    header.set_data_shape((512, 512, 160))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), code=1)
    with (folder / name).open("wb") as stream:
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        stream.write(header.binaryblock + bytes(4))
        stream.truncate(352 + 512 * 512 * 160 * 2)
    assert (folder / name).stat().st_size > WHOLE
    return folder / name


def missed(file: Path) -> None:
    """Change a byte of a huge file that lies between two samples."""
    poke(file, 0.5 + 1.5 / 1022)


# A source, and a change of it that keeps sizes and times of the files that stay.
CHANGES: dict[str, tuple[Build, Change]] = {
    "tiff": (tif, lambda d: poke(d / "a.tif")),
    "volume": (volume, lambda d: poke(d / "T1.nii")),
    "gzipped volume": (lambda d: volume(d, "T1.nii.gz"), lambda d: volume(d, "T1.nii.gz", 1)),
    "joined, the second": (lambda d: f"{tif(d)},{tif(d, 'b.tif', 1)}", lambda d: poke(d / "b.tif")),
    "joined, exchanged": (lambda d: f"{tif(d)},{tif(d, 'b.tif', 1)}", lambda d: exchange(d / "a.tif", d / "b.tif")),
    "joined volumes": (lambda d: f"{volume(d)},-,{volume(d, 'T2.nii', 1)}", lambda d: poke(d / "T2.nii")),
    "vrt": (vrt, lambda d: text(d / "a.vrt", "<SourceBand>2", "<SourceBand>3")),
    "leaf": (vrt, lambda d: poke(d / "leaves/a.tif")),
    "leaf of a leaf": (lambda d: vrt(d, "b.vrt", vrt(d)), lambda d: poke(d / "leaves/a.tif")),
    "mask of a leaf": (
        lambda d: vrt(d, leaf=masked(d, "leaves/a.tif")),
        lambda d: poke(d / "leaves/a.tif.msk", 0.99),
    ),
    "nodata beside a leaf": (
        vrt,
        lambda d: aux(d / "leaves/a.tif", '<PAMRasterBand band="1"><NoDataValue>3</NoDataValue></PAMRasterBand>'),
    ),
    "leaves of one name, exchanged": (mosaic, lambda d: exchange(d / "x/a.tif", d / "y/a.tif")),
    "leaf in an archive": (lambda d: vrt(d, leaf=zipped(d)), lambda d: poke(d / "a.zip", 0.25)),
    "vrt in an archive": (zipped_vrt, lambda d: poke(d / "a.zip", 0.4)),
    "world file": (placed, lambda d: text(d / "a.tfw", "500005", "500015")),
    "aux.xml, nodata": (placed, lambda d: text(d / "a.tif.aux.xml", "3</NoData", "4</NoData")),
    "aux.xml, crs": (placed, lambda d: text(d / "a.tif.aux.xml", "32633", "32634")),
    "aux.xml, new": (
        tif,
        lambda d: aux(d / "a.tif", '<PAMRasterBand band="2"><NoDataValue>3</NoDataValue></PAMRasterBand>'),
    ),
    "mask": (masked, lambda d: poke(d / "a.tif.msk", 0.99)),
    "mask, new": (tif, masked),
    "mask, gone": (masked, lambda d: (d / "a.tif.msk").unlink()),
    "header": (lambda d: tif(d, "a.img", driver="ENVI"), lambda d: text(d / "a.hdr", "bsq", "bil")),
    "zip": (zipped, lambda d: poke(d / "a.zip", 0.25)),
    "tar": (tarred, lambda d: poke(d / "a.tar")),
    "gzip": (gzipped, lambda d: gzipped(d, 1)),
    "zarr, a chunk": (chunks, lambda d: poke(d / "a.zarr/1.1")),
    "zarr, a chunk of a quoted name": (lambda d: f'ZARR:"{chunks(d)}"', lambda d: poke(d / "a.zarr/1.1")),
    "zarr, chunks exchanged": (chunks, lambda d: exchange(d / "a.zarr/0.1", d / "a.zarr/1.0")),
    "zarr, a chunk gone": (chunks, lambda d: (d / "a.zarr/2.2").unlink()),
    "huge, at its middle": (huge, lambda d: poke(d / "T1.nii", 0.0001)),
    "huge, another time": (huge, lambda d: (missed(d / "T1.nii"), os.utime(d / "T1.nii"))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_source_that_changed_is_another(tmp_path, name):
    build, change = CHANGES[name]
    if 'ZARR:"' in str(uri := build(tmp_path)) and not _opens(uri):
        pytest.xfail("names of subdatasets are refused")
    before = tiling.open(uri).fingerprint
    assert same(tiling.open(uri).fingerprint, before)
    change(tmp_path)
    assert not same(tiling.open(uri).fingerprint, before)


# A source, and what leaves its pixels, their place and what is missing as they are.
ALIKE: dict[str, tuple[Build, Change]] = {
    "touched": (tif, lambda d: os.utime(d / "a.tif")),
    "touched volume": (volume, lambda d: os.utime(d / "T1.nii")),
    "written again": (tif, lambda d: (d / "a.tif").write_bytes((d / "a.tif").read_bytes())),
    "touched leaf": (vrt, lambda d: os.utime(d / "leaves/a.tif")),
    "touched archive": (zipped, lambda d: os.utime(d / "a.zip")),
    "touched chunk": (chunks, lambda d: os.utime(d / "a.zarr/0.0")),
    "statistics": (
        tif,
        lambda d: aux(
            d / "a.tif",
            '<PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">59</MDI></Metadata>'
            "<Histograms><HistItem><HistMin>0</HistMin><HistMax>9</HistMax><BucketCount>2</BucketCount>"
            "<HistCounts>1|2</HistCounts></HistItem></Histograms></PAMRasterBand>",
        ),
    ),
    "statistics of a placed image": (
        placed,
        lambda d: text(d / "a.tif.aux.xml", "<NoData", "<Metadata><MDI key='STATISTICS_MAX'>9</MDI></Metadata><NoData"),
    ),
    "overviews": (tif, lambda d: shutil.copy(tif(d, "b.tif", 1), d / "a.tif.ovr")),
    "world file written otherwise": (placed, lambda d: text(d / "a.tfw", "500005", "500005.000")),
    "statistics of a leaf": (
        vrt,
        lambda d: aux(
            d / "leaves/a.tif",
            '<PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">59</MDI></Metadata></PAMRasterBand>',
        ),
    ),
    "a neighbour": (vrt, lambda d: (d / "leaves/a.txt").write_text("about the image")),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_source_of_the_same_bytes_is_the_same(tmp_path, name):
    build, change = ALIKE[name]
    source = tiling.open(build(tmp_path))
    change(tmp_path)
    assert same(tiling.open(source.uri).fingerprint, source.fingerprint)
    source.read(tiling.Box.whole(source.space.shape))


def _opens(uri: str) -> bool:
    try:
        tiling.open(uri)
    except tiling.InputError:
        return False
    return True


def test_members_of_one_archive_are_told_apart_by_their_folders(tmp_path):
    one = zipped(tmp_path)
    shutil.copy(tmp_path / "a.zip", tmp_path / "b.zip")
    assert not same(tiling.open(one).fingerprint, tiling.open(one.replace("/one/", "/two/")).fingerprint)
    assert same(tiling.open(one).fingerprint, tiling.open(one.replace("a.zip", "b.zip")).fingerprint)


def test_a_file_given_twice_counts_in_its_order(tmp_path):
    a, b = tif(tmp_path), tif(tmp_path, "b.tif", 1)
    names = [f"{a},{a},{b}", f"{a},{b},{a}", f"{a},{b},{b}", f"{a},{b}"]
    assert len({tiling.open(name).fingerprint for name in names}) == 4


@pytest.mark.parametrize("build", [vrt, chunks, placed, zipped, volume], ids=lambda build: build.__name__)
def test_a_file_that_changes_after_it_was_opened_is_not_read(tmp_path, build):
    source = tiling.open(build(tmp_path))
    part = {"vrt": "leaves/a.tif", "chunks": "a.zarr/1.1", "placed": "a.tif", "zipped": "a.zip", "volume": "T1.nii"}
    file = tmp_path / part[build.__name__]
    poke(file, 0.25)
    os.utime(file)
    with refused(source.uri, "changed while it was segmented", "--fresh"):
        source.read(tiling.Box.whole(source.space.shape))


# Two huge files or states of one, in which samples see no difference: the change, and whether they are the same by
# samples, by contents, and where only the second fingerprint has contents.
HUGE: dict[str, tuple[Change, bool, bool, bool]] = {
    "nothing": (lambda d: None, True, True, True),
    "touched": (lambda d: os.utime(d / "T1.nii"), False, True, False),
    "elsewhere": (lambda d: (huge(d, "b/T1.nii"), move(d)), False, True, False),
    # What samples cannot see, and the documentation says so.
    "a byte between samples": (lambda d: missed(d / "T1.nii"), True, False, True),
    "such a byte, and touched": (lambda d: (missed(d / "T1.nii"), os.utime(d / "T1.nii")), False, False, False),
    "such a byte, elsewhere": (lambda d: (missed(d / "T1.nii"), move(d)), False, False, False),
}


def move(folder: Path) -> None:
    (folder / "b").mkdir(exist_ok=True)
    shutil.move(folder / "T1.nii", folder / "b/T1.nii")


@pytest.mark.parametrize("name", HUGE)
def test_huge_files_count_by_path_and_time_unless_contents_are_known(tmp_path, name):
    change, *expected = HUGE[name]
    file = huge(tmp_path)
    sampled, whole = (tiling.open(file, check=check).fingerprint for check in ("auto", "content"))
    change(tmp_path)
    file = file if file.exists() else tmp_path / "b/T1.nii"
    sampled_later, whole_later = (tiling.open(file, check=check).fingerprint for check in ("auto", "content"))
    assert [same(sampled, sampled_later), same(whole, whole_later), same(sampled, whole_later)] == expected
    assert same(whole_later, whole) == same(whole, whole_later)


def test_a_huge_file_that_was_touched_says_how_to_go_on(tmp_path):
    file = huge(tmp_path)
    grid, predict = Grid.regular((160, 512, 512), 64, 0, 128), Identity(1, (64, 64, 64))
    for check, name in (("auto", "a.zarr"), ("content", "b.zarr")):
        tiling.create(tmp_path / name, tiling.open(file, check=check), grid, predict)
    os.utime(file)
    assert undecided(tiling.open(file).fingerprint, tiling.open(file).fingerprint) is False
    for name in ("a.zarr", "b.zarr"):
        with refused(name, "another source", file, "touched", "--check content", "--fresh"):
            tiling.create(tmp_path / name, tiling.open(file), grid, predict)
    tiling.create(tmp_path / "b.zarr", tiling.open(file, check="content"), grid, predict)


RELATIVE: dict[str, Build] = {
    "tiff": tif,
    "volume": volume,
    "joined": lambda d: f"{tif(d)},-,{tif(d, 'b.tif')}",
    "vrt": vrt,
    "zip": zipped,
    "braces": lambda d: zipped(d).replace("/vsizip/", "/vsizip/{").replace(".zip", ".zip}"),
    "scheme": lambda d: f"zip+file://{d}/a.zip!/one/T1.tif" if zipped(d) else "",
    "folder": chunks,
}


@pytest.mark.parametrize("name", RELATIVE)
def test_a_source_named_from_here_is_read_from_elsewhere(tmp_path, monkeypatch, name):
    uri = str(RELATIVE[name](tmp_path))
    expected = tiling.open(uri)
    monkeypatch.chdir(tmp_path)
    source = tiling.open(uri.replace(f"{tmp_path}/", ""))
    assert uri.count(str(tmp_path)) > 0
    monkeypatch.chdir("/")
    whole = tiling.Box.whole(source.space.shape)
    assert np.array_equal(source.read(whole).values, expected.read(whole).values)
    assert source.uri == expected.uri
    assert same(source.fingerprint, expected.fingerprint)
