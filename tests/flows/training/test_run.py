"""`lmseg finetune` on real files: bad input, runs that start over, losses that are no number, searches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from transformers import ViTConfig

from lmseg_core.training.trainer import last_checkpoint
from tests.flows.conftest import Cli
from tests.flows.training.small import write_bert, write_config, write_raster

Change = Callable[[Path], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("quick_pictures")


def _labels(folder: Path, values: Any, **profile: Any) -> dict[str, Any]:
    write_raster(folder / "l.tif", values, **profile)
    return {"data.train": [{"image": "a.tif", "label": "l.tif"}]}


def _polygons(folder: Path, name: str) -> dict[str, Any]:
    square = [[441800, 4176300], [441900, 4176300], [441900, 4176200], [441800, 4176300]]
    feature = {
        "type": "Feature",
        "properties": {"kind": name},
        "geometry": {"type": "Polygon", "coordinates": [square]},
    }
    crs = {"type": "name", "properties": {"name": "EPSG:32618"}}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    (folder / "fields.geojson").write_text(json.dumps(collection))
    return {"data.train": [{"image": "a.tif", "label": "fields.geojson", "attribute": "kind"}]}


def _vit(folder: Path) -> str:
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(folder / "vit")
    return str(folder / "vit")


# name: (changes of the settings, words that the one line must hold)
BAD: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (lambda t: {"optimise.rat": 1}, ["settings.yaml", "optimise.rat", 'did you mean "rate"?']),
    "unknown key in a list": (lambda t: {"data.train.0.lable": "x"}, ["data.train.0.lable", '"label"']),
    "wrong value": (lambda t: {"optimise.steps": 0}, ["settings.yaml", "optimise.steps", "0", "greater"]),
    "no such choice": (lambda t: {"optimise.schedule": "linear"}, ["optimise.schedule", "linear", "cosine"]),
    "one class": (lambda t: {"model.classes": [{"name": "dark"}]}, ["classes", "1", "two"]),
    "two classes of one name": (lambda t: {"model.classes": [{"name": "x"}, {"name": "x"}]}, ["classes", "x", "own"]),
    "a field that the network lacks": (lambda t: {"model.config": {"width": [4, 8]}}, ["width", "widths"]),
    "a field of another kind": (lambda t: {"model.config": {"dropout": "much"}}, ["model", "config"]),
    "missing image": (lambda t: {"data.train.0.image": "no.tif"}, ["no.tif", "does not exist"]),
    "missing labels": (lambda t: {"data.train.0.label": "no.tif"}, ["no.tif", "does not exist"]),
    "missing folder": (lambda t: {"data.root": str(t / "no")}, ["no/a.tif", "does not exist", "data.root"]),
    "pattern without match": (lambda t: {"data.validation.0.image": "*.jp2"}, ["*.jp2", "matches no file"]),
    "label outside the list": (
        lambda t: _labels(t, np.full((40, 40), 7, np.uint8)),
        ["a.tif", "7", "0..1", "data.values"],
    ),
    "another size": (lambda t: _labels(t, np.ones((30, 40), np.uint8)), ["a.tif", "l.tif", "(30, 40)"]),
    "another CRS": (lambda t: _labels(t, np.ones((40, 40), np.uint8), crs="EPSG:3857"), ["EPSG:3857", "warp"]),
    "a class never seen": (lambda t: _labels(t, np.zeros((40, 40), np.uint8)), ["no pixel of bright", "model.classes"]),
    "nothing but ignored": (lambda t: _labels(t, np.full((40, 40), 255, np.uint8)), ["a.tif", "all 255"]),
    "unknown class name": (lambda t: _polygons(t, "lake"), ["fields.geojson", "'lake'", "dark, bright"]),
    "no attribute": (
        lambda t: {"data.train": [_polygons(t, "dark")["data.train"][0] | {"attribute": "sort"}]},
        ["fields.geojson", "'sort'", "kind"],
    ),
    "another number of bands": (lambda t: {"model.bands": ["a"]}, ["a.tif", "2 bands", "1"]),
    "window with an axis too many": (lambda t: {"data.window": [16, 16, 16]}, ["data.window", "2 axes"]),
    "window larger than the images": (lambda t: {"data.window": [16, 64]}, ["data.window", "a.tif", "40 or less"]),
    "no window": (lambda t: {"data.window": [0, 16]}, ["data.window.0", "0", "greater"]),
    "missing language model": (lambda t: {"model.language_model": {"name": str(t / "no")}}, ["model", "no"]),
    "unknown layout": (lambda t: {"model.language_model": {"name": _vit(t)}}, ["blocks are not known", "BERT"]),
    "too many blocks": (lambda t: {"model.language_model": {"name": write_bert(t), "blocks": 9}}, ["has 3", "blocks"]),
    "context without a language model": (lambda t: {"model.context": "July"}, ["model.context", "language_model"]),
    "source dropout for one source": (lambda t: {"augment.source_dropout": 0.5}, ["source_dropout", "one source"]),
    "freezing everything": (lambda t: {"optimise.freeze": ["encoder", "decoder", "head"]}, ["nothing to train"]),
    "freezing what is not there": (lambda t: {"optimise.freeze": ["bridge"]}, ["optimise.freeze", "bridge"]),
    "missing start": (lambda t: {"model.start": "aerial-tinny"}, ["aerial-tinny"]),
    "figure without a class": (
        lambda t: (
            write_raster(t / "l.tif", np.zeros((40, 40), np.uint8)),
            {"watch.metric": "foreground_dice", "data.validation.0.label": "l.tif"},
        )[1] | ({"data.validation.0.image": "a.tif"}),
        ["validation", "dark", "foreground_dice"],
    ),
    "foreign output": (lambda t: {"output": str(t)}, ["other files", "output"]),
    "output below a file": (lambda t: {"output": str(t / "a.tif" / "run")}, ["a.tif", "output"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda name: name.replace(" ", "-"))
def test_bad_settings_and_data_are_one_line_and_leave_nothing(case: str, cli: Cli, desk: Path) -> None:
    change, words = BAD[case]
    changes = change(desk)
    config = write_config(desk, changes)
    before = sorted(desk.rglob("*"))
    code, out, err = cli("finetune", config)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("lmseg: ")
    assert [word for word in words if word not in err] == [], err
    assert sorted(desk.rglob("*")) == before


def test_files_that_are_no_settings(cli: Cli, desk: Path) -> None:
    for content, words in ((b"a: [1", "is not YAML"), (b"\xff\xfe\x00", "is not YAML"), (b"- 1", "no settings")):
        (desk / "bad.yaml").write_bytes(content)
        code, _, err = cli("finetune", desk / "bad.yaml")
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    assert cli("finetune", desk / "none.yaml")[0] == 2


def test_changes_on_the_command_line(cli: Cli, desk: Path) -> None:
    config = write_config(desk)
    code, out, _ = cli(
        "finetune", config, "--set", "optimise.rate=1e-4", "--set", "data.train.0.bands=[2, 1]", "--json"
    )
    assert code == 0
    kept = json.loads((desk / "run" / "settings.json").read_text())["settings"]
    assert (kept["optimise"]["rate"], kept["data"]["train"][0]["bands"]) == (1e-4, [2, 1])
    assert json.loads(out)["steps"] == "4"
    for change in ("optimise.rate", "optimise.rate.x=1", "data.train.7.image=a", "seed=[1"):
        assert cli("finetune", config, "--set", change)[0] == 2


def test_a_refused_start_over_keeps_the_training_and_a_good_one_keeps_what_is_not_ours(cli: Cli, desk: Path) -> None:
    config = write_config(desk)
    assert cli("finetune", config)[0] == 0
    (desk / "run" / "notes.txt").write_text("mine")
    weights = (desk / "run" / "model" / "model.safetensors").read_bytes()
    code, _, err = cli("finetune", config, "--set", "seed=1")
    assert (code, "another seed; pass --fresh" in err) == (2, True)
    assert cli("finetune", config, "--set", "model.bands=[a]", "--fresh")[0] == 2
    assert (desk / "run" / "model" / "model.safetensors").read_bytes() == weights
    assert cli("finetune", config, "--set", "seed=1", "--fresh")[0] == 0
    assert (desk / "run" / "model" / "model.safetensors").read_bytes() != weights
    assert (desk / "run" / "notes.txt").read_text() == "mine"


def test_a_loss_that_is_no_number_names_its_batch_and_keeps_the_checkpoint(cli: Cli, desk: Path) -> None:
    wild = {"optimise.rate": 1e30, "optimise.optimiser": "sgd", "optimise.clip": 1e30, "optimise.warmup": 0}
    # The rate rises from nearly nothing, so that the first steps are good ones.
    changes = {**wild, "optimise.warmup": 1.0, "optimise.rate": 3e4, "optimise.steps": 400, "watch.evaluate": 1}
    for told in (wild, changes):
        code, _, err = cli("finetune", write_config(desk, told), "--fresh")
        assert code == 1
        last = err.splitlines()[-1]
        assert "became" in last
        assert "in step" in last
        assert "a.tif" in last
        assert "optimise.rate" in last
    checkpoint = last_checkpoint(desk / "run")
    assert checkpoint is not None
    assert all(bool(value.isfinite().all()) for value in load_file(checkpoint / "model.safetensors").values())


def test_a_search_is_interrupted_and_goes_on(cli: Cli, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"optimise.rate": [1e-4, 1e-1, "log"], "data.window": [[16, 16], [24, 24]], "optimise.batch": [1, 3]}
    search = {"trials": 3, "steps": 4, "space": space}
    config = write_config(desk, {"search": search})
    import flows.training.run

    train, calls = flows.training.run.run_training, []

    def interrupted(settings: Any, *rest: Any) -> Any:
        calls.append(settings)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(settings, *rest)

    monkeypatch.setattr(flows.training.run, "run_training", interrupted)
    assert cli("finetune", config, "--search")[0] in (1, 130)
    monkeypatch.setattr(flows.training.run, "run_training", lambda s, *rest: (calls.append(s), train(s, *rest))[1])
    code, out, err = cli("finetune", config, "--search", "--json")
    assert code == 0, err
    # The second trial came again, then the third.
    assert [s.digest for s in calls[1:3]] == [calls[1].digest] * 2
    assert len({s.digest for s in calls}) == 3 == len(calls) - 1
    facts = json.loads(out)
    assert facts["trials"].startswith("3")
    best = yaml.safe_load((desk / "run" / "search" / "best.yaml").read_text())
    assert str(best["optimise"]["rate"]) == facts["optimise.rate"]
    assert best["data"]["window"] in space["data.window"]
    assert best["optimise"]["steps"] == 4
    assert len(calls) == 4
    assert cli("finetune", config, "--search")[0] == 0  # nothing is missing
    assert len(calls) == 4
    # The folder of the search does not keep the training itself away.
    code, _, err = cli("finetune", desk / "run" / "search" / "best.yaml")
    assert code == 0, err
    assert (desk / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"optimise.rat": [1e-4, 1e-1]}, "optimise.rat; did you mean"),
        ({"optimise.rate": [1e-4]}, "range"),
        ({"optimise.rate": [1e-1, 1e-4, "log"]}, "rise"),
        ({"optimise.optimiser": ["adamw", "lion"]}, "lion"),
        ({"optimise": [{"rate": 1}, 3]}, "optimise"),
    ],
)
def test_a_space_that_the_settings_refuse(space: dict[str, Any], words: str, cli: Cli, desk: Path) -> None:
    config = write_config(desk, {"search": {"trials": 2, "steps": 2, "space": space}})
    code, _, err = cli("finetune", config, "--search")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not (desk / "run").exists()
