"""The network that a training starts from."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from lmseg_core import bundled
from lmseg_core.adapters import Adapter, adapt
from lmseg_core.config import LMSegConfig
from lmseg_core.errors import ModelError
from lmseg_core.language import load_blocks
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
    texts = None if told.text_head is None else TextEncoder.from_pretrained(told.text_head)
    fields: dict[str, Any] = {
        "in_channels": len(told.bands),
        "bands": told.bands,
        "tile": told.tile or window,
        **_class_fields(told),
        **({} if texts is None else {"head": "text", "text_size": texts.size}),
        **({} if told.context is None else {"context_size": _words(told).token_size}),
        **told.config,
    }
    if language is not None:
        shape = AutoConfig.from_pretrained(language.name).to_diff_dict()
        fields = {"lm_config": shape, "lm_blocks": language.blocks, **fields}
    config = LMSegConfig.preset(told.preset, ndim=told.ndim, **fields)
    network = _empty(told, config)
    if language is not None and language.pretrained:
        assert network.bridge is not None
        load_blocks(list(network.bridge.blocks), language.name, language.blocks)
    if texts is not None:
        names = [entry.name for entry in told.classes]
        synonyms = {entry.name: entry.synonyms for entry in told.classes}
        network.set_classes(names, texts.classes(names, synonyms))
    if told.context is not None:
        network.set_context(told.context, _words(told).tokens(told.context))
    return network


def _empty(told: ModelSettings, config: LMSegConfig) -> LMSegForSemanticSegmentation:
    if told.backbone is None:
        return LMSegForSemanticSegmentation(config)
    return LMSegForSemanticSegmentation.with_backbone(config, told.backbone)


def _words(told: ModelSettings) -> TextEncoder:
    """What turns the context into tokens: the language model at the bottleneck, which reads them."""
    if told.language_model is None:
        raise ModelError("model.context needs a language model that reads it; add model.language_model.")
    return TextEncoder.from_pretrained(told.language_model.name)


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
