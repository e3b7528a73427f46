"""The front door of lmseg: open an image, plan, segment, export, verify.

    import lmseg

    scene = lmseg.open("scene.tif")
    model = lmseg.Predictor.from_pretrained("land-cover-tiny")
    grid = lmseg.Grid.regular(scene.space.shape, tile=256, overlap=0.25, block=512)
    store = lmseg.create("scene.zarr", scene, grid, model)
    lmseg.segment(scene, model, store)
    lmseg.export(store, "scene_labels.tif")

Names load on first use: `import lmseg` loads neither torch nor GDAL. Everything else is public in `tiling` (images,
tiles, stores, files) and `lmseg_core` (networks and predictors).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmseg.origin import check_origin

if TYPE_CHECKING:
    from lmseg_core import ModelError, Predictor
    from tiling import (
        Grid,
        InputError,
        Plan,
        Predict,
        Source,
        Store,
        create,
        export,
        open,
        open_store,
        plan,
        segment,
        verify,
    )

__all__ = [
    "Grid",
    "InputError",
    "ModelError",
    "Plan",
    "Predict",
    "Predictor",
    "Source",
    "Store",
    "create",
    "export",
    "open",
    "open_store",
    "plan",
    "segment",
    "verify",
]

_NETWORK = ("ModelError", "Predictor")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lmseg' has no attribute {name!r}")
    package = "lmseg_core" if name in _NETWORK else "tiling"
    check_origin(package)
    value = globals()[name] = getattr(import_module(package), name)
    return value


def __dir__() -> list[str]:
    return __all__
