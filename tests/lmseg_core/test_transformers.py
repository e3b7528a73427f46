"""What transformers does with any model for semantic segmentation it does with ours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor, ModelError, bundled

Maker = Callable[..., LMSegForSemanticSegmentation]
PICTURE = Path(__file__).parents[2] / "flows" / "samples" / "yellowstone.jpg"


def test_a_pipeline_gives_a_mask_of_each_class(tmp_path: Path) -> None:
    folder = bundled.folder("aerial-tiny")
    picture = Image.open(PICTURE).crop((0, 0, 150, 101))
    found = pipeline("image-segmentation", model=str(folder), dtype=torch.float32)(picture)
    network = LMSegForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LMSegImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor(np.moveaxis(np.asarray(picture), -1, 0))["pixel_values"]
        labels = network(pixels).logits[0].argmax(0).numpy()
    assert sum(np.asarray(entry["mask"]).astype(bool) for entry in found).tolist() == np.ones((101, 150)).tolist()
    for entry in found:
        value = network.config.label2id[entry["label"]]
        assert np.array_equal(np.asarray(entry["mask"]) == 255, labels == value)


def test_a_pipeline_takes_a_whole_picture_s_own_statistics(tmp_path: Path, make_network: Maker) -> None:
    make_network(in_channels=3, bands=("red", "green", "blue")).save_pretrained(tmp_path)
    LMSegImageProcessor(mode="image").save_pretrained(tmp_path)
    picture = Image.open(PICTURE).crop((0, 0, 40, 30))
    values = np.moveaxis(np.asarray(picture), -1, 0).astype(np.float64)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(picture)["pixel_values"][0]
    centred = (values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), keepdims=True)
    np.testing.assert_allclose(pixels, centred, atol=1e-4)
    masks = [np.asarray(entry["mask"]) for entry in pipeline("image-segmentation", model=str(tmp_path))(picture)]
    assert (sum(mask.astype(int) for mask in masks) == 255).all()


def test_labels_come_from_logits_at_another_size() -> None:
    logits = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    output = type("Output", (), {"logits": logits})
    processor = LMSegImageProcessor()
    plain = processor.post_process_semantic_segmentation(output)
    assert torch.equal(torch.stack(plain), logits.argmax(1))
    first, second = processor.post_process_semantic_segmentation(output, [(16, 12), torch.tensor([8, 6])])
    larger = torch.nn.functional.interpolate(logits[:1], (16, 12), mode="bilinear", align_corners=False)
    assert torch.equal(first, larger[0].argmax(0))
    assert torch.equal(second, logits[1].argmax(0))
    with pytest.raises(ModelError, match="1 target_sizes are given for 2 images"):
        processor.post_process_semantic_segmentation(output, [(16, 12)])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 5},
        {"id2label": {i: f"new {i}" for i in range(5)}, "label2id": {f"new {i}": i for i in range(5)}},
        {"id2label": {i: f"new {i}" for i in range(5)}},
    ],
)
@pytest.mark.parametrize("auto", [True, False])
def test_another_number_of_classes_gets_a_new_head(
    fixed_folder: Path, tmp_path: Path, changes: dict, auto: bool
) -> None:
    kind = AutoModelForSemanticSegmentation if auto else LMSegForSemanticSegmentation
    model = kind.from_pretrained(fixed_folder, ignore_mismatched_sizes=True, **changes)
    before = LMSegForSemanticSegmentation.from_pretrained(fixed_folder)
    assert torch.equal(model.encoder.stem.weight, before.encoder.stem.weight)
    assert model(torch.zeros(1, 2, 9, 7)).logits.shape == (1, 5, 9, 7)
    names = [entry.name for entry in model.config.classes]
    assert names == list(changes.get("id2label", {i: f"LABEL_{i}" for i in range(5)}).values())
    assert model.config.label2id == {name: value for value, name in enumerate(names)}
    assert model(torch.zeros(1, 2, 8, 8), labels=torch.full((1, 8, 8), 4)).loss.isfinite()
    model.save_pretrained(tmp_path)
    LMSegImageProcessor.from_pretrained(fixed_folder).save_pretrained(tmp_path)
    bundled.folder(tmp_path)  # is complete and in order
    assert AutoConfig.from_pretrained(tmp_path).classes == model.config.classes


def test_other_names_for_as_many_classes_keep_their_colours(fixed_folder: Path) -> None:
    config = LMSegConfig.from_pretrained(fixed_folder, id2label={0: "x", 1: "y", 2: "z"})
    assert [(entry.name, entry.color) for entry in config.classes] == [
        ("x", "#000000"),
        ("y", "#00ff00"),
        ("z", "#0000ff"),
    ]


def test_names_and_numbers_of_classes_are_each_other_s() -> None:
    assert LMSegConfig(id2label={0: "sky", 1: "sea"}).label2id == {"sky": 0, "sea": 1}
    assert LMSegConfig(num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    for name in bundled.names():
        config = LMSegConfig.from_pretrained(bundled.folder(name))
        assert config.label2id == {entry.name: entry.value for entry in config.classes}


def test_pictures_of_another_kind_are_refused(fixed_folder: Path) -> None:
    processor = LMSegImageProcessor.from_pretrained(fixed_folder)
    for image in (Image.new("RGB", (5, 4)), np.zeros((4, 5, 2)), torch.zeros(3, 4, 5)):
        with pytest.raises(ModelError, match=r"give its 2 bands first: \(C, \*S\)"):
            processor(image)
