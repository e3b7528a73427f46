"""A model bound to an image: whether it is for such images, and what is doubtful about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import tiling
from flows.parameters import Parameters
from lmseg_core import bundled
from tiling import Area, InputError, Predict, Source
from tiling.bands import check_names, matching_bands
from tiling.intensity import Statistics, unlikely_values
from tiling.predict import check_bands, check_kind, check_sources
from tiling.scale import Scale, pixel_sides
from tiling.sources.raster import RasterSource, open_raster

if TYPE_CHECKING:
    from lmseg_core import Predictor


class Bound(NamedTuple):
    """A model ready for an image, and one line for each doubt about its labels."""

    predict: Predict
    doubts: tuple[str, ...]


def bind_model(image: Source, area: Area, parameters: Parameters) -> Bound:
    """Return the model bound to the sources that the image has, and to its statistics and voxel order if it needs them.

    Raises:
        ModelError: where the model cannot be loaded.
        InputError: where it is for other images.
    """
    bundled.folder(parameters.model)  # refused before torch is loaded, which takes seconds
    from lmseg_core import Predictor

    model: Predictor = Predictor.from_pretrained(
        parameters.model, device=parameters.device, precision=parameters.precision, compiled=parameters.compile
    )
    check_kind(model, image.space.ndim, image.uri)
    if missing := check_sources(image.parts, model.sources, image.uri):
        model = model.without(missing)
    doubts = [
        _check_band_names(image, model, parameters),
        _check_scale(image, area, model, parameters),
        None
        if model.trained_on is None
        else unlikely_values(image, area.box, Statistics(model.trained_on.mean, model.trained_on.std)),
    ]
    if model.needs_statistics:
        model = model.with_statistics(*tiling.statistics(image, area.box))
    predict = tiling.Oriented(model, image.space.affine) if image.space.ndim == 3 else model
    return Bound(predict, tuple(doubt for doubt in doubts if doubt is not None))


def _check_band_names(image: Source, model: Predictor, parameters: Parameters) -> str | None:
    """Refuse another number of bands, and names that contradict the model's; return what is doubtful about them."""
    if not isinstance(image, RasterSource):
        check_bands(model, image.channels, image.uri)
        return None
    right = matching_bands(image.names, model.bands)
    if image.channels != model.channels and right is not None:
        raise InputError(
            f"{image.uri} has {image.channels} bands, but the model expects {model.channels}; "
            f"pass --bands {','.join(map(str, right))}"
        )
    check_bands(model, image.channels, image.uri)
    # Bands that were chosen are some of the image's; those that were not may be the right ones.
    every = open_raster(image.uri) if getattr(parameters, "bands", None) else image
    return check_names(image.names, model.bands, every.names, image.uri)


def _check_scale(image: Source, area: Area, model: Predictor, parameters: Parameters) -> str | None:
    """Refuse pixels of a size that the model was not tested with; return what is doubtful about their size."""
    sides = (model.resolution,) * 2 if model.resolution is not None else model.spacing
    if sides is None:
        return None
    scale = Scale(sides, model.tested_range)
    own = pixel_sides(image.space, area.box)
    if own is None:
        return f"{image.uri} does not say how large its pixels are; {parameters.model} is for {sides[0]:g} m"
    if scale.covers(own):
        return None
    difference = scale.difference(own, image.uri, parameters.model)
    if not parameters.any_spacing:
        raise InputError(f"{difference}, or pass --any-spacing")
    return difference
