"""Settings from YAML: the examples, the defaults, and what errors say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from lmseg_core import LMSegConfig, ModelError
from lmseg_core.training import settings as settings_module
from lmseg_core.training.network import build
from lmseg_core.training.settings import Settings, parse_settings, parse_yaml, put, read_settings

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "docs" / "configs").glob("*.yaml"))
RAW: dict[str, Any] = {
    "output": "out",
    "model": {"classes": [{"name": "a"}, {"name": "b"}]},
    "data": {"train": [{"image": "i", "label": "l"}], "validation": [{"image": "i", "label": "l"}]},
}


def changed(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(yaml.safe_dump(RAW))
    for key, value in changes.items():
        put(raw, key.replace("__", "."), value)
    return raw


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_can_be_built_and_says_how_it_is_started(path: Path) -> None:
    settings = read_settings(path)
    network = build(settings)
    config = network.config
    assert isinstance(config, LMSegConfig)
    assert (config.in_channels, config.ndim) == (len(settings.model.bands), settings.model.ndim)
    assert [entry.name for entry in config.classes] == [entry.name for entry in settings.model.classes]
    assert all(entry.colour for entry in settings.model.classes)
    assert settings.optimise.steps % settings.watch.evaluate == 0
    assert f"lmseg finetune docs/configs/{path.name} --data" in path.read_text()


def test_there_is_an_example_for_each_kind_of_data() -> None:
    assert {path.stem for path in CONFIGS} >= {"dubai", "camvid", "hippocampus", "land-cover"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimise__ratee": 1}, 'unknown key optimise.ratee; did you mean "rate"?'),
        ({"model__language_model": {"name": "x", "tuned": "lora"}}, 'model.language_model.tuned; did you mean "tune"'),
        ({"data__train__0__xyz": 1}, "data.train.0.xyz; known: image, label, attribute, bands."),
        ({"optimise__rate": -1}, "optimise.rate -1: Input should be greater than 0"),
        ({"optimise__rates": {"encodr": 1.0}}, "encodr"),
        ({"data__window": [64, 64, 64]}, "has not the 2 axes"),
        ({"model__tile": [64, 64, 64]}, "model.tile [64, 64, 64] has not the 2 axes"),
        ({"augment__flip": ["z"]}, "augment.flip has z"),
        ({"loss__class_weights": [1.0]}, "1 values for 2 classes"),
        ({"loss": {"cross_entropy": 0, "dice": 0}}, "every loss has weight 0"),
        ({"model__classes": [{"name": "a", "colour": "#ff0000"}, {"name": "b"}]}, "no colour for b"),
        ({"model__classes": [{"name": "a", "colour": "red"}, {"name": "b"}]}, "colour"),
        ({"data__train__0__image": []}, "empty list"),
        ({"data__train__0": {"image": ["a", "b"], "label": "l", "bands": [1]}}, "for 2 sources; give a list for each"),
        ({"data__train__0": {"image": "a", "label": "l", "bands": [0]}}, "bands"),
        ({"watch__report_to": ["mlflow"]}, "tensorboard"),
    ],
)
def test_what_is_refused_is_told_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        parse_settings(changed(**changes), "mine.yaml")
    assert str(caught.value).startswith("mine.yaml")
    assert "\n" not in str(caught.value)


def test_missing_keys_are_named() -> None:
    raw = changed()
    del raw["data"]["train"]
    with pytest.raises(ModelError, match=r"mine\.yaml lacks data\.train; add it"):
        parse_settings(raw, "mine.yaml")


def test_numbers_are_read_as_people_mean_them() -> None:
    assert parse_yaml("[1e-3, 2E+4, -1.5e2, 1e, e1, 1.0, 3]") == [1e-3, 2e4, -150.0, "1e", "e1", 1.0, 3]


def test_the_digest_follows_the_weights_and_not_the_places() -> None:
    def digest(**changes: Any) -> str:
        return parse_settings(changed(**changes), "x").digest

    search = {"space": {"optimise.rate": [0.1, 0.2]}}
    assert digest(output="elsewhere", data__root="/x", data__workers=7, card={"about": "x"}, search=search) == digest()
    for other in ({"seed": 1}, {"optimise__rate": 1.0}, {"data__window": [64, 64]}, {"data__train__0__label": "m"}):
        assert digest(**other) != digest()


def test_colours_may_be_written_in_capitals() -> None:
    classes = [{"name": "a", "colour": "#FF00aa"}, {"name": "b", "colour": "#000000"}]
    settings = parse_settings(changed(model__classes=classes), "x")
    assert settings.model.classes[0].colour == "#ff00aa"


def fields(model: type[BaseModel]) -> dict[str, list[str]]:
    """Every model of settings below this one, and the names of its fields."""
    found = {model.__name__: list(model.model_fields)}
    for entry in model.model_fields.values():
        for kind in re.findall(r"settings\.(\w+)", str(entry.annotation)):
            found |= fields(getattr(settings_module, kind))
    return found


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "finetuning.md").read_text()
    told = set(re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", page, re.MULTILINE))
    documented = {name for row in told for name in re.findall(r"`([\w.]+)`", row)}
    known = fields(Settings)
    assert len(known) == 12
    missing = [f"{model}.{name}" for model, names in known.items() for name in names if name not in documented]
    assert missing == []
