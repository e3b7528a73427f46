"""The files of `deployments/`: parsed, validated, and run against a real server, pool and worker."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import rasterio
import yaml
from distributed import Client
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

from flows.parameters import RegionParameters, VolumeParameters

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
PREFECT_YAML = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())
MODELS = {"segment_region": RegionParameters, "segment_volume": VolumeParameters}

# Nothing here is about speed: a wait ends when what it waits for happened, and fails only when it never did.
PATIENCE = 240.0


def wait_for(what: str, happened: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := happened():
            return value
        time.sleep(0.5)
    raise TimeoutError(f"{what} did not happen in {PATIENCE:.0f} s")


# ------------------------------------------------------------------------------------------------- files


def entries() -> list[Any]:
    return [
        pytest.param(entry, id=f"{entry['entrypoint'].split(':')[1]}-{entry['name']}")
        for entry in PREFECT_YAML["deployments"]
    ]


def test_both_flows_have_every_deployment() -> None:
    names = {(entry["entrypoint"], entry["name"]) for entry in PREFECT_YAML["deployments"]}
    assert names == {
        (f"flows.segment:{flow}", place) for flow in MODELS for place in ("local", "container", "kubernetes")
    }


@pytest.mark.parametrize("entry", entries())
def test_entry_is_complete(entry: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
    assert isinstance(flow, Flow)
    model = MODELS[flow.fn.__name__]
    assert entry["work_pool"]["name"] == f"lmseg-{entry['name']}"
    assert entry["concurrency_limit"]["limit"] >= 1
    assert entry["concurrency_limit"]["collision_strategy"] == "ENQUEUE"
    # The heartbeat automation finds runs by this tag.
    assert "lmseg" in entry["tags"]
    for schedule in entry.get("schedules", []):
        assert schedule["active"] is False
        model.model_validate(schedule["parameters"]["parameters"])
    # Prefect leaves an unset `{{ $VARIABLE }}` as it stands, and the run crashes on it.
    assert "{{" not in json.dumps(entry)


def test_local_deployments_ship_a_paused_nightly_schedule() -> None:
    local = [entry for entry in PREFECT_YAML["deployments"] if entry["name"] == "local"]
    assert [entry["schedules"][0]["slug"] for entry in local] == ["nightly", "nightly"]


@pytest.mark.parametrize("model", MODELS.values())
def test_form_takes_what_the_model_takes(model: type[RegionParameters] | type[VolumeParameters]) -> None:
    """The server checks a run against the JSON schema before pydantic sees it: the two must agree."""
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import validate

    flow = load_flow_from_entrypoint(f"flows.segment:segment_{model.__name__.removesuffix('Parameters').lower()}")
    schema = parameter_schema(flow).model_dump_for_openapi()
    told = {"sources": ["a"], "output": "/out", "memory": "2GiB", "tile": 256}
    stored = json.loads(model.model_validate(told).model_dump_json())
    for parameters in (told, stored):
        assert not validate({"parameters": parameters}, schema)
    assert validate({"parameters": {**told, "overlap": 1}}, schema)


def test_kubernetes_files_name_the_same_things() -> None:
    cluster = yaml.safe_load((DEPLOYMENTS / "clusters" / "kubernetes.yaml").read_text())
    assert (cluster["kind"], cluster["metadata"]["name"]) == ("DaskCluster", "lmseg")
    (claim,) = (volume["persistentVolumeClaim"] for volume in cluster["spec"]["worker"]["spec"]["volumes"])
    job = PREFECT_YAML["definitions"]["kubernetes"]["work_pool"]["job_variables"]
    assert claim["claimName"] == job["claim"]
    images = {
        container["image"]
        for part in ("worker", "scheduler")
        for container in cluster["spec"][part]["spec"]["containers"]
    }
    assert images == {job["image"]}

    pool = json.loads((DEPLOYMENTS / "kubernetes-pool.json").read_text())
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(pool["job_configuration"])))
    assert used == set(pool["variables"]["properties"])
    assert set(job) <= used


@pytest.mark.parametrize("script", sorted(DEPLOYMENTS.rglob("*.py")), ids=lambda path: path.name)
def test_script_compiles(script: Path) -> None:
    compile(script.read_text(), script, "exec")


def test_containerfile_copies_what_exists() -> None:
    lines = (DEPLOYMENTS / "Containerfile").read_text().splitlines()
    sources = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert {"flows", "lmseg_core", "tiling"} <= set(sources)
    assert [name for name in sources if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("script", "environment", "names"),
    [
        (["local.py", "--workers", "2"], {}, [None, None]),
        # Nanny sets it before the process starts, so torch there sees one GPU; none is needed to see that.
        (["gpus.py"], {"CUDA_VISIBLE_DEVICES": "0,2"}, ["0", "2"]),
    ],
)
def test_cluster_file_starts(script: list[str], environment: dict[str, str], names: list[str | None]) -> None:
    process = subprocess.Popen(
        [sys.executable, DEPLOYMENTS / "clusters" / script[0], *script[1:], "--port", "0"],
        env=without("CUDA_VISIBLE_DEVICES") | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with Client(address, set_as_default=False, timeout=60) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
            seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
            assert sorted(seen.values(), key=str) == names
            assert set(client.nthreads().values()) == {3}
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------------------------------------- a server


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Signal a process and all that it started, and wait until they are gone."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family if how == signal.SIGKILL else family[:1]:
        member.send_signal(how)
    process.wait(PATIENCE)
    psutil.wait_procs(family[1:], timeout=PATIENCE)


class Server:
    """A Prefect server on loopback with a home of its own, and what people type at it."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}/api"
        self.home = home
        self.environment = os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.api}
        self.process = self.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for("a healthy server", self.healthy)

    def healthy(self) -> bool:
        assert self.process.poll() is None, (self.home / "server.log").read_text()
        try:
            return httpx.get(f"{self.api}/health").is_success
        except httpx.TransportError:
            return False

    def start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                env=self.environment,
                # A worker must not need the repository as its working directory.
                cwd=self.home,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def worker(self) -> subprocess.Popen[bytes]:
        return self.start("worker", "worker", "start", "--pool", "lmseg-local")

    def run(self, *command: str | Path) -> str:
        """Run a command from the root of the repository; AssertionError with its output where it fails."""
        done = subprocess.run(
            [sys.executable, *command], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def prefect(self, *arguments: str) -> str:
        return self.run("-m", "prefect", "--no-prompt", *arguments)

    def post(self, path: str, **body: Any) -> Any:
        return httpx.post(f"{self.api}{path}", json=body, timeout=60).raise_for_status().json()

    def slots(self) -> int:
        """Runs of segment-region/local that hold its one slot."""
        deployment = httpx.get(f"{self.api}/deployments/name/segment-region/local").raise_for_status().json()
        slots: int = deployment["global_concurrency_limit"]["active_slots"]
        return slots

    def runs(self, *states: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.post(
            "/flow_runs/filter", flow_runs={"state": {"type": {"any_": states}}} if states else None
        )
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        for pool, *kind in (
            ("lmseg-local", "process"),
            ("lmseg-container", "docker"),
            ("lmseg-kubernetes", "kubernetes", "--base-job-template", "deployments/kubernetes-pool.json"),
        ):
            server.prefect("work-pool", "create", pool, "--overwrite", "--type", *kind)
        server.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        yield server
    finally:
        stop(server.process, signal.SIGTERM)


def told(**parameters: Any) -> tuple[str, str]:
    return "--param", f"parameters={json.dumps(parameters)}"


def test_every_deployment_is_there(server: Server) -> None:
    found = server.post("/deployments/filter")
    assert {entry["name"] for entry in found} == {"local", "container", "kubernetes"}
    assert len(found) == 6
    assert not any(schedule["active"] for entry in found for schedule in entry["schedules"])
    assert {entry["global_concurrency_limit"]["limit"] for entry in found if entry["name"] == "local"} == {1}


def test_deployed_run_writes_labels_that_lie_on_the_image(server: Server, scene: Path, tmp_path: Path) -> None:
    worker = server.worker()
    try:
        watched = server.prefect(
            "deployment", "run", "segment-region/local", "--watch", *told(sources=[str(scene)], output=str(tmp_path))
        )
    finally:
        stop(worker, signal.SIGTERM)
    # `--watch` exits 0 however a run ended.
    assert "finished successfully" in watched, (server.home / "worker.log").read_text()
    with rasterio.open(tmp_path / f"{scene.stem}_labels.tif") as labels, rasterio.open(scene) as image:
        assert labels.crs == image.crs
        assert labels.transform == image.transform
        assert labels.shape == image.shape
        assert len(np.unique(labels.read(1, masked=True).compressed())) >= 2


def test_killed_run_crashes_and_gives_its_slot_back(server: Server, scene: Path, tmp_path: Path) -> None:
    server.run(DEPLOYMENTS / "heartbeat.py")
    # Ten seconds of silence are the least the server takes; a second call replaces the first automation.
    server.run(DEPLOYMENTS / "heartbeat.py", "--seconds", "10")
    (automation,) = server.post("/automations/filter")
    worker = server.worker()
    try:
        # Nobody listens on port 1: the run is busy connecting for half a minute.
        server.prefect(
            "deployment",
            "run",
            "segment-region/local",
            *told(sources=[str(scene)], output=str(tmp_path), cluster="tcp://127.0.0.1:1"),
        )
        (doomed,) = wait_for("the run", lambda: server.runs("RUNNING"))
        heartbeats = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{doomed['id']}"]},
        }
        wait_for("a heartbeat", lambda: server.post("/events/filter", filter=heartbeats)["events"])
    finally:
        stop(worker, signal.SIGKILL)
    assert server.slots() == 1
    wait_for("the crash", lambda: doomed["id"] in {run["id"] for run in server.runs("CRASHED")})
    assert server.slots() == 0
    httpx.delete(f"{server.api}/automations/{automation['id']}").raise_for_status()
