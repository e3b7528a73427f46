"""The configuration keeps what it was given, and refuses what contradicts itself."""

from pathlib import Path

import pytest

from lmseg_core import LMSegConfig, ModelError, SegmentClass


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    config = LMSegConfig(
        ndim=3,
        in_channels=1,
        widths=(8, 16),
        tile=(8, 12, 16),
        bands=("T1",),
        id2label={0: "background", 1: "lesion"},
        colours=("#000000", "#ff0000"),
        codes=(None, "52988006"),
        lm_config={"model_type": "bert", "hidden_size": 32},
        lm_blocks=1,
    )
    config.save_pretrained(tmp_path)
    read = LMSegConfig.from_pretrained(tmp_path)
    ours = ("ndim", "in_channels", "widths", "blocks", "tile", "bands", "colours", "codes", "lm_config", "lm_blocks")
    assert [getattr(read, name) for name in ours] == [getattr(config, name) for name in ours]
    assert read.classes == (
        SegmentClass(0, "background", "#000000", None),
        SegmentClass(1, "lesion", "#ff0000", "52988006"),
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ndim": 4}, "ndim 4; set it to 2"),
        ({"widths": (8,)}, r"widths \[8\]; give at least two"),
        ({"tile": (64,)}, r"1 tile \(\[64\]\); give exactly 2"),
        ({"bands": ("red",)}, "1 bands .* give exactly 3"),
        ({"id2label": {0: "a", 2: "b"}}, "number the classes 0, 1, 2"),
        ({"bridge": "lm"}, 'bridge "lm"; use none or language or mlp'),
        ({"bridge": "language"}, 'bridge "language" and no lm_config'),
        ({"lm_prefix": 2}, 'bridge "none" has no use for them'),
        ({"decoder": "deeplab"}, 'decoder "deeplab"; use unet or fcn'),
        ({"stride": 3}, "stride 3; give a power of two"),
        ({"deep_supervision": 3}, "deep_supervision 3; 4 stages allow 0 to 2"),
        ({"mirror": ("x", "z")}, r"mirror \['x', 'z'\]; list some of x, y, each once"),
        ({"mirror": ("x", "x")}, "each once"),
        ({"dropout": 1.0}, "dropout 1.0; give a share"),
        ({"backbone_config": {"model_type": "resnet"}, "ndim": 3}, "backbones need ndim 2"),
        ({"sources": (1, 1)}, r"sources \[1, 1\]; their channels must add up to 3"),
        ({"fusion": "separate"}, 'fusion "separate" and no sources'),
        ({"context_length": 4}, "context_length 4 and context_size 0"),
        ({"head": "text", "id2label": {0: "a"}}, "text_size 0; give the embedding size"),
        ({"head": "text", "text_size": 8}, "no name for class 0; name it in id2label"),
        ({"colours": ("red", "#00ff00")}, 'colour "red"; write it as "#rrggbb"'),
    ],
)
def test_contradictions_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        LMSegConfig(**wrong)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_presets_take_overrides_and_round_trip(tmp_path: Path, name: str, ndim: int) -> None:
    config = LMSegConfig.preset(name, ndim=ndim, in_channels=4, stride=2, num_labels=5)
    assert (config.ndim, config.in_channels, config.stride, len(config.classes)) == (ndim, 4, 2, 5)
    assert config.multiple == 2 * 2 ** (len(config.widths) - 1)
    config.save_pretrained(tmp_path)
    assert LMSegConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_unknown_presets_and_fields_are_refused() -> None:
    with pytest.raises(ModelError, match=r'preset "huge" with ndim 2 is not known; use tiny, small, base'):
        LMSegConfig.preset("huge")
    with pytest.raises(ModelError, match=r'"decodr", which is no field .* did you mean "decoder"'):
        LMSegConfig.preset("tiny", decodr="fcn")


def test_an_old_file_with_a_language_model_has_a_bridge() -> None:
    assert LMSegConfig(lm_config={"model_type": "bert"}).bridge == "language"
    assert LMSegConfig().bridge == "none"
