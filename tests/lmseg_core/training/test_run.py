"""A training learns, resumes to the same weights, and stops with what it has."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from lmseg_core import LMSegForSemanticSegmentation, ModelError, Predictor
from lmseg_core.errors import TrainingError
from lmseg_core.training.run import train
from lmseg_core.training.settings import Settings
from lmseg_core.training.windows import Example, InMemory

Examples = Callable[..., list[Example]]
Make = Callable[..., Settings]

pytestmark = pytest.mark.usefixtures("quick_pictures")


class StopAt(TrainerCallback):
    """Stops the process' training as a kill would, between two steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def with_third_class(examples: list[Example]) -> list[Example]:
    """The class of a pixel far above zero is another one."""
    (example,) = examples
    image = example.image.read((slice(None), slice(None)))
    labels = ((image[0] > 0).astype(np.uint8) + (image[0] > 1)).astype(np.uint8)
    return [replace(example, labels=InMemory(labels))]


@pytest.mark.parametrize("ndim", [2, 3])
def test_training_learns_and_leaves_a_model_with_its_figures(
    make_settings: Make, make_examples: Examples, ndim: int
) -> None:
    settings = make_settings({"optimise.steps": 60, "watch.evaluate": 30}, ndim)
    report = train(settings, make_examples(2, 1, ndim, 24), make_examples(1, 2, ndim, 24))
    assert report.figures["pixel_accuracy"] > 0.9
    assert report.steps == 60
    assert report.trained == report.weights
    predictor = Predictor.from_pretrained(report.folder, device="cpu")
    image = make_examples(1, 2, ndim, 24)[0]
    values, truth = image.image.read((slice(None),) * ndim), image.labels.read((slice(None),) * ndim)
    labels = predictor(predictor.place(values.copy())[None])[0].argmax(0).numpy()
    # The figure is of the file that was written: what a user predicts with it agrees.
    assert float((labels == truth).mean()) == pytest.approx(report.figures["pixel_accuracy"], abs=0.02)
    card = (Path(report.folder) / "README.md").read_text()
    assert len({file.stat().st_mode for file in Path(report.folder).iterdir()}) == 1  # who reads one reads all
    assert settings.digest in card
    assert f"{report.figures['mean_iou']:.3f}" in card


