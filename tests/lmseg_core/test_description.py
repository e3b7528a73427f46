"""A model's files are checked before torch is loaded, and every damage is one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from lmseg_core import LMSegImageProcessor, ModelError, Predictor
from lmseg_core.description import CONFIG, PROCESSOR, ProcessorFields, check_network

DEEP = '{"model_type": "lmseg", "x": ' + "[" * 10_000 + "]" * 10_000 + "}"
NESTED = '{"model_type": "lmseg", "x": ' + "[" * 100 + "]" * 100 + "}"

# Other values in config.json, and what the line names.
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "axes as text": ({"ndim": "2"}, 'ndim "2"; set it to 2'),
    "axes as truth": ({"ndim": True}, "ndim True; set it to 2"),
    "axes as null": ({"ndim": None}, "ndim None; set it to 2"),
    "no bands": ({"in_channels": 0}, "in_channels 0; give the number of bands"),
    "bands as a fraction": ({"in_channels": 2.5}, "in_channels 2.5; give"),
    "bands as many as pixels": ({"in_channels": 10**9}, "in_channels 1000000000; give"),
    "widths as a number": ({"widths": 8}, "widths 8; give at least two"),
    "a width as text": ({"widths": [8, "12", 16]}, 'widths[1] "12"; give'),
    "a width below zero": ({"widths": [8, -12, 16]}, "widths[1] -12; give"),
    "a width too large": ({"widths": [8, 12, 10**7]}, "widths[2] 10000000; give"),
    "too many stages": ({"widths": [8] * 40}, "widths [8, 8"),
    "ten million blocks": ({"blocks": 10_000_000}, "blocks 10000000; give 1 to 100"),
    "more weights than the file has": ({"widths": [4096, 4096, 4096]}, "describes 905969664 weights or more"),
    "a huge integer": ({"blocks": 10**400}, "blocks 1000"),
    "tile of other axes": ({"tile": [16, 16, 16]}, "3 tile ([16, 16, 16]); give exactly 2"),
    "tile of nothing": ({"tile": [0, 16]}, "tile[0] 0; give the pixels"),
    "tile as infinity": ({"tile": [1e999, 16]}, "has Infinity"),
    "band names missing": ({"bands": ["red"]}, "1 bands (['red']); give exactly 2"),
    "band names as numbers": ({"bands": [1, 2]}, "bands[0] 1; name each band"),
    "band name for the terminal": ({"bands": ["red\x1b[2J", "green"]}, r'bands[0] "red\x1b[2J"; name'),
    "classes as a list": ({"id2label": ["a", "b", "c"]}, "id2label ['a', 'b', 'c']; number the classes"),
    "class numbers with a gap": ({"id2label": {"0": "a", "2": "b"}}, "id2label {0: 'a', 2: 'b'}; number"),
    "class number as a word": ({"id2label": {"one": "a", "two": "b"}}, 'id2label "one"; number'),
    "class name as a number": ({"id2label": {"0": "a", "1": 7}}, "id2label 7; number"),
    "class name empty": ({"id2label": {"0": "a", "1": " "}}, 'id2label " "; number'),
    "class name twice": ({"id2label": {"0": "a", "1": "a", "2": "b"}}, 'two classes of the name "a" in id2label'),
    "no classes": ({"id2label": {}}, "id2label {}; number the classes"),
    "other numbers of names": ({"label2id": {"a": 2, "b": 1, "c": 0}}, "label2id that contradicts its id2label"),
    "another number of classes": ({"num_labels": 5}, "num_labels 5 and 3 classes"),
    "colour as a word": ({"colours": ["red", "#00ff00", "#0000ff"]}, 'colour "red"; write it as "#rrggbb"') ,
    "colour in capitals": ({"colours": ["#FF0000", "#00ff00", "#0000ff"]}, 'colour "#FF0000"; write it'),
    "colour as numbers": ({"colours": [[255, 0, 0], "#00ff00", "#0000ff"]}, "colour [255, 0, 0]; write it"),
    "colours of others": ({"colours": ["#00ff00"]}, "1 colours (['#00ff00']); give exactly 3"),
    "code as a number": ({"codes": [None, 4421005, None]}, "codes[1] 4421005; give a SNOMED"),
    "stride of three": ({"stride": 3}, "stride 3; give a power of two"),
    "stride of nothing": ({"stride": 0}, "stride 0; give a power of two"),
    "decoder unknown": ({"decoder": "deeplab"}, 'decoder "deeplab"; use unet or fcn'),
    "dropout as NaN": ({"dropout": float("nan")}, "has NaN"),
    "dropout of all": ({"dropout": 1.5}, "dropout 1.5; give a share"),
    "mirror as text": ({"mirror": "x"}, 'mirror "x"; list some of'),
    "mirror of another axis": ({"mirror": ["z"]}, "mirror ['z']; list some of x, y"),
    "sources that do not add up": ({"sources": [3, 4]}, "sources [3, 4]; their channels must add up to 2"),
    "head of no size": ({"head": "text"}, "text_size 0; give the embedding size"),
    "language model as text": ({"lm_config": "bert"}, 'lm_config "bert"; give a configuration'),
    "language model without end": (
        {"lm_config": {"model_type": "bert", "num_hidden_layers": 10_000_000}},
        "lm_config {'model_type': 'bert', 'num_hidden_layers': 10000000}; give",
    ),
    "backbone too wide": (
        {"backbone_config": {"model_type": "resnet", "hidden_sizes": [10**8, 10**8]}},
        "backbone_config {'model_type': 'resnet'",
    ),
    "weights of another type": ({"dtype": "float13"}, 'dtype "float13"; use float16'),
    "resolution of nothing": ({"resolution": 0}, "resolution 0; give the metres"),
    "resolution as text": ({"resolution": "10 m"}, 'resolution "10 m"; give the metres'),
    "spacing of a raster": ({"spacing": [1, 1, 1]}, "spacing with ndim 2; give resolution instead"),
    "range of nothing": ({"tested_range": [0.8, 1.25]}, "tested_range and no resolution; give both"),
    "range aside": ({"resolution": 10, "tested_range": [2, 3]}, "tested_range [2, 3]; give factors around 1"),
    "another architecture": ({"model_type": "segformer"}, 'model_type "segformer"'),
}  # fmt: skip
PROCESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "mode unknown": ({"mode": "tile"}, 'mode "tile"; use "fixed" or "image"'),
    "scale of nothing": ({"scale": 0}, "scale 0; give a factor above 0"),
    "scale below zero": ({"scale": -1.0}, "scale -1.0; give a factor above 0"),
    "scale as NaN": ({"scale": float("nan")}, "has NaN"),
    "mean as a number": ({"image_mean": 0.5}, "image_mean 0.5; give one finite number a band"),
    "mean as text": ({"image_mean": ["0.1", 0.2]}, 'image_mean[0] "0.1"; give'),
    "mean of other bands": ({"image_mean": [0.1] * 3, "image_std": [1] * 3}, "image_mean of 3 values, and config.json"),
    "mean missing": ({"image_mean": None}, "image_mean None and image_std [0.05, 0.1]; give both"),
    "spread of nothing": ({"image_std": [0.0, 0.1]}, "image_std[0] 0.0; give one number above 0"),
    "spread below zero": ({"image_std": [0.1, -0.1]}, "image_std[1] -0.1; give one number above 0"),
}
# Whole files.
FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "config empty": (CONFIG, lambda p: p.write_bytes(b""), "is not a JSON object"),
    "config of zeros": (CONFIG, lambda p: p.write_bytes(bytes(1000)), "is not a JSON object"),
    "config in latin-1": (CONFIG, lambda p: p.write_bytes(b'{"a": "\xe9\xff"}'), "is not a JSON object"),
    "config as a list": (CONFIG, lambda p: p.write_text("[1, 2]"), "is not a JSON object"),
    "config cut": (CONFIG, lambda p: p.write_text(p.read_text()[:200]), "is not a JSON object"),
    "config nested": (CONFIG, lambda p: p.write_text(NESTED), "objects inside each other 32 deep"),
    "config nested deep": (CONFIG, lambda p: p.write_text(DEEP), "inside each other"),
    "config with a key twice": (
        CONFIG,
        lambda p: p.write_text('{"ndim": 3, ' + p.read_text().lstrip()[1:]),
        'it has the key "ndim" twice',
    ),
    "config of a gigabyte": (CONFIG, lambda p: os.truncate(p, 2**30), "has 1073741824 bytes, and 4194304 are read"),
    "config as a pipe": (CONFIG, lambda p: (p.unlink(), os.mkfifo(p)), "has no config.json"),
    "config as a folder": (CONFIG, lambda p: (p.unlink(), p.mkdir()), "has no config.json"),
    "processor as a word": (PROCESSOR, lambda p: p.write_text('"fixed"'), "is not a JSON object"),
    "processor of a gigabyte": (PROCESSOR, lambda p: os.truncate(p, 2**30), "has 1073741824 bytes"),
    "processor nested deep": (PROCESSOR, lambda p: p.write_text(DEEP), "inside each other"),
}  # fmt: skip
CASES = {**CONFIGS, **PROCESSORS, **FILES}


def other(folder: Path, file: str, changes: dict[str, Any]) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def refusals(fixed_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The line that each case ends with, from one process that also says whether it loaded torch."""
    folder = tmp_path_factory.mktemp("models")
    for number, case in enumerate(CASES):
        shutil.copytree(fixed_folder, folder / str(number))
        if case in FILES:
            file, damage, _ = FILES[case]
            damage(folder / str(number) / file)
        else:
            other(folder / str(number), CONFIG if case in CONFIGS else PROCESSOR, CASES[case][0])  # type: ignore[arg-type]
    code = (
        "import json, sys, time\n"
        "from lmseg_core import ModelError, bundled\n"
        "lines = []\n"
        f"for number in range({len(CASES)}):\n"
        "    clock = time.perf_counter()\n"
        "    try:\n"
        "        lines.append(f'accepted: {bundled.folder(sys.argv[1] + f\"/{number}\")}')\n"
        "    except ModelError as error:\n"
        "        lines.append(str(error))\n"
        "    assert time.perf_counter() - clock < 5, lines[-1]\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "print(json.dumps(lines))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_each_damage_is_one_line(refusals: dict[str, str], case: str) -> None:
    line = refusals[case]
    assert CASES[case][-1] in line
    assert line.isprintable()
    assert len(line) < 500


# What only transformers finds out.
BUILT: dict[str, dict[str, Any]] = {
    "backbone unknown": {"backbone_config": {"model_type": "alexnet"}},
    "backbone without a type": {"backbone_config": {}},
    "backbone with text for depths": {"backbone_config": {"model_type": "resnet", "depths": "deep"}},
    "backbone that is none": {"backbone_config": {"model_type": "bert"}},
    "language model unknown": {"bridge": "language", "lm_config": {"model_type": "eliza"}},
    "language model with text for sizes": {
        "bridge": "language",
        "lm_config": {"model_type": "bert", "hidden_size": "wide"},
    },
    "language model with heads that do not divide": {
        "bridge": "language",
        "lm_config": {"model_type": "bert", "hidden_size": 30, "num_attention_heads": 7},
    },
    "adapter unknown": {
        "bridge": "language",
        "lm_config": {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2},
        "lm_adapter": {"kind": "magic"},
    },
    "a method of transformers for a field": {"to_dict": 5},
}


@pytest.mark.parametrize("case", BUILT)
def test_what_transformers_refuses_is_one_line(fixed_folder: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(fixed_folder, tmp_path / "model")
    other(tmp_path / "model", CONFIG, BUILT[case])
    with pytest.raises(ModelError) as caught:
        Predictor.from_pretrained(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "kind", ["bert", "gpt2", "llama", "qwen2", "qwen3", "gemma3_text", "resnet", "convnext", "swin", "dinov2"]
)
@pytest.mark.parametrize("positions", [512, 131_072, 1_048_576])
def test_configurations_of_transformers_are_within_the_limits(kind: str, positions: int) -> None:
    settings = AutoConfig.for_model(kind, max_position_embeddings=positions).to_dict()
    check_network({"backbone_config": settings, "widths": [8] * 6})


def test_defaults_have_one_home() -> None:
    defaults = {name: p.default for name, p in signature(LMSegImageProcessor.__init__).parameters.items()}
    assert {name: defaults[name] for name in ProcessorFields.model_fields} == ProcessorFields().model_dump()
