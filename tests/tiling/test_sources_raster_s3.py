"""Rasters in object storage, by addresses such as s3://bucket/key.tif."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.session

import tiling
from tests.tiling.files import write_tiff
from tests.tiling.rasters import noise
from tests.tiling.refusals import refused
from tests.tiling.s3 import BUCKET, ObjectStore
from tiling.box import Box

VALUES = noise(shape=(600, 600))
BOX = Box((330, 300), (590, 600))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "a.tif", VALUES, driver="COG", blocksize=256, compress="deflate")


@pytest.mark.parametrize("boto", [True, False], ids=["with boto3", "without"])
def test_a_key_reads_like_the_file_behind_it(
    boto: bool, file: Path, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not boto:
        monkeypatch.setattr(rasterio.session, "boto3", None)
    bucket.put("year/a.tif", file)
    source = tiling.open(f"s3://{BUCKET}/year/a.tif")
    assert np.array_equal(source.read(BOX).values, VALUES[(slice(None), *BOX.slices)])
    assert source.space == tiling.open(file).space


def test_a_mask_beside_a_key_is_read(tmp_path: Path, bucket: ObjectStore) -> None:
    path = write_tiff(tmp_path / "m.tif", VALUES)
    mask = np.tile(np.arange(600) < 450, (600, 1))
    with rasterio.open(path, "r+") as image, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        image.write_mask(mask)
    bucket.put("m.tif", path)
    bucket.put("m.tif.msk", Path(f"{path}.msk"))
    assert np.array_equal(tiling.open(f"s3://{BUCKET}/m.tif").read(BOX).valid, mask[BOX.slices])


def test_a_key_that_is_written_again_is_another_image(file: Path, bucket: ObjectStore) -> None:
    bucket.put("b.tif", file)
    source = tiling.open(f"s3://{BUCKET}/b.tif")
    bucket.put("b.tif", write_tiff(file, VALUES + 1))
    with refused("b.tif changed", "--fresh"):
        source.read(BOX)
    assert tiling.open(f"s3://{BUCKET}/b.tif").fingerprint != source.fingerprint
    bucket.delete("b.tif")
    with pytest.raises(ConnectionError, match=r"does not exist; check the bucket and the key, then run again"):
        source.read(BOX)


@pytest.mark.parametrize(
    ("name", "words"),
    [(f"{BUCKET}/none.tif", "key does not exist"), ("nowhere/a.tif", "bucket does not exist")],
)
def test_a_missing_key_or_bucket_is_refused(name: str, words: str, bucket: ObjectStore) -> None:
    with refused(f"s3://{name}", words, "check the bucket and the key"):
        tiling.open(f"s3://{name}")


@pytest.mark.parametrize("boto", [True, False], ids=["with boto3", "without"])
@pytest.mark.parametrize("lacking", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY",)])
def test_missing_credentials_are_refused(
    boto: bool, lacking: tuple[str, ...], file: Path, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not boto:
        monkeypatch.setattr(rasterio.session, "boto3", None)
    bucket.put("c.tif", file)
    for name in lacking:
        monkeypatch.delenv(name)
    with refused(f"s3://{BUCKET}/c.tif", "set AWS_ACCESS_KEY_ID and", "or AWS_NO_SIGN_REQUEST=YES"):
        tiling.open(f"s3://{BUCKET}/c.tif")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert tiling.open(f"s3://{BUCKET}/c.tif").channels == 3


def test_wrong_credentials_are_refused(file: Path, bucket: ObjectStore) -> None:
    bucket.put("d.tif", file)
    bucket.trust(anybody=False)
    try:
        with refused(f"s3://{BUCKET}/d.tif", "set AWS_ACCESS_KEY_ID and"):
            tiling.open(f"s3://{BUCKET}/d.tif")
    finally:
        bucket.trust(anybody=True)
    assert tiling.open(f"s3://{BUCKET}/d.tif").channels == 3
