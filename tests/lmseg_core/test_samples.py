"""The bundled models on the bundled samples say something true."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window

from lmseg_core import Confusion, Predictor

SAMPLES = Path(__file__).parents[2] / "flows" / "samples"


def test_land_cover_agrees_with_the_indices_where_they_are_plain() -> None:
    model = Predictor.from_pretrained("land-cover-tiny", device="cpu")
    with rasterio.open(SAMPLES / "sentinel2_accomack.tif") as scene:
        assert scene.descriptions == model.bands
        values = scene.read(window=Window(100, 250, *model.tile))  # farmland, an inlet and the lagoon
    _, green, red, nir, swir1, _ = values.astype(float)
    truth = np.full(green.shape, 255)
    truth[(nir - red) / (nir + red) > 0.6] = 1
    truth[((green - swir1) / (green + swir1) > 0.4) & (nir < 600)] = 0
    truth[((nir - red) / (nir + red) < 0.25) & (swir1 > 2000)] = 2
    confusion = Confusion(3)
    confusion.add(model(model.place(values)[None])[0].argmax(0).numpy(), truth)
    assert confusion.support.min() > 300
    assert confusion.mean_iou > 0.85


def test_hippocampi_of_the_template_have_their_place_and_size() -> None:
    image = nibabel.load(SAMPLES / "mni152_t1.nii.gz")
    low, high = np.array([-42, -48, -36]), np.array([43, 6, 12])  # mm, around both hippocampi
    first, last = (np.linalg.inv(image.affine)[:3] @ np.append(mm, 1) for mm in (low, high))
    box = tuple(slice(round(a), round(b)) for a, b in zip(first, last, strict=True))
    block = np.asanyarray(image.dataobj)[box].T[None]  # x y z -> z y x
    model = Predictor.from_pretrained("hippocampus-tiny", device="cpu").with_statistics([block.mean()], [block.std()])
    labels = model(model.place(block)[None])[0].argmax(0)  # one window: the network takes any size
    x = torch.arange(low[0], high[0])
    y = torch.arange(low[1], high[1])
    for side in (x < 0, x >= 0):
        mine = labels * side
        assert 2.5 < float((mine > 0).sum()) / 1000 < 6  # ml; the template is larger than most brains
        centre_x = float((mine > 0).sum((0, 1)).float() @ x.float() / (mine > 0).sum())
        assert abs(centre_x) == pytest.approx(27, abs=4)
        front, back = ((mine == value).sum((0, 2)).float() @ y.float() / (mine == value).sum() for value in (1, 2))
        assert front - back > 10
