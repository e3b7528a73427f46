"""Finding a model, and refusing what is none."""

from pathlib import Path

import pytest

from lmseg_core import ModelError, bundled
from lmseg_core.training.settings import read_settings

SIZE = 12_000_000  # bytes: what a download of the package can bear for each


CONFIGS = Path(__file__).parents[2] / "docs" / "configs"
MADE_BY = {"aerial-tiny": "dubai", "hippocampus-tiny": "hippocampus", "land-cover-tiny": "land-cover"}


def test_each_bundled_model_is_known() -> None:
    assert set(bundled.names()) == MADE_BY.keys()


@pytest.mark.parametrize("name", MADE_BY)
def test_bundled_models_are_complete_and_small(name: str) -> None:
    folder = bundled.folder(name)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (folder / "model.safetensors").stat().st_size < SIZE
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert f"\n# {name}\n" in card
    # Trained by the settings that are committed, and not by others of before.
    assert f"digest {read_settings(CONFIGS / f'{MADE_BY[name]}.yaml', {}).digest}" in card


def test_a_folder_is_itself(fixed_folder: Path) -> None:
    assert bundled.folder(fixed_folder) == fixed_folder.resolve()


def refusal(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        bundled.folder(name)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(name).name in message
    return message


def test_a_folder_without_weights_is_refused(fixed_folder: Path, tmp_path: Path) -> None:
    assert "has no model.safetensors; write it with model.save_pretrained" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((fixed_folder / "model.safetensors").read_bytes())
    assert "has no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lmseg"}')
    assert "has no preprocessor_config.json; write it with processor.save_pretrained" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    (tmp_path / "config.json").write_text("{}")
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(ModelError, match=rf"{name} is a pickle, .*; convert it to model.safetensors"):
            bundled.folder(given)


@pytest.mark.parametrize("text", ["not json", "[]", '{"model_type": "segformer"}'])
def test_another_configuration_is_refused(fixed_folder: Path, tmp_path: Path, text: str) -> None:
    for path in fixed_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r'config.json (is not a JSON object|has model_type "segformer")'):
        bundled.folder(tmp_path)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    assert 'did you mean "land-cover-tiny"? Bundled: ' in refusal("landcover-tiny")
    assert "hippocampus-tiny" in refusal("/no/such/folder")
    assert "the hub did not give it" in refusal("nobody/no-such-model")
    assert 'did you mean "hippocampus-tiny"?' in refusal("nobody/hipocampus-tiny")
