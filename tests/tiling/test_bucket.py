"""Runs in object storage, on a real server; what lies there is looked at with boto3."""

import json
import os
import pickle
import signal
import threading
import time
from dataclasses import asdict, replace

import nibabel
import numpy as np
import obstore
import pytest
import rasterio
import zarr

import tiling
from tests.tiling.predictors import Mixing
from tests.tiling.refusals import refused
from tests.tiling.runs import EVERYTHING, image_of, maps, run, same
from tests.tiling.s3 import BUCKET, take
from tests.tiling.test_lease import hold, one_gets_it, stranger
from tiling import Grid
from tiling import lease as leases
from tiling.address import address_of
from tiling.damage import Damage, damaged
from tiling.lease import check, holder, lease
from tiling.place import place_of
from tiling.record import STEPS
from tiling.store import remove

GRIDS = {2: Grid.regular((60, 50), 20, 0.25, (20, 25)), 3: Grid.regular((16, 18, 16), 9, 0.25, (8, 9, 16))}
SOURCES = {ndim: image_of(grid.shape) for ndim, grid in GRIDS.items()}
PREDICTS = {ndim: Mixing(2, grid.tile) for ndim, grid in GRIDS.items()}


@pytest.fixture
def prefix(request, bucket, monkeypatch):
    """A prefix of the test's own, for a client that is patient with a busy machine."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "30")
    return f"{request.node.name}/out"


@pytest.fixture
def out(prefix):
    return f"s3://{BUCKET}/{prefix}"


def create(out, ndim=2, **options):
    return tiling.create(f"{out}/a.zarr", SOURCES[ndim], GRIDS[ndim], PREDICTS[ndim], **options)


def segment(store, ndim=2):
    """Segments, and says which blocks that took."""
    computed = []
    tiling.segment(SOURCES[ndim], PREDICTS[ndim], store, on_block=lambda report: computed.append(report.block))
    assert store.pending() == []
    return sorted(computed)


# --- whole runs ---


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_run_gives_what_a_run_into_a_folder_gives(bucket, prefix, out, tmp_path, ndim):
    local = run(SOURCES[ndim], GRIDS[ndim], PREDICTS[ndim], tmp_path, outputs=EVERYTHING)
    store = create(out, ndim, outputs=EVERYTHING)
    assert tiling.open_store(f"{out}/a.zarr/") == store
    assert len(pickle.dumps(store)) < 10_000
    segment(pickle.loads(pickle.dumps(store)), ndim)
    assert same(maps(store), maps(local))
    assert all(c.passed for c in tiling.verify(store, SOURCES[ndim]))
    # The same objects as files, to the byte but for the seconds, and nothing beside them.
    assert set(bucket.keys(prefix)) == {f"a.zarr/{p.relative_to(local.path)}" for p in files(tmp_path / "run.zarr")}
    copy = bucket.fetch(prefix, tmp_path / "copy") / "a.zarr"
    for file in files(copy):
        other = tmp_path / "run.zarr" / file.relative_to(copy)
        assert timeless(file) == timeless(other)
    assert np.array_equal(zarr.open_group(copy, mode="r")["labels"][:], maps(local)["labels"])


def timeless(file):
    """What a file of a store holds, without the seconds at the end of a block's row and the sum of them all."""
    content = file.read_bytes()
    return content[: -8 * len(STEPS) - 4] if "record" in file.parts and file.name == "0" else content


def files(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


def test_worker_processes_write_one_store(bucket, out, tmp_path, cluster):
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        client.run(take, {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "GDAL_", "no_"))})
        store = run(SOURCES[2], GRIDS[2], PREDICTS[2], out, executor=client.get_executor())
    assert same(maps(store), maps(run(SOURCES[2], GRIDS[2], PREDICTS[2], tmp_path)))


def test_an_interrupted_run_goes_on_with_the_missing_blocks(bucket, prefix, out):
    store = create(out)
    tiling.run_blocks(SOURCES[2], PREDICTS[2], store, [0, 3])
    before = bucket.keys(prefix)
    assert segment(create(out)) == [1, 2, 4, 5]
    assert before.items() <= bucket.keys(prefix).items()
    with refused(out, "another model", "--fresh"):
        tiling.create(f"{out}/a.zarr", SOURCES[2], GRIDS[2], replace(PREDICTS[2], digest="other"))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_a_damaged_object_is_found_and_its_block_computed_again(bucket, prefix, out, ndim, how):
    store = create(out, ndim)
    segment(store, ndim)
    whole = bucket.keys(prefix)
    key = next(store.files("labels", 1)).key
    bucket.delete(key) if how == "deleted" else bucket.write(key, bucket.read(key)[:-9])
    assert [*damaged(store)] == [Damage(1, ("labels",))]
    assert "block 1 is damaged in labels" in next(c for c in tiling.verify(store, None) if c.name == "intact").detail
    counts = store.counts()
    assert segment(store, ndim) == [1]
    assert np.array_equal(store.counts(), counts)
    again = bucket.keys(prefix)
    assert again.keys() == whole.keys()
    assert {k for k in whole if again[k] != whole[k]} <= {k for k in whole if "/record/c/1/" in k}


