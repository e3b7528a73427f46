"""A picture of a result: the image, the labels over it, and what the colours mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tiling import Box, ClassTable, Source, Store
from tiling.address import Address
from tiling.ownership import Owner
from tiling.sources.raster import RasterSource

_SIDE = 640  # pixels of a panel's longer side
_LOOK = 2048  # pixels of the image that are read for it, a side
_SLAB = 16  # planes of a volume that are looked at together
_GAP = 16
_LINE = 26
_OPACITY = 0.55
_RGB = (("B04", "B03", "B02"), ("RED", "GREEN", "BLUE"), ("R", "G", "B"))

Picture = NDArray[np.uint8]


def write_preview(image: Source, store: Store, out: Address, owner: Owner) -> Address:
    """Writes a PNG with the image and its labels side by side, above the legend.

    Large rasters are shown by the middle 2048 x 2048 pixels, volumes by the three planes through the most labels.
    """
    raster = store.space.ndim == 2
    rows = [_raster_panels(image, store)] if raster else _volume_panels(image, store)
    caption = _caption(store)
    sheet = _sheet(rows, store.classes, caption)
    with owner.publish(out) as folder:
        sheet.save(folder / out.name, format="PNG")
    return out


def _raster_panels(image: Source, store: Store) -> tuple[Picture, Picture]:
    box = _middle(store.area.box)
    pixels = image.read(box)
    labels = store.read(box.relative(store.area.box.start))
    step = max(1, -(-max(box.shape) // _SIDE))
    values = pixels.values[:, ::step, ::step]
    grey = _stretched(values[_rgb_bands(image)], pixels.valid[::step, ::step])
    return grey, _overlay(grey, labels[::step, ::step], store.classes, 0.85)


def _volume_panels(image: Source, store: Store) -> list[tuple[Picture, Picture]]:
    spacing = store.space.spacing
    shape, origin = store.area.box.shape, store.area.box.start
    indices = _fullest_planes(store)
    grey_planes = _planes(lambda box: image.read(box.shift(origin)).values[0], shape, indices)
    label_planes = _planes(store.read, shape, indices)
    panels = []
    for axis, (values, labels) in enumerate(zip(grey_planes, label_planes, strict=True)):
        plane = _stretched(values[[0, 0, 0]], np.ones(labels.shape[1:], bool))
        drawn = _overlay(plane, labels[0], store.classes, _OPACITY, transparent=0)
        height, width = (n * spacing[a] for a, n in enumerate(shape) if a != axis)
        scale = _SIDE / 2 / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        # Index 0 is the bottom of a volume and the top of a picture.
        grey, coloured = (
            np.asarray(Image.fromarray(p[::-1]).resize(size, Image.Resampling.NEAREST)) for p in (plane, drawn)
        )
        panels.append((grey, coloured))
    return panels


def _planes(read: Callable[[Box], NDArray[Any]], shape: tuple[int, ...], indices: list[int]) -> list[NDArray[Any]]:
    """(1, *plane) across each axis at its index, in one pass over the volume, a few planes at a time."""
    pieces: list[list[NDArray[Any]]] = [[], [], []]
    for box in Box.whole(shape).split((_SLAB, *shape[1:])):
        slab = read(box)
        if box.start[0] <= indices[0] < box.stop[0]:
            pieces[0].append(slab[indices[0] - box.start[0]].copy())
        pieces[1].append(slab[:, indices[1]].copy())
        pieces[2].append(slab[:, :, indices[2]].copy())
    return [np.concatenate(p)[None] for p in pieces]


def _fullest_planes(store: Store) -> list[int]:
    """The plane along each axis with the most labels that are not background; the middle where there are none."""
    shape = store.area.box.shape
    counts = [np.zeros(n, np.int64) for n in shape]
    for box in Box.whole(shape).split((_SLAB, *shape[1:])):
        labels = store.read(box)
        found = (labels != 0) & (labels != store.classes.nodata)
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            counts[axis][box.slices[axis]] += found.sum(axis=others)
    return [int(c.argmax()) if c.any() else len(c) // 2 for c in counts]


def _middle(box: Box) -> Box:
    start = tuple(a + max(0, (n - _LOOK) // 2) for a, n in zip(box.start, box.shape, strict=True))
    return Box(start, tuple(a + min(n, _LOOK) for a, n in zip(start, box.shape, strict=True)))


def _rgb_bands(image: Source) -> list[int]:
    names = [n.upper() for n in image.names] if isinstance(image, RasterSource) else []
    for wanted in _RGB:
        if all(w in names for w in wanted):
            return [names.index(w) for w in wanted]
    return [0, 1, 2] if image.channels >= 3 else [0, 0, 0]


def _stretched(values: NDArray[Any], valid: NDArray[np.bool_]) -> Picture:
    """(3, *S) values to (*S, 3) bytes, between the 2nd and 98th percentile of each band."""
    picture = np.zeros((*values.shape[1:], 3), np.uint8)
    for band, channel in enumerate(values):
        seen = channel[valid]
        low, high = np.percentile(seen, (2, 98)) if seen.size else (0, 1)
        picture[..., band] = np.clip((channel - low) / max(high - low, 1e-9) * 255, 0, 255) * valid
    return picture


def _overlay(
    grey: Picture, labels: NDArray[Any], classes: ClassTable, opacity: float, transparent: int | None = None
) -> Picture:
    drawn = grey.astype(np.float32)
    for c in classes:
        if c.value != transparent:
            here = labels == c.value
            drawn[here] = (1 - opacity) * drawn[here] + opacity * np.array(c.rgb)
    return drawn.astype(np.uint8)


def _caption(store: Store) -> str:
    shape = store.area.box.shape
    shown = _middle(store.area.box).shape if len(shape) == 2 else shape
    whole = " x ".join(map(str, shape))
    return whole if shown == shape else f"the middle {' x '.join(map(str, shown))} of {whole}"


def _sheet(rows: list[tuple[Picture, Picture]], classes: ClassTable, caption: str) -> Image.Image:
    widths = [max(row[i].shape[1] for row in rows) for i in (0, 1)]
    heights = [max(p.shape[0] for p in row) for row in rows]
    columns = max(1, (sum(widths) + _GAP) // 220)
    legend = -(-len(classes) // columns)
    width = max(sum(widths) + 3 * _GAP, 480)
    height = sum(heights) + _GAP * (len(rows) + 2) + _LINE * (legend + 1)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    y = _GAP
    for row, tall in zip(rows, heights, strict=True):
        for x, panel in zip((_GAP, 2 * _GAP + widths[0]), row, strict=True):
            sheet.paste(Image.fromarray(panel), (x, y))
        y += tall + _GAP
    for i, c in enumerate(classes):
        x, top = _GAP + (i % columns) * 220, y + (i // columns) * _LINE
        draw.rectangle((x, top + 2, x + 16, top + 18), fill=c.color, outline="black")
        draw.text((x + 24, top), c.name, fill="black", font=font)
    draw.text((_GAP, y + legend * _LINE), caption, fill="#555555", font=font)
    return sheet
