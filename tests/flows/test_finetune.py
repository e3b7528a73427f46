"""The flow `finetune`, run in this process against the real server, and what its form takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.finetune import FinetuneParameters, finetune
from tests.flows.training.small import write_config, write_desk
from tests.local_server import Server

pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_desk(tmp_path)
    return write_config(tmp_path)


def artifacts(server: Server) -> dict[str, Any]:
    return {entry["key"]: entry for entry in server.post("/artifacts/filter")}


def test_a_run_trains_shows_its_progress_and_goes_on(prefect_server: Server, config: Path) -> None:
    report = finetune(FinetuneParameters(config=config, changes={"optimise.steps": 6}))
    assert isinstance(report, dict)
    assert report["steps"] == 6
    assert (Path(report["folder"]) / "model.safetensors").exists()
    json.dumps(report)
    found = artifacts(prefect_server)
    assert f"{report['figures']['mean_iou']:.4f}" in found["finetune"]["data"]
    assert float(found["finetune-progress"]["data"]) == 100.0
    assert finetune(FinetuneParameters(config=config, changes={"optimise.steps": 6})) == report


def test_what_cannot_be_used_fails_the_run_with_one_line(prefect_server: Server, config: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"optimise.rat": 1}, 'did you mean "rate"?'),
        ({"output": "runs/here"}, "the relative output runs/here; give an absolute one"),
        ({"data.root": "data"}, "the relative data.root data; give an absolute one"),
        ({"data.train.0.image": "no.tif"}, "no.tif does not exist"),
    ):
        state = finetune(FinetuneParameters(config=config, changes=changes), return_state=True)
        assert state.is_failed()
        assert words in (state.message or "")
        assert "\n" not in (state.message or "")
    assert not (tmp_path / "run").exists()


def test_folders_of_a_run_take_the_place_of_those_of_the_file(
    prefect_server: Server, config: Path, tmp_path: Path
) -> None:
    text = config.read_text().replace(f"root: {tmp_path}", "root: elsewhere")
    config.write_text(text.replace(f"output: {tmp_path}/run", "output: runs"))
    report = finetune(FinetuneParameters(config=config, output=tmp_path / "chosen", data=tmp_path))
    assert isinstance(report, dict)
    assert report["folder"] == str(tmp_path / "chosen" / "model")


def test_the_form_takes_what_the_model_takes() -> None:
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import validate

    schema = parameter_schema(finetune).model_dump_for_openapi()
    told = {"config": "/a.yaml", "changes": {"optimise.rate": 0.1}, "output": "/out"}
    stored = json.loads(FinetuneParameters.model_validate(told).model_dump_json())
    for parameters in (told, stored):
        assert not validate({"parameters": parameters}, schema)
    assert validate({"parameters": {**told, "fresh": "perhaps"}}, schema)
