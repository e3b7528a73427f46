"""The network that a training starts from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from lmseg_core import bundled
from lmseg_core.adapters import Adapter, adapt
from lmseg_core.config import LMSegConfig
from lmseg_core.errors import ModelError, first_line
from lmseg_core.language import load_language
from lmseg_core.model import LMSegForSemanticSegmentation
from lmseg_core.text import TextEncoder
from lmseg_core.training.settings import LanguageSettings, ModelSettings, Settings


def build(settings: Settings, sources: Sequence[int] = ()) -> LMSegForSemanticSegmentation:
    """Return a new network, or the one to go on from, with its adapters in place and its frozen parts frozen.

    sources: bands of each source of the images, where there are several. Raises ModelError for what `model` names and
    cannot be had.
    """
    told = settings.model
    try:
        network = _new(told, settings.data.window, sources) if told.start is None else _started(told)
    except ModelError:
        raise
    except (OSError, TypeError, ValueError) as error:  # what transformers says of names, and Python of config
        reason = first_line(error)
        raise ModelError(f"model cannot be built ({reason}); mend its names, or its config.") from None
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


def _new(told: ModelSettings, window: list[int], sources: Sequence[int]) -> LMSegForSemanticSegmentation:
    texts = None if told.text_head is None else TextEncoder.from_pretrained(told.text_head)
    fields: dict[str, Any] = {
        "in_channels": len(told.bands),
        "bands": told.bands,
        "tile": told.tile or window,
        **_class_fields(told),
        **({} if texts is None else {"head": "text", "text_size": texts.size}),
        **({} if told.language_model is None else _language_fields(told, told.language_model)),
        **({"sources": list(sources)} if sources else {}),
        **told.config,
    }
    try:
        config = LMSegConfig.preset(told.preset, ndim=told.ndim, **fields)
    except ModelError as error:
        # The configuration speaks of its file; here its values come from the settings.
        raise ModelError(str(error).replace("config.json has", "model.config has", 1)) from None
    network = (
        LMSegForSemanticSegmentation(config)
        if told.backbone is None
        else LMSegForSemanticSegmentation.with_backbone(config, told.backbone)
    )
    if told.language_model is not None:
        _load_language(network, told.language_model)
    if texts is not None:
        _name_classes(network, told, texts)
    _store_context(network, told)
    return network


def _started(told: ModelSettings) -> LMSegForSemanticSegmentation:
    assert told.start is not None
    folder = bundled.folder(told.start)
    config = LMSegConfig.from_pretrained(folder)
    fields: dict[str, Any] = {} if told.tile is None else {"tile": told.tile}
    if told.classes and config.head == "closed":
        fields |= _class_fields(told)
    config = LMSegConfig(**{**config.to_dict(), **fields})
    # Another number of classes gives the head another shape; it starts anew, the rest goes on.
    network: LMSegForSemanticSegmentation = LMSegForSemanticSegmentation.from_pretrained(
        folder, config=config, ignore_mismatched_sizes=True
    )
    nn.Module.to(network, torch.float32)
    if told.language_model is not None and config.bridge != "language":
        network = _with_language(network, told, told.language_model)
    if told.text_head is not None or (told.classes and config.head == "text"):
        if told.text_head is None or config.head != "text":
            raise ModelError(
                f'{told.start} has the head "{config.head}"; give text_head and classes where it is "text", and no '
                "text_head where it is not."
            )
        _name_classes(network, told, TextEncoder.from_pretrained(told.text_head))
    _store_context(network, told)
    return network


def _with_language(
    network: LMSegForSemanticSegmentation, told: ModelSettings, language: LanguageSettings
) -> LMSegForSemanticSegmentation:
    """Return a network with a language model that goes on from one without."""
    fields = {**network.config.to_dict(), "bridge": "language", **_language_fields(told, language)}
    fuller = LMSegForSemanticSegmentation(LMSegConfig(**fields))
    kept = {name: value for name, value in network.state_dict().items() if not name.startswith("bridge.")}
    fuller.load_state_dict(kept, strict=False)
    _load_language(fuller, language)
    return fuller


def _language_fields(told: ModelSettings, language: LanguageSettings) -> dict[str, Any]:
    shape = AutoConfig.from_pretrained(language.name)
    context = {} if told.context is None else {"context_size": shape.hidden_size}
    return {"lm_config": shape.to_diff_dict(), "lm_blocks": language.blocks, **context}


def _load_language(network: LMSegForSemanticSegmentation, language: LanguageSettings) -> None:
    assert network.bridge is not None
    load_language(network.bridge, language.name, language.blocks, language.pretrained)


def _name_classes(network: LMSegForSemanticSegmentation, told: ModelSettings, texts: TextEncoder) -> None:
    names = [entry.name for entry in told.classes]
    synonyms = {entry.name: entry.synonyms for entry in told.classes}
    network.set_classes(names, texts.classes(names, synonyms), _class_fields(told)["colours"])


def _store_context(network: LMSegForSemanticSegmentation, told: ModelSettings) -> None:
    """Have the language model at the bottleneck turn the context into the tokens that it will read."""
    if told.context is not None:
        if told.language_model is None:
            raise ModelError("model.context needs a language model that reads it; add model.language_model.")
        network.set_context(told.context, TextEncoder.from_pretrained(told.language_model.name).tokens(told.context))


def _class_fields(told: ModelSettings) -> dict[str, Any]:
    colours = [entry.colour for entry in told.classes]
    return {
        "id2label": {i: entry.name for i, entry in enumerate(told.classes)},
        "codes": [entry.code for entry in told.classes],
        "colours": colours if all(colours) else None,  # the settings allow all or none
    }


def _adapter(language: LanguageSettings, steps: int) -> Adapter:
    return Adapter(
        method=language.tune, rank=language.rank, alpha=language.alpha, dropout=language.dropout, total_steps=steps
    )


def count(network: nn.Module) -> tuple[int, int]:
    """Return how many weights train, and how many there are."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
