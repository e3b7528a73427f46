"""A Prefect server and a Dask cluster, both real and started once, and the real images that tests read."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.local_server import Server, stop
from tests.tiling.s3 import ObjectStore, environment, storing
from tests.tiling.web import IMPATIENT, Web, serving

# Before anything imports what reads them. No test needs the hub, and none may touch a person's own Prefect.
_home = tempfile.TemporaryDirectory(prefix="prefect-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    # Tests run side by side; and weights are equal to the bit only for equal numbers of threads.
    "OMP_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": _home.name,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
}
os.environ.pop("PREFECT_API_URL", None)


SAMPLES = Path(__file__).parents[1] / "flows" / "samples"


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all: flows called in this process report to it, and deployments are run from it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    server = Server(tmp_path_factory.mktemp("server"))
    try:
        with temporary_settings({PREFECT_API_URL: server.api}):
            yield server
    finally:
        stop(server.process)


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """A `distributed.LocalCluster` of two processes with one thread each."""
    from distributed import LocalCluster

    with LocalCluster(host="127.0.0.1", dashboard_address="127.0.0.1:0", n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with serving(tmp_path_factory.mktemp("web") / "files") as web:
        yield web


@pytest.fixture
def web(_web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of `tmp_path`, for a client that gives up after seconds."""
    for name, value in IMPATIENT.items():
        monkeypatch.setenv(name, value)
    link = _web.folder.with_name(tmp_path.name)
    link.symlink_to(tmp_path)
    yield replace(_web, folder=link)
    _web.heal()
    link.unlink()


@pytest.fixture(scope="module")
def _bucket() -> Iterator[ObjectStore]:
    with storing() as bucket:
        yield bucket


@pytest.fixture
def bucket(_bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An S3 server, found by the environment, for a client that gives up after seconds."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {**IMPATIENT, **environment(_bucket.host)}.items():
        monkeypatch.setenv(name, value)
    return _bucket


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of trainings are drawn and not painted, which takes longer than a small training itself."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_bytes(b""))


@pytest.fixture(scope="session")
def scene() -> Path:
    """The bundled Sentinel-2 crop: 6 bands of 832 x 832 pixels in UTM."""
    return SAMPLES / "sentinel2_accomack.tif"


@pytest.fixture(scope="session")
def brain() -> Path:
    """The bundled MNI152 T1 template: 197 x 233 x 189 voxels of 1 mm."""
    return SAMPLES / "mni152_t1.nii.gz"