def test_exports_are_uploaded_whole(bucket, prefix, out, tmp_path, monkeypatch):
    raster, volume = create(out), create(f"{out}/3d", 3)
    segment(raster)
    segment(volume, 3)
    names = [str(f) for f in tiling.export(raster, f"{out}/a_labels.tif")]
    assert names == [f"{out}/a_labels.tif", f"{out}/a_labels.tif.aux.xml"]
    assert len(tiling.export(volume, f"{out}/a_seg.nii.gz")) == 3
    for store, name in ((raster, "a_labels.tif"), (volume, "a_seg.nii.gz")):
        assert tiling.verify(store, None, [f"{out}/{name}"])[-1].passed
    bucket.fetch(prefix, tmp_path)
    with rasterio.open(tmp_path / "a_labels.tif") as image:
        assert np.array_equal(image.read(1), maps(raster)["labels"])
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "a_seg.nii.gz").dataobj).T, maps(volume)["labels"])
    bucket.write(f"{prefix}/a_labels.tif", b"II*")
    assert "cannot be read" in tiling.verify(raster, None, [f"{out}/a_labels.tif"])[-1].detail


# --- one run at a time ---


def test_a_second_run_is_told_who_holds_the_store(bucket, prefix, out):
    store = create(out)
    with hold(store.path) as process:
        for call in (lambda: create(out), lambda: segment(store), lambda: remove(store.path)):
            with refused(store.path, f"in use by process {process.pid} of ", "another output folder"):
                call()
        assert "under way" in [c.name for c in tiling.verify(store, None)]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ".a.zarr.lease" in bucket.keys(prefix)
    start = time.monotonic()
    segment(store)
    assert time.monotonic() - start < leases.EXPIRY / 2
    assert ".a.zarr.lease" not in bucket.keys(prefix)


