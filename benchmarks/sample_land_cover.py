"""The bundled Sentinel-2 sample and the land-cover model that learned from spectral-index rules.

The scene is cut in two: the sample is for prediction and measuring, everything outside it is for training.
"""

import json
import sys
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from lmseg_core import Confusion, LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor
from lmseg_core.processor import normalise
from lmseg_core.training.plain import Sample, batches, random_window, save, train

SAMPLE = "sentinel2_accomack.tif"
BANDS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "near infrared", "B11": "SWIR 1", "B12": "SWIR 2"}
CLASSES = {0: "water", 1: "vegetation", 2: "bare or built"}
COLOURS = ("#2b6cb0", "#3a9d4e", "#d9a86c")
CROP = Window(600, 300, 832, 832)  # columns, rows: farmland, marsh, lagoon, beach and ocean
WINDOW = (96, 96)  # of training
SCALE = 1e-4  # digital numbers to reflectance


def read_scene(folder: Path) -> tuple[NDArray[np.uint16], dict[str, object]]:
    """Return the six bands (6, rows, columns) on the 10 m grid and its georeference; 20 m bands are repeated."""
    with rasterio.open(folder / "s2_B02.jp2") as reference:
        place = {"crs": reference.crs, "transform": reference.transform}
        rows, columns = reference.shape
    bands = []
    for name in BANDS:
        with rasterio.open(folder / f"s2_{name}.jp2") as band:
            # Centres of the fine pixels, found in the coarse grid by their world coordinates.
            inverse = ~band.transform
            x, _ = inverse * (place["transform"] * (np.arange(columns) + 0.5, np.zeros(columns) + 0.5))
            _, y = inverse * (place["transform"] * (np.zeros(rows) + 0.5, np.arange(rows) + 0.5))
            values = band.read(1)
            row, column = np.floor(y).astype(int), np.floor(x).astype(int)
            bands.append(values[row.clip(0, band.height - 1)[:, None], column.clip(0, band.width - 1)[None]])
    return np.stack(bands), place


def rules(bands: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Label (6, *S) digital numbers: 0 water, 1 vegetation, 2 bare or built, 255 where the rules are unsure.

    Water: MNDWI (Xu 2006) and NDWI (McFeeters 1996). Vegetation: NDVI (Rouse 1974), and the dark salt marsh between,
    dormant on the day of the image, whose MNDWI is that of neither land nor water. Bare or built: low NDVI and
    either a positive bare-soil index (Rikimaru 2002) or brightness. The scene has no cloud, hence no class for it.
    """
    blue, green, red, nir, swir1, _ = bands.astype(np.float32) * SCALE
    ndwi, mndwi, ndvi = _difference(green, nir), _difference(green, swir1), _difference(nir, red)
    bsi = _difference(swir1 + red, nir + blue)
    bright = (blue + green + red) / 3
    labels = np.full(blue.shape, 255, np.uint8)
    labels[(ndvi > 0.4) & (mndwi < 0)] = 1
    labels[(ndvi < 0.35) & ((bsi > 0) | (bright > 0.16)) & (mndwi < 0.1)] = 2
    labels[(mndwi > -0.1) & (mndwi < 0.45) & (swir1 > 0.02) & (bright < 0.12)] = 1  # marsh
    labels[(ndwi > 0.1) & (mndwi > 0.5)] = 0
    return labels


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return (a - b) / np.maximum(a + b, 1e-6)


def write_sample(source: Path, target: Path) -> None:
    """Write the crop of the scene as a georeferenced GeoTIFF with the bands named."""
    scene, place = read_scene(source)
    rows, columns = CROP.toslices()
    values = scene[:, rows, columns]
    profile = {
        "driver": "GTiff",
        "dtype": "uint16",
        "count": len(values),
        "width": CROP.width,
        "height": CROP.height,
        "crs": place["crs"],
        "transform": place["transform"] * place["transform"].translation(CROP.col_off, CROP.row_off),
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "DEFLATE",
        "predictor": 2,
        "zlevel": 9,
        "interleave": "band",
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, "w", **profile) as out:
        out.write(values)
        for index, (name, meaning) in enumerate(BANDS.items(), 1):
            out.set_band_description(index, name)
            out.update_tags(index, meaning=meaning)


def train_model(source: Path, target: Path, steps: int) -> None:
    """Train outside the crop, measure inside it against the rules, and save to `target`."""
    scene, _ = read_scene(source)
    labels = rules(scene)
    rows, columns = CROP.toslices()
    # The four strips around the crop: no training window can touch it.
    strips = [
        (slice(0, rows.start), slice(None)),
        (slice(rows.stop, None), slice(None)),
        (slice(rows.start, rows.stop), slice(0, columns.start)),
        (slice(rows.start, rows.stop), slice(columns.stop, None)),
    ]
    outside = np.concatenate([scene[:, r, c].reshape(len(scene), -1) for r, c in strips], axis=1) * SCALE
    mean, std = outside.mean(axis=1).tolist(), outside.std(axis=1).tolist()
    raw = [value / SCALE for value in mean], [value / SCALE for value in std]
    normal = normalise(torch.from_numpy(scene.astype(np.float32))[None], *raw)[0]
    truth = torch.from_numpy(labels)
    samples = [Sample(normal[:, r, c], truth[r, c]) for r, c in strips]
    config = LMSegConfig(
        ndim=2,
        in_channels=len(BANDS),
        widths=(16, 32, 64, 96),
        tile=(256, 256),
        bands=tuple(BANDS),
        id2label=CLASSES,
        colours=COLOURS,
    )
    model = LMSegForSemanticSegmentation(config).to(memory_format=torch.channels_last)
    train(model, batches(samples, random_window(WINDOW), 8, seed=0), steps)
    processor = LMSegImageProcessor(mode="fixed", scale=SCALE, image_mean=mean, image_std=std)
    save(model.to(memory_format=torch.contiguous_format), processor, target)
    with torch.inference_mode():
        prediction = model(normal[None, :, rows, columns]).logits.argmax(1)[0].numpy()
    confusion = Confusion(len(CLASSES))
    confusion.add(prediction, labels[rows, columns])
    figures = {
        "mean_iou": confusion.mean_iou,
        "iou": confusion.iou.tolist(),
        "accuracy": confusion.pixel_accuracy,
        "share unsure": float((labels[rows, columns] == 255).mean()),
    }
    sys.stdout.write(json.dumps(figures) + "\n")
