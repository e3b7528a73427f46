"""Stitch the parts of the Dubai aerial tiles (CC0) into one image and one label map a tile.

    python benchmarks/dubai_tiles.py DUBAI OUT

DUBAI holds `tile_1`, `tile_3` ... with nine image and nine label parts each, row by row. The source names no place,
so each tile gets one of its own in UTM zone 40N, with pixels of 0.3 m: for tools that want a place, not for measuring.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine


def main() -> None:
    """Write OUT/images/tile_N.tif and OUT/labels/tile_N.tif."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dubai", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for number, tile in enumerate(sorted(options.dubai.glob("tile_*"))):
        place = Affine(0.3, 0, 300_000 + 10_000 * number, 0, -0.3, 2_800_000)
        write(options.out / "images" / f"{tile.name}.tif", mosaic(tile, "image_part_{:03}.jpg", "RGB"), place)
        write(options.out / "labels" / f"{tile.name}.tif", mosaic(tile, "label_part_{:03}.png", "L"), place)


def mosaic(folder: Path, pattern: str, mode: str) -> NDArray[np.uint8]:
    """Return the nine parts as one (bands, y, x) array; parts differ by a pixel and are cut to the smallest."""
    parts = [np.asarray(Image.open(folder / pattern.format(i)).convert(mode)) for i in range(1, 10)]
    height, width = (min(part.shape[axis] for part in parts) for axis in (0, 1))
    rows = [np.concatenate([part[:height, :width] for part in parts[r : r + 3]], axis=1) for r in (0, 3, 6)]
    whole = np.concatenate(rows)
    return whole[None] if whole.ndim == 2 else whole.transpose(2, 0, 1)


def write(path: Path, values: NDArray[np.uint8], place: Affine) -> None:
    """Write a tiled GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype="uint8", crs="EPSG:32640",
        transform=place, nodata=255 if bands == 1 else None, tiled=True, blockxsize=256, blockysize=256,
        compress="DEFLATE", predictor=1 if bands == 1 else 2,
    ) as target:  # fmt: skip
        target.write(values)


if __name__ == "__main__":
    main()
