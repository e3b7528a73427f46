"""The blocks of a language model, taken out of it for the bridge."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from lmseg_core.bridge import Bridge
from lmseg_core.errors import ModelError, first_line

_HINT = "use a BERT, GPT-2, Llama, Qwen, SmolLM or Gemma 3 configuration."
# Where the blocks are, what a block of that family holds, and whether the model turns positions into rotations.
_FAMILIES = (
    ("encoder.layer", "attention.self.query", False),  # BERT, RoBERTa
    ("h", "attn.c_attn", False),  # GPT-2
    ("layers", "self_attn.o_proj", True),  # Llama, Qwen, SmolLM, Gemma 3
)


class LanguageBlocks(NamedTuple):
    """Blocks of a language model, its rotary embedding where it has one, and the size of its tokens."""

    blocks: list[nn.Module]
    rotary: nn.Module | None
    hidden: int


def language_blocks(lm_config: dict[str, Any], which: int | Sequence[int]) -> LanguageBlocks:
    """Return new blocks of the language model of a configuration: the last `which`, or those of these indices.

    Raises ModelError where the configuration is none, its family is not known, or it has fewer blocks.
    """
    try:
        settings = AutoConfig.for_model(**lm_config)
        model: PreTrainedModel = AutoModel.from_config(settings)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(f"config.json has an lm_config that transformers refuses ({reason}); {_HINT}") from None
    blocks, rotary = _find(model, which)
    return LanguageBlocks(blocks, rotary, int(settings.hidden_size))


def load_language(bridge: Bridge, name_or_path: str, which: int | Sequence[int], pretrained: bool = True) -> None:
    """Give a bridge the weights of these blocks of a language model, and tokens of the scale that they know, in place.

    `name_or_path` is a hub name or a folder; with pretrained=False its configuration alone is read, and the blocks keep
    their random weights. Raises ModelError where the blocks cannot be called as the bridge does.
    """
    if pretrained:
        model = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
        for mine, theirs in zip(bridge.blocks, _find(model, which)[0], strict=True):
            mine.load_state_dict(theirs.state_dict())
    else:
        with torch.random.fork_rng(devices=[]):  # what is drawn later does not depend on the size of the model
            model = AutoModel.from_config(AutoConfig.from_pretrained(name_or_path))  # type: ignore[no-untyped-call]
    training = bridge.training
    try:
        bridge.match(_spread(model, which))
        bridge.eval()(torch.zeros(1, bridge.enter.in_features, 2, 2))
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        reason = first_line(error)
        raise ModelError(f"{name_or_path} has blocks that cannot be used alone ({reason}); {_HINT}") from None
    finally:
        bridge.train(training)


@torch.no_grad()
def _spread(model: PreTrainedModel, which: int | Sequence[int]) -> float:
    """Return the standard deviation of a token where it enters the first of these blocks, of random words."""
    config: Any = model.config
    first = config.num_hidden_layers - which if isinstance(which, int) else which[0]
    length = min(32, config.max_position_embeddings)
    words = torch.randint(config.vocab_size, (4, length), generator=torch.Generator().manual_seed(0))
    nn.Module.eval(model)
    entering = model(input_ids=words, output_hidden_states=True).hidden_states[first]  # (4, length, h)
    # The median: some language models keep one token, often the first, a hundred times as large as the others.
    return float(entering.float().std(-1).median())


def _find(model: PreTrainedModel, which: int | Sequence[int]) -> tuple[list[nn.Module], nn.Module | None]:
    for path, mark, turns in _FAMILIES:
        try:
            found = list(cast(nn.ModuleList, model.get_submodule(path)))
            found[0].get_submodule(mark)
            rotary = model.get_submodule("rotary_emb") if turns else None
        except (AttributeError, IndexError):
            continue
        return _select(found, which, type(model).__name__), rotary
    raise ModelError(f"config.json has lm_config of {type(model).__name__}, whose blocks are not known; {_HINT}")


def _select(found: list[nn.Module], which: int | Sequence[int], name: str) -> list[nn.Module]:
    if isinstance(which, int):
        if not 1 <= which <= len(found):
            raise ModelError(
                f"config.json asks for {which} language-model blocks; {name} has {len(found)}. Set lm_blocks "
                f"between 1 and {len(found)}."
            )
        return found[-which:]
    if not which or sorted(set(which)) != list(which) or not 0 <= which[0] <= which[-1] < len(found):
        raise ModelError(
            f"config.json asks for the language-model blocks {list(which)}; give rising indices between 0 and "
            f"{len(found) - 1}, as {name} has."
        )
    return [found[index] for index in which]