def test_a_holder_elsewhere_is_believed_while_its_heart_beats(bucket, prefix, out, monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY", 1.0)
    monkeypatch.setattr(leases, "_POLL", 0.05)
    key = f"{prefix}/.a.zarr.lease"

    def beat(number):
        bucket.write(key, json.dumps(asdict(stranger(beat=number))).encode())

    beat(0)
    later = threading.Timer(0.3, beat, [1])
    later.start()
    with refused("in use by process", "on node7"):
        lease(f"{out}/a.zarr").__enter__()
    later.join()
    assert holder(f"{out}/a.zarr").beat == 1
    with lease(f"{out}/a.zarr"):
        assert json.loads(bucket.read(key))["pid"] == os.getpid()
    assert bucket.keys(prefix) == {}


def test_the_heart_beats_until_the_lease_is_another_s(bucket, prefix, out, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    key = f"{prefix}/.a.zarr.lease"
    with lease(f"{out}/a.zarr"):
        while json.loads(bucket.read(key))["beat"] < 3:
            pass
        bucket.delete(key)
        while ".a.zarr.lease" not in bucket.keys(prefix):
            pass
        check(f"{out}/a.zarr")
        bucket.write(key, json.dumps(asdict(stranger())).encode())
        while not leases._held[address_of(f"{out}/a.zarr")].lost:
            pass
        with refused("taken over", "node7"):
            check(f"{out}/a.zarr")
    assert holder(f"{out}/a.zarr").host == "node7"


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_who_come_at_once_one_gets_it(bucket, prefix, out, dead):
    for attempt in range(5):
        path = address_of(f"{out}/{attempt}.zarr")
        if dead:
            gone = replace(leases._myself(), token="before", started="1")
            bucket.write(f"{prefix}/.{attempt}.zarr.lease", json.dumps(asdict(gone)).encode())
        one_gets_it(path)
    assert bucket.keys(prefix) == {}


# --- whole or not at all ---


def test_a_store_is_removed_and_what_lies_beside_it_is_not(bucket, prefix, out):
    segment(create(out))
    for key in ("a.zarr.txt", "a.zarr2/zarr.json"):
        bucket.write(f"{prefix}/{key}", b"me")
    remove(f"{out}/a.zarr")
    remove(f"{out}/a.zarr")
    assert set(bucket.keys(prefix)) == {"a.zarr.txt", "a.zarr2/zarr.json"}


def test_somebody_s_objects_are_neither_used_nor_removed(bucket, prefix, out):
    bucket.write(f"{prefix}/a.zarr/holiday.jpg", b"me")
    with refused(f"{out}/a.zarr", "no store of a run", "another output folder"):
        create(out)
    with refused(f"{out}/a.zarr", "left alone"):
        remove(f"{out}/a.zarr")
    with refused(f"{out}/a.zarr", "no store of a run"):
        tiling.open_store(f"{out}/a.zarr")
    assert set(bucket.keys(prefix)) == {"a.zarr/holiday.jpg"}


@pytest.mark.parametrize("call", ["put", "delete"])
def test_a_store_that_is_half_made_or_half_removed_is_none_and_in_nobody_s_way(bucket, prefix, out, monkeypatch, call):
    """A process is killed before its next request, whichever that is."""
    if call == "delete":
        segment(create(out))
    original, left = getattr(obstore, call), [0]

    def dying(client, keys, *rest, **options):
        if ".lease" not in str(keys):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return original(client, keys, *rest, **options)

    for count in range(50):
        left[0] = count
        with monkeypatch.context() as patch:
            patch.setattr(obstore, call, dying)
            try:
                remove(f"{out}/a.zarr") if call == "delete" else create(out)
            except KeyboardInterrupt:
                # The root goes first, and comes last.
                if call == "put" or count:
                    with refused("no store of a run"):
                        tiling.open_store(f"{out}/a.zarr")
                continue
            break
    assert count > 2
    assert segment(create(out)) == list(range(6))
    assert "a.zarr/.part" not in bucket.keys(prefix)


def test_another_run_s_store_in_its_place_is_not_written(bucket, out):
    old = create(out)
    remove(old.path)
    with refused("deleted or replaced"):
        tiling.run_blocks(SOURCES[2], PREDICTS[2], old, [0])


# --- faults ---


def test_a_missing_bucket_is_refused(bucket, prefix):
    for call in (
        place_of(address_of("s3://nowhere/out")).check_writable,
        lambda: create("s3://nowhere/out"),
        lambda: tiling.open_store("s3://nowhere/out/a.zarr"),
    ):
        with refused("s3://nowhere/out", "NoSuchBucket", bucket.host, "make the bucket"):
            call()


def test_refused_and_missing_keys_are_told_and_nothing_is_left(bucket, prefix, out, monkeypatch):
    bucket.trust(anybody=False)
    try:
        for call in (lambda: create(out), lambda: tiling.open_store(f"{out}/a.zarr")):
            with refused(out, "InvalidAccessKeyId", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
                call()
    finally:
        bucket.trust(anybody=True)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with refused(out, "Missing SecretAccessKey", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        create(out)
    assert bucket.keys(prefix) == {}


def test_keys_that_are_refused_in_the_middle_are_no_damage(bucket, prefix, out):
    store = create(out)
    segment(store)
    before = bucket.keys(prefix)
    bucket.trust(anybody=False)
    try:
        for call in (store.pending, store.counts, lambda: store.pending([0]), lambda: [*damaged(store)]):
            with refused(out, "InvalidAccessKeyId", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
                call()
        # Zarr would take for a missing chunk what is no error of the connection.
        with pytest.raises(ConnectionError, match="InvalidAccessKeyId"):
            maps(store)
    finally:
        bucket.trust(anybody=True)
    assert bucket.keys(prefix) == before


def test_a_server_that_takes_no_conditions_is_refused(bucket, prefix, out, monkeypatch):
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda client, key, content, mode: put(client, key, content))
    with refused(out, "two runs could not see each other"):
        place_of(address_of(out)).check_writable()
    assert bucket.keys(prefix) == {}


@pytest.mark.parametrize(
    ("endpoint", "error", "words"),
    [
        ("127.0.0.1:1", ConnectionError, r"http://127\.0\.0\.1:1.*check the network and AWS_S3_ENDPOINT"),
        ("no such host", tiling.InputError, "AWS_S3_ENDPOINT is 'no such host'"),
    ],
    ids=["nothing listens", "no name"],
)
def test_a_wrong_endpoint_is_told_soon(out, monkeypatch, endpoint, error, words):
    monkeypatch.setenv("AWS_S3_ENDPOINT", endpoint)
    start = time.monotonic()
    with pytest.raises(error, match=words) as caught:
        create(out)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20


def test_a_server_that_stalls_ends_the_run_which_the_same_process_resumes(bucket, prefix, out, monkeypatch):
    store = create(out)

    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "2")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")

    def stall(_):
        bucket.process.send_signal(signal.SIGSTOP)

    try:
        with pytest.raises(ConnectionError, match=r"a\.zarr.* cannot be reached: .*, then run again") as caught:
            tiling.segment(SOURCES[2], PREDICTS[2], store, on_block=stall)
    finally:
        bucket.process.send_signal(signal.SIGCONT)
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "30")
    assert "\n" not in str(caught.value)
    left = store.pending()
    assert left
    assert segment(store) == left
