"""The files of `deployments/`: parsed, validated, and run against a real server, pool and worker."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from distributed import Client
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

from flows.evaluation.scores import EvaluationParameters
from flows.finetune import FinetuneParameters
from flows.parameters import RegionParameters, VolumeParameters
from tests.local_server import PATIENCE, ROOT, Server, stop, wait_for

DEPLOYMENTS = ROOT / "deployments"
PREFECT_YAML = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())
SEGMENT = {"segment_region": RegionParameters, "segment_volume": VolumeParameters}
MODELS = SEGMENT | {"evaluate": EvaluationParameters, "finetune": FinetuneParameters}

# ------------------------------------------------------------------------------------------------- files


def entries() -> list[Any]:
    return [
        pytest.param(entry, id=f"{entry['entrypoint'].split(':')[1]}-{entry['name']}")
        for entry in PREFECT_YAML["deployments"]
    ]


def test_flows_have_their_deployments() -> None:
    names = {(entry["entrypoint"], entry["name"]) for entry in PREFECT_YAML["deployments"]}
    segment = {(f"flows.segment:{flow}", place) for flow in SEGMENT for place in ("local", "container", "kubernetes")}
    assert names == segment | {("flows.evaluate:evaluate", "local"), ("flows.finetune:finetune", "local")}


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
    local = [e for e in PREFECT_YAML["deployments"] if e["name"] == "local" and "flows.segment" in e["entrypoint"]]
    assert [entry["schedules"][0]["slug"] for entry in local] == ["nightly", "nightly"]


@pytest.mark.parametrize("model", SEGMENT.values())
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


def test_form_takes_what_an_evaluation_takes() -> None:
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import validate

    schema = parameter_schema(load_flow_from_entrypoint("flows.evaluate:evaluate")).model_dump_for_openapi()
    told = {"prediction": "/a", "truth": "/b", "tolerance": 1.5, "report": "/out"}
    stored = json.loads(EvaluationParameters.model_validate(told).model_dump_json())
    for parameters in (told, stored):
        assert not validate({"parameters": parameters}, schema)
    assert validate({"parameters": {**told, "tolerance": 0}}, schema)


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
        env={name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | environment,
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
            assert set(client.nthreads().values()) == {1}
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def server(prefect_server: Server) -> Server:
    """The server with every pool and deployment."""
    for pool, *kind in (
        ("lmseg-local", "process"),
        ("lmseg-container", "docker"),
        ("lmseg-kubernetes", "kubernetes", "--base-job-template", "deployments/kubernetes-pool.json"),
    ):
        prefect_server.prefect("work-pool", "create", pool, "--overwrite", "--type", *kind)
    prefect_server.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    return prefect_server


def told(**parameters: Any) -> tuple[str, str]:
    return "--param", f"parameters={json.dumps(parameters)}"


def test_every_deployment_is_there(server: Server) -> None:
    found = server.post("/deployments/filter")
    assert {entry["name"] for entry in found} == {"local", "container", "kubernetes"}
    assert len(found) == len(PREFECT_YAML["deployments"])
    assert not any(schedule["active"] for entry in found for schedule in entry["schedules"])
    assert {entry["global_concurrency_limit"]["limit"] for entry in found if entry["name"] == "local"} == {1}


def test_deployed_run_writes_labels_that_lie_on_the_image(server: Server, scene: Path, tmp_path: Path) -> None:
    parameters = told(sources=[str(scene)], output=str(tmp_path))
    worker = server.worker()
    try:
        server.prefect("deployment", "run", "segment-region/local", "--watch", *parameters)
    finally:
        stop(worker)
    with rasterio.open(tmp_path / f"{scene.stem}_labels.tif") as labels, rasterio.open(scene) as image:
        assert (labels.crs, labels.transform, labels.shape) == (image.crs, image.transform, image.shape)
        assert np.unique(labels.read(1, masked=True).compressed()).size >= 2


def test_killed_run_crashes_and_gives_its_slot_back(server: Server, scene: Path, tmp_path: Path) -> None:
    def slots() -> int:
        slots: int = server.get("/deployments/name/segment-region/local")["global_concurrency_limit"]["active_slots"]
        return slots

    def runs(state: str) -> list[str]:
        found = server.post("/flow_runs/filter", flow_runs={"state": {"type": {"any_": [state]}}})
        return [run["id"] for run in found]

    server.run(DEPLOYMENTS / "heartbeat.py")
    # Ten seconds of silence are the least the server takes; a second call replaces the first automation.
    server.run(DEPLOYMENTS / "heartbeat.py", "--seconds", "10")
    assert len(server.post("/automations/filter")) == 1
    # Nobody listens on port 1: the run is busy connecting for half a minute.
    parameters = told(sources=[str(scene)], output=str(tmp_path), cluster="tcp://127.0.0.1:1")
    worker = server.worker()
    try:
        server.prefect("deployment", "run", "segment-region/local", *parameters)
        (doomed,) = wait_for("the run", lambda: runs("RUNNING"))
        beats = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{doomed}"]},
        }
        wait_for("a heartbeat", lambda: server.post("/events/filter", filter=beats)["events"])
    finally:
        stop(worker, signal.SIGKILL)
    assert slots() == 1
    wait_for("the crash", lambda: doomed in runs("CRASHED"))
    assert slots() == 0
