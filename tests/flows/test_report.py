"""Areas and volumes in the units that people read."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine, from_origin

from flows import stages
from flows.parameters import RegionParameters
from flows.report import Report


def _segmented(path: Path, crs: str | None, transform: Affine, model: str) -> Report:
    with rasterio.open(
        path, "w", driver="GTiff", width=100, height=100, count=3, dtype="uint8", crs=crs, transform=transform
    ) as target:
        target.write(np.random.default_rng(0).integers(0, 255, (3, 100, 100)).astype(np.uint8))
    (run,) = stages.prepare(RegionParameters(sources=[str(path)], output=path.parent, model=model))
    stages.compute(run, stages.pending(run))
    return stages.finish(run)


def test_degrees_become_square_kilometres_on_the_ellipsoid(raster_model: str, tmp_path: Path) -> None:
    """A degree square at 60 north, against the closed formula of the ellipsoid's zones."""
    report = _segmented(tmp_path / "d.tif", "EPSG:4326", from_origin(10, 61, 0.01, 0.01), raster_model)
    # 2 pi b^2 zone(lat) / 360 for one degree of longitude, between 60 and 61 north (Snyder 1987, eq. 3-12).
    e = np.sqrt(0.00669437999014)
    s = np.sin(np.radians([60, 61]))
    q = (1 - e**2) * (s / (1 - (e * s) ** 2) - np.log((1 - e * s) / (1 + e * s)) / (2 * e))
    expected = 6378.137**2 * np.radians(1) * np.diff(q)[0] / 2
    assert sum(c.measure for c in report.classes) == pytest.approx(expected, rel=1e-4)
    assert report.classes[0].unit == "km²"


def test_feet_are_not_metres(raster_model: str, tmp_path: Path) -> None:
    report = _segmented(tmp_path / "f.tif", "EPSG:2263", from_origin(980_000, 200_000, 10, 10), raster_model)
    assert sum(c.measure for c in report.classes) == pytest.approx(1e4 * (10 * 1200 / 3937) ** 2 / 1e6)


def test_without_a_crs_there_are_only_pixels(raster_model: str, tmp_path: Path) -> None:
    report = _segmented(tmp_path / "n.tif", None, Affine.identity(), raster_model)
    assert {c.unit for c in report.classes} == {"px"}
    assert "no CRS" in report.markdown()


def test_the_markdown_page_links_to_every_file(raster_model: str, tmp_path: Path) -> None:
    report = _segmented(tmp_path / "m.tif", "EPSG:32618", from_origin(0, 0, 10, 10), raster_model)
    page = report.markdown()
    for file in report.files:
        assert f"({file.as_uri()})" in page
        assert file.is_file()
    assert "| network |" in page
