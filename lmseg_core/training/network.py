"""The network that a training starts from."""

from typing import Any

import torch
from torch import nn

from lmseg_core import bundled
from lmseg_core.adapters import Adapter, adapt
from lmseg_core.config import LMSegConfig
from lmseg_core.errors import ModelError
from lmseg_core.model import LMSegForSemanticSegmentation
from lmseg_core.text import TextEncoder
from lmseg_core.training.settings import LanguageSettings, ModelSettings, Settings


def build(settings: Settings) -> LMSegForSemanticSegmentation:
    """Return a new network, or the one to go on from, with its adapters in place and its frozen parts frozen."""
    told = settings.model
    network = _new(told, settings.data.window) if told.start is None else _started(told)
    if told.language_model is not None:
        adapt(network, _adapter(told.language_model, settings.optimise.steps))
    for part in settings.optimise.freeze:
        if part not in network.parts():
            raise ModelError(f"optimise.freeze has {part}, which this network lacks; leave it out.")
        network.parts()[part].requires_grad_(False)
    if not any(weight.requires_grad for weight in network.parameters()):
        raise ModelError("optimise.freeze leaves nothing to train; leave a part out.")
    return network


def class_names(told: ModelSettings) -> list[str]:
    """Return the names of the classes that will be trained, in the order of their label values."""
    if told.classes:
        return [entry.name for entry in told.classes]
    assert told.start is not None
    return [entry.name for entry in LMSegConfig.from_pretrained(bundled.folder(told.start)).classes]


def _new(told: ModelSettings, window: list[int]) -> LMSegForSemanticSegmentation:
    language = told.language_model
    fields: dict[str, Any] = {
        "in_channels": len(told.bands),
        "bands": told.bands,
        "tile": told.tile or window,
        **_class_fields(told),
        **told.config,
    }
    if language is not None and language.tune == "prefix":
        fields["lm_prefix"] = language.rank
    config = LMSegConfig.preset(told.preset, ndim=told.ndim, **fields)
    if told.text_head is not None:
        config = LMSegConfig(**{**config.to_dict(), "head": "text"})
    if told.backbone is not None and language is not None:
        raise ModelError("model has backbone and language_model; train the one first and go on from it with start.")
    if told.backbone is not None:
        network = LMSegForSemanticSegmentation.with_backbone(config, told.backbone)
    elif language is not None:
        network = LMSegForSemanticSegmentation.with_language_model(
            config, language.name, language.blocks, pretrained=language.pretrained
        )
    else:
        network = LMSegForSemanticSegmentation(config)
    if told.text_head is not None:
        encoder = TextEncoder.from_pretrained(told.text_head)
        names = [entry.name for entry in told.classes]
        synonyms = {entry.name: entry.synonyms for entry in told.classes}
        network.set_classes(names, encoder.classes(names, synonyms))
    return network


def _started(told: ModelSettings) -> LMSegForSemanticSegmentation:
    assert told.start is not None
    folder = bundled.folder(told.start)
    config = LMSegConfig.from_pretrained(folder)
    if told.classes:
        config = LMSegConfig(**{**config.to_dict(), **_class_fields(told)})
    # Another number of classes gives the head another shape; it starts anew, the rest goes on.
    network: LMSegForSemanticSegmentation = LMSegForSemanticSegmentation.from_pretrained(
        folder, config=config, ignore_mismatched_sizes=True
    )
    nn.Module.to(network, torch.float32)
    return network


def _class_fields(told: ModelSettings) -> dict[str, Any]:
    colours = [entry.colour for entry in told.classes]
    return {
        "id2label": {i: entry.name for i, entry in enumerate(told.classes)},
        "codes": [entry.code for entry in told.classes],
        "colours": colours if all(colours) else None,
    }


def _adapter(language: LanguageSettings, steps: int) -> Adapter:
    return Adapter(
        method=language.tune, rank=language.rank, alpha=language.alpha, dropout=language.dropout, total_steps=steps
    )


def count(network: nn.Module) -> tuple[int, int]:
    """Return how many weights train, and how many there are."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
