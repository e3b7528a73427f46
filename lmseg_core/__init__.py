"""The network of lmseg, its training and its predictor.

Names load on first use (PEP 562), so that `import lmseg_core` costs nothing: torch alone takes seconds. Using
a model, configuration or processor name also registers the "lmseg" architecture with transformers' Auto
classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmseg_core.adapters import Adapter, adapt, load_adapter, merge, orthogonality, save_adapter, update_rank
    from lmseg_core.backbone import load_backbone
    from lmseg_core.classes import SegmentClass
    from lmseg_core.config import LMSegConfig
    from lmseg_core.errors import ModelError
    from lmseg_core.locality import Locality, locality_of, measure_locality, stride_of
    from lmseg_core.metrics import Confusion
    from lmseg_core.model import LMSegForSemanticSegmentation, LMSegOutput
    from lmseg_core.predictor import Predictor
    from lmseg_core.processor import LMSegImageProcessor
    from lmseg_core.text import TextEncoder

__all__ = [
    "Adapter",
    "Confusion",
    "LMSegConfig",
    "LMSegForSemanticSegmentation",
    "LMSegImageProcessor",
    "LMSegOutput",
    "Locality",
    "ModelError",
    "Predictor",
    "SegmentClass",
    "TextEncoder",
    "adapt",
    "load_adapter",
    "load_backbone",
    "locality_of",
    "measure_locality",
    "merge",
    "orthogonality",
    "save_adapter",
    "stride_of",
    "update_rank",
]

_HOME = {
    "Adapter": "adapters",
    "Confusion": "metrics",
    "LMSegConfig": "config",
    "LMSegForSemanticSegmentation": "model",
    "LMSegImageProcessor": "processor",
    "LMSegOutput": "model",
    "Locality": "locality",
    "ModelError": "errors",
    "Predictor": "predictor",
    "SegmentClass": "classes",
    "TextEncoder": "text",
    "adapt": "adapters",
    "load_adapter": "adapters",
    "load_backbone": "backbone",
    "locality_of": "locality",
    "measure_locality": "locality",
    "merge": "adapters",
    "orthogonality": "adapters",
    "save_adapter": "adapters",
    "stride_of": "locality",
    "update_rank": "adapters",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
