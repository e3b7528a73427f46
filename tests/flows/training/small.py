"""Files of a training that takes a second: the class of a pixel is whether its first band is bright."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import rasterio
import torch
import yaml
from numpy.typing import NDArray
from rasterio.transform import Affine
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from flows.training.data import examples
from lmseg_core.training.settings import DataSettings
from lmseg_core.training.windows import Example

NAMES = ("dark", "bright")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dark", "bright", "an", "a", "image", "region", "of", "july"]
PLACE: dict[str, Any] = {"crs": "EPSG:32618", "transform": Affine(10, 0, 441730, 0, -10, 4176460)}


def write_raster(path: Path, values: NDArray[Any], **profile: Any) -> str:
    """Write (C, y, x) or (y, x) as a raster of the ending's format, and return its name."""
    bands = values if values.ndim == 3 else values[None]
    driver = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[path.suffix]
    profile = (PLACE if driver == "GTiff" else {}) | profile
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver=driver, count=len(bands), height=bands.shape[1], width=bands.shape[2],
        dtype=bands.dtype, **profile,
    ) as target:  # fmt: skip
        target.write(bands)
    return str(path)


def write_volume(path: Path, values: NDArray[Any], affine: NDArray[Any] | None = None) -> str:
    """Write (x, y, z) voxels as NIfTI, and return its name."""
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return str(path)


def pixels(size: int = 40, bands: int = 2, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes, (bands, size, size)."""
    return np.random.default_rng(seed).integers(0, 255, (bands, size, size)).astype(np.uint8)


def bright(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The labels of such an image."""
    return (image[0] > 127).astype(np.uint8)


def write_pair(folder: Path, name: str = "a", seed: int = 0, size: int = 40) -> None:
    """Write `a.tif` and `a_labels.tif`."""
    image = pixels(size, seed=seed)
    write_raster(folder / f"{name}.tif", image)
    write_raster(folder / f"{name}_labels.tif", bright(image))


def write_desk(folder: Path) -> None:
    """Write two pairs, `a` and `b`."""
    write_pair(folder, "a", 0)
    write_pair(folder, "b", 1)


def write_config(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write `settings.yaml` of a training of four steps on a.tif and b.tif, with `changes` put over it."""
    raw: dict[str, Any] = {
        "output": str(folder / "run"),
        "model": {
            "bands": ["a", "b"],
            "classes": [{"name": "dark"}, {"name": "bright"}],
            "config": {"widths": [4, 8]},
        },
        "data": {
            "root": str(folder),
            "train": [{"image": "a.tif", "label": "a_labels.tif"}],
            "validation": [{"image": "b.tif", "label": "b_labels.tif"}],
            "window": [16, 16],
            "workers": 0,
        },
        "optimise": {"steps": 4, "batch": 2, "ema": 0.0},
        "watch": {"evaluate": 2},
    }
    for key, value in (changes or {}).items():
        place: Any = raw
        *path, last = key.split(".")
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def write_bert(folder: Path) -> str:
    """Write a BERT of 3 blocks and 16 channels with its tokenizer, and return its folder."""
    target = folder / "bert"
    target.mkdir()
    (target / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(target / "vocab.txt")).save_pretrained(target)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    BertModel(shape).save_pretrained(target)
    assert AutoTokenizer.from_pretrained(target).tokenize("july") == ["july"]
    return str(target)


def opened(root: Path, image: str | list[str], label: str, **changes: Any) -> list[Example]:
    """Open images with their labels as a training does, with `changes` of the settings of its data."""
    pair = {"image": image, "label": label} | {k: changes.pop(k) for k in ("bands", "attribute") if k in changes}
    data = DataSettings.model_validate({"root": root, "train": [pair], "validation": [pair], **changes})
    return examples(data, data.train, NAMES)
