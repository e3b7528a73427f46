"""The bridge through a pretrained language model.

Bottleneck features become tokens, pass the last blocks of a language model, and are added back through a gate
that starts at zero. Pang et al. 2024, "Frozen Transformers in Language Models Are Effective Visual Encoder
Layers".
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from lmseg_core.errors import ModelError


class Gain(nn.Module):
    """A learned factor. A module and not a bare parameter, so that adapters can list it among what they
    save."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.weight = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class LanguageBridge(nn.Module):
    """Bottleneck features through language-model blocks and back: (B, w, *S) -> (B, w, *S).

    At the start the gate is zero and the bridge returns its input unchanged. The blocks are called directly,
    never through the model, whose embeddings would limit the number of tokens, and attend in both directions.
    """

    def __init__(self, width: int, lm_config: dict[str, Any], blocks: int) -> None:
        super().__init__()
        settings = AutoConfig.for_model(**lm_config)
        model: PreTrainedModel = AutoModel.from_config(settings)  # type: ignore[no-untyped-call]
        hidden = int(settings.hidden_size)
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, hidden)
        self.scale = Gain(1, 1.0)
        self.blocks = nn.ModuleList(last_blocks(model, blocks))
        self.rotary: nn.Module | None = getattr(model, "rotary_emb", None)  # Llama and its relatives
        self.leave = nn.Linear(hidden, width)
        self.gate = Gain(width, 0.0)

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = features.flatten(2).transpose(1, 2)  # (B, w, *S) -> (B, N, w)
        position = sincos_position(tokens.shape[-1], features.shape[2:], features.device)  # (N, w)
        hidden = self.scale(self.enter(self.norm(tokens) + position.to(tokens.dtype)))  # (B, N, w) -> (B, N, h)
        hidden = self._through_blocks(hidden)
        tokens = tokens + self.gate(self.leave(hidden))  # (B, N, h) -> (B, N, w)
        return tokens.transpose(1, 2).reshape(features.shape)  # (B, N, w) -> (B, w, *S)

    def _through_blocks(self, hidden: Tensor) -> Tensor:
        count = hidden.shape[1]
        # A mask of zeros lets every token see every other; with no mask at all, causal blocks apply their
        # own.
        context: dict[str, Any] = {"attention_mask": hidden.new_zeros(1, 1, 1, count)}
        if self.rotary is not None:
            order = torch.arange(count, device=hidden.device)[None]  # (1, N)
            context |= {"position_ids": order, "position_embeddings": self.rotary(hidden, order)}
        for block in self.blocks:
            out = block(hidden, **context)
            hidden = out[0] if isinstance(out, tuple) else out  # older transformers return a tuple
        return hidden

    def load_pretrained(self, name_or_path: str) -> None:
        """Copy the weights of the last blocks from a pretrained language model, on the hub or in a folder."""
        model = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
        for mine, theirs in zip(self.blocks, last_blocks(model, len(self.blocks)), strict=True):
            mine.load_state_dict(theirs.state_dict())


def last_blocks(model: PreTrainedModel, count: int) -> list[nn.Module]:
    """Return the last `count` transformer blocks of a BERT, GPT-2 or Llama-like model."""
    for path in ("encoder.layer", "h", "layers"):
        try:
            found = list(cast(nn.ModuleList, model.get_submodule(path)))
        except AttributeError:
            continue
        if not 1 <= count <= len(found):
            raise ModelError(
                f"config.json asks for {count} language-model blocks; {type(model).__name__} has "
                f"{len(found)}. Set lm_blocks between 1 and {len(found)}."
            )
        return found[-count:]
    raise ModelError(
        f"config.json has lm_config of {type(model).__name__}, whose blocks are not known; use a BERT, "
        "GPT-2, Llama, Qwen or SmolLM configuration."
    )


def sincos_position(width: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Return the N-d sin-cos position of every cell of a grid: (N, width) float32, N = product of `shape`.

    Each axis owns an equal share of the channels, half sine and half cosine (Vaswani et al. 2017); channels
    that do not divide stay zero.
    """
    share = width // (2 * len(shape))
    rate = torch.exp(torch.arange(share, device=device) * (-math.log(10_000.0) / max(share, 1)))  # (share,)
    parts = []
    for axis, size in enumerate(shape):
        angle = torch.arange(size, device=device)[:, None] * rate  # (size, share)
        wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (size, 2 share)
        view = [1] * len(shape) + [2 * share]
        view[axis] = size
        parts.append(wave.view(view).expand(*shape, 2 * share))  # (size, 2 share) -> (*S, 2 share)
    position = torch.cat(parts, dim=-1).flatten(0, -2)  # (*S, 2 share ndim) -> (N, 2 share ndim)
    return nn.functional.pad(position, (0, width - position.shape[1]))  # -> (N, width)
