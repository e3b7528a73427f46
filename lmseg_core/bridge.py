"""The bridge at the bottleneck: features become tokens, pass blocks, and are added back through a gate.

The gate starts at zero. Pang et al. 2024, "Frozen Transformers in Language Models Are Effective Visual Encoder
Layers".
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

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


class Tokens(nn.Module):
    """Learned tokens (Li & Liang 2021, at the input of the blocks): batch size -> (B, count, h)."""

    def __init__(self, count: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, hidden) * 0.02)

    def forward(self, batch: int) -> Tensor:
        return self.weight.expand(batch, -1, -1)  # (count, h) -> (B, count, h)


class MLPBlock(nn.Module):
    """A residual MLP, token by token, with the 12 h^2 weights of a transformer block: (B, N, h) -> (B, N, h)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 6 * hidden)
        self.act = nn.GELU()
        self.down = nn.Linear(6 * hidden, hidden)

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        """Mix channels; what a transformer block is told besides, masks and positions, is not used."""
        return cast(Tensor, hidden + self.down(self.act(self.up(self.norm(hidden)))))


class Bridge(nn.Module):
    """Bottleneck features through `blocks` and back: (B, w, *S), context (B, T, c) or None -> (B, w, *S).

    At the start the gate is zero and the bridge returns its input unchanged. Blocks of a language model are called
    directly, never through the model, whose embeddings would limit the number of tokens, and attend in both
    directions. Raises ModelError where context is given that the bridge does not take.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        blocks: Sequence[nn.Module],
        rotary: nn.Module | None = None,
        prefix: int = 0,
        context_size: int = 0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, hidden)
        self.scale = Gain(1, 1.0)
        self.prefix = Tokens(prefix, hidden) if prefix else None
        self.context = (
            nn.Sequential(nn.LayerNorm(context_size), nn.Linear(context_size, hidden)) if context_size else None
        )
        self.context_size = context_size
        self.blocks = nn.ModuleList(blocks)
        self.rotary = rotary  # of Llama and its relatives
        # Gemma 3 has positions of their own for its local and its global blocks.
        self.kinds: list[str | None] = [
            getattr(getattr(block, "self_attn", None), "layer_type", None) if hasattr(rotary, "layer_types") else None
            for block in blocks
        ]
        self.leave = nn.Linear(hidden, width)
        self.gate = Gain(width, 0.0)
        # What allocates the ranks of AdaLoRA. In a tuple, because it holds the blocks as a module of its own.
        self.allocator: tuple[Any, ...] = ()

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        tokens: Tensor = features.flatten(2).transpose(1, 2)  # (B, w, *S) -> (B, N, w)
        hidden = self._enter(tokens, features.shape[2:])
        beside = self._beside(hidden.shape[0], context)  # len() would fix the batch of an export
        hidden = self._through_blocks(torch.cat([*beside, hidden], dim=1))  # (B, P + T + N, h)
        hidden = hidden[:, -tokens.shape[1] :]  # (B, P + T + N, h) -> (B, N, h)
        tokens = tokens + self.gate(self.leave(hidden))  # (B, N, h) -> (B, N, w)
        return tokens.transpose(1, 2).reshape(features.shape)  # (B, N, w) -> (B, w, *S)

    def train(self, mode: bool = True) -> "Bridge":
        """Switch between training and prediction; blocks of which nothing is trained have no dropout in either."""
        super().train(mode)
        for block in self.blocks:
            if mode and not any(weight.requires_grad for weight in block.parameters()):
                for part in block.children():  # the block itself keeps its mode, which gradient checkpointing asks for
                    part.train(False)
        return self

    @torch.no_grad()
    def spread(self) -> float:
        """Return the standard deviation of the tokens of a random image."""
        noise = torch.randn(1, 16 * 16, self.enter.in_features, generator=torch.Generator().manual_seed(0))
        return float(self._enter(noise.to(self.enter.weight), torch.Size((16, 16))).std())

    @torch.no_grad()
    def match(self, spread: float) -> None:
        """Give the tokens of the image, of a context and of the prefix this standard deviation, in place."""
        self.scale.weight.mul_(spread / self.spread())
        if self.context is not None:  # its norm gives every channel a variance of 1
            weight = cast(nn.Linear, self.context[1]).weight
            weight.mul_(spread / weight.square().sum(1).mean().sqrt())
        self.match_prefix()

    @torch.no_grad()
    def match_prefix(self) -> None:
        """Give the learned tokens, where there are some, the standard deviation of the image's, in place."""
        if self.prefix is not None:
            self.prefix.weight.mul_(self.spread() / self.prefix.weight.square().mean().sqrt())

    def _enter(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        position = sincos_position(tokens.shape[-1], shape, tokens.device)  # (N, w)
        return cast(Tensor, self.scale(self.enter(self.norm(tokens) + position.to(tokens.dtype))))  # -> (B, N, h)

    def _beside(self, batch: int, context: Tensor | None) -> list[Tensor]:
        beside = [self.prefix(batch)] if self.prefix is not None else []
        if context is None:
            return beside
        if self.context is None or context.shape[-1] != self.context_size:
            raise ModelError(
                f"context has tokens of size {context.shape[-1]}, which this network does not take; "
                "set context_size in its config.json to that size and train it, or leave the context out."
            )
        return [*beside, self.context(context).expand(batch, -1, -1)]  # (B or 1, T, c) -> (B, T, h)

    def _through_blocks(self, hidden: Tensor) -> Tensor:
        count = hidden.shape[1]
        # A mask of zeros lets every token see every other; with no mask at all, causal blocks apply their
        # own.
        options: dict[str, Any] = {"attention_mask": hidden.new_zeros(1, 1, 1, count)}
        turns: dict[str | None, Any] = {}
        if self.rotary is not None:
            order = torch.arange(count, device=hidden.device)[None]  # (1, N)
            options["position_ids"] = order
            turns = {kind: self.rotary(hidden, order, *filter(None, [kind])) for kind in dict.fromkeys(self.kinds)}
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            out = block(hidden, **options, **({"position_embeddings": turns[kind]} if turns else {}))
            hidden = out[0] if isinstance(out, tuple) else out  # older transformers return a tuple
        return hidden


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