def test_a_killed_training_resumes_to_the_weights_of_an_unbroken_one(
    make_settings: Make, make_examples: Examples, tmp_path: Path
) -> None:
    changes = {"model.config": {"widths": [8, 12], "dropout": 0.3}, "augment.noise": 0.1}
    data = make_examples(2, 1), make_examples(1, 2)
    whole = train(make_settings(changes | {"output": str(tmp_path / "whole")}), *data)
    broken = make_settings(changes | {"output": str(tmp_path / "broken")})
    with pytest.raises(KeyboardInterrupt):
        train(broken, *data, [StopAt(6)])
    assert not (broken.output / "model").exists()
    # A checkpoint that was cut off does not count.
    (broken.output / "checkpoint-7").mkdir()
    resumed = train(broken, *data)
    assert resumed.figures == whole.figures
    mine, theirs = (load_file(Path(report.folder) / "model.safetensors") for report in (resumed, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_finished_training_is_not_done_again_and_another_one_is_refused(
    make_settings: Make, make_examples: Examples
) -> None:
    data = make_examples(1, 1), make_examples(1, 2)
    first = train(make_settings(), *data)
    assert train(make_settings(), *data, [StopAt(1)]) == first
    with pytest.raises(ModelError, match=r"another optimise\.rate; pass --fresh"):
        train(make_settings({"optimise.rate": 0.5}), *data)


def test_a_folder_with_other_files_is_left_alone(make_settings: Make, make_examples: Examples, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="holds other files"):
        train(make_settings(), make_examples(1, 1), make_examples(1, 2))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["report.json", "settings.json", "model/weights", "runs/log", "notes.new", "best"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(
    name: str, fresh: bool, make_settings: Make, make_examples: Examples, tmp_path: Path
) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text('{"mine": 1}')
    with pytest.raises(ModelError, match="holds other files"):
        train(make_settings(), make_examples(1, 1), make_examples(1, 2), fresh=fresh)
    assert [f for f in (tmp_path / "run").rglob("*") if f.is_file()] == [file]
    assert file.read_text() == '{"mine": 1}'


def test_fresh_removes_neither_notes_nor_the_network_it_starts_from(
    make_settings: Make, make_examples: Examples
) -> None:
    data = make_examples(1, 1), make_examples(1, 2)
    settings = make_settings({"optimise.steps": 4})
    first = train(settings, *data)
    (settings.output / "notes.new").write_text("mine")
    with pytest.raises(ModelError, match=r"model\.start .* lies in"):
        train(make_settings({"model.start": first.folder}), *data, fresh=True)
    assert (settings.output / "model" / "model.safetensors").exists()
    train(settings, *data, fresh=True)
    assert (settings.output / "notes.new").read_text() == "mine"


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_checkpoint(
    make_settings: Make, make_examples: Examples
) -> None:
    class Poison(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if state.global_step == 5:
                with torch.no_grad():
                    next(named["model"].parameters()).fill_(float("nan"))

    settings = make_settings()
    with pytest.raises(TrainingError, match=r"the loss became nan in step 6, on windows of image 0"):
        train(settings, make_examples(1, 1), make_examples(1, 2), [Poison()])
    assert (settings.output / "checkpoint-4" / "complete.json").exists()
    best = LMSegForSemanticSegmentation.from_pretrained(settings.output / "best")
    assert all(bool(torch.isfinite(weight).all()) for weight in best.parameters())


def test_frozen_parts_stay_as_they_were(make_settings: Make, make_examples: Examples) -> None:
    data = make_examples(1, 1), make_examples(1, 2)
    first = train(make_settings(), *data)
    again = make_settings({"model.start": first.folder, "optimise.freeze": ["encoder"], "output": f"{first.folder}-2"})
    second = train(again, *data)
    before, after = (load_file(Path(report.folder) / "model.safetensors") for report in (first, second))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("encoder.")} <= same
    assert any(not name.startswith("encoder.") for name in before.keys() - same)
    assert second.trained < second.weights


def test_other_classes_start_with_a_new_head(make_settings: Make, make_examples: Examples) -> None:
    first = train(make_settings(), make_examples(1, 1), make_examples(1, 2))
    classes = [{"name": name} for name in ("x", "y", "z")]
    changes = {"model.start": first.folder, "model.classes": classes, "output": f"{first.folder}-2"}
    with pytest.raises(ModelError, match="no pixel of z"):  # no label has it
        train(make_settings(changes), make_examples(1, 1), make_examples(1, 2))
    assert not Path(changes["output"]).exists()
    changes["optimise.freeze"] = ["encoder"]
    second = train(make_settings(changes), with_third_class(make_examples(1, 1)), with_third_class(make_examples(1, 2)))
    before, after = (load_file(Path(report.folder) / "model.safetensors") for report in (first, second))
    assert [len(weights["head.bias"]) for weights in (before, after)] == [2, 3]
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))


@pytest.mark.parametrize("mode", ["fixed", "image"])
def test_a_start_keeps_its_normalisation_unless_the_settings_say_another(
    mode: str, make_settings: Make, make_examples: Examples
) -> None:
    data = make_examples(1, 1), make_examples(1, 2)
    first = train(make_settings({"data.normalise": mode}), *data)
    other = [replace(example, mean=(5.0, 6.0), std=(2.0, 3.0)) for example in data[0]]
    means = []
    for wanted in (None, "fixed", "image"):
        changes = {"model.start": first.folder, "data.normalise": wanted, "output": f"{first.folder}-{wanted}"}
        second = train(make_settings(changes | {"optimise.steps": 1}), other, data[1])
        means.append(json.loads((Path(second.folder) / "preprocessor_config.json").read_text()).get("image_mean"))
    assert means == [[0.0, 0.0] if mode == "fixed" else None, [5.0, 6.0], None]


def test_a_start_whose_normalisation_cannot_be_read_is_one_line(make_settings: Make, make_examples: Examples) -> None:
    first = train(make_settings({"optimise.steps": 1}), make_examples(1, 1), make_examples(1, 2))
    (Path(first.folder) / "preprocessor_config.json").write_text("{")
    changes = {"model.start": first.folder, "output": f"{first.folder}-2"}
    with pytest.raises(ModelError, match=r"preprocessor_config\.json is not a JSON object") as caught:
        train(make_settings(changes), make_examples(1, 1), make_examples(1, 2))
    assert "\n" not in str(caught.value)
    assert not Path(changes["output"]).exists()


@pytest.mark.parametrize("finished", [False, True])
def test_a_training_of_older_rules_is_not_resumed(finished: bool, make_settings: Make, make_examples: Examples) -> None:
    data, settings = (make_examples(1, 1), make_examples(1, 2)), make_settings()
    train(settings, *data)
    if not finished:
        (settings.output / "report.json").unlink()
    file = settings.output / "settings.json"
    kept = json.loads(file.read_text())
    del kept["numerics"]  # as versions before it wrote
    file.write_text(json.dumps(kept))
    with pytest.raises(ModelError, match=r"another version of lmseg.*--fresh"):
        train(settings, *data)
    train(settings, *data, fresh=True)


def test_training_stops_early_where_nothing_improves(make_settings: Make, make_examples: Examples) -> None:
    changes = {"watch.patience": 1, "optimise.rate": 1e-12, "optimise.steps": 40, "optimise.ema": 0.0}
    report = train(make_settings(changes), make_examples(1, 1), make_examples(1, 2))
    assert report.steps < 40


def test_bands_and_images_must_agree(make_settings: Make, make_examples: Examples) -> None:
    settings = make_settings({"model.bands": ["a", "b", "c"]})
    with pytest.raises(ModelError, match=r"image 0 has 2 bands and model\.bands 3"):
        train(settings, make_examples(1, 1), make_examples(1, 2))


def test_half_the_size_predicts_as_measured(make_settings: Make, make_examples: Examples) -> None:
    report = train(make_settings({"model.save_as": "float16"}), make_examples(1, 1), make_examples(1, 2))
    weights = load_file(Path(report.folder) / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float16}
    assert json.loads((Path(report.folder).parent / "report.json").read_text())["figures"] == report.figures


@pytest.mark.parametrize("ndim", [2, 3])
def test_bfloat16_trains_on_a_cpu(ndim: int, make_settings: Make, make_examples: Examples) -> None:
    changes = {"optimise.precision": "bfloat16", "optimise.steps": 40, "watch.evaluate": 20}
    report = train(make_settings(changes, ndim), make_examples(2, 1, ndim, 24), make_examples(1, 2, ndim, 24))
    assert report.figures["pixel_accuracy"] > 0.8
    weights = load_file(Path(report.folder) / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
