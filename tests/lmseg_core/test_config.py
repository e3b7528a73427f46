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
        ({"colours": ("red", "#00ff00")}, 'colour "red"; write it as "#rrggbb"'),
    ],
)
def test_contradictions_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        LMSegConfig(**wrong)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)
