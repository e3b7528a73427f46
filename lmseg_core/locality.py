"""How far a network looks, and which of its layers look everywhere.

A tile's answer is that of the whole image where the network looks no further than the tile goes. Both are read off
gradients: what an output pixel's gradient with respect to the input does not reach cannot change it.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmseg_core.predictor import Predictor

_PROBES = 3  # ReLU lets each input through elsewhere
_SHARE = 0.99
_WHOLE = 0.9  # of an axis; a global maximum has its gradient in one place a channel, seldom at the very ends
_CELLS = 64  # of the coarsest stage: more than its local layers reach together
_FEW = 4  # positions that any layer may cover


@dataclass(frozen=True)
class Locality:
    """What a pixel's answer depends on.

    Attributes:
        extent: pixels to either side, an axis each, beyond which no input counts at all.
        radius: pixels to either side that hold 99 % of the absolute gradient.
        everywhere: names of the innermost layers whose output in the middle depends on the whole of their input.
    """

    extent: tuple[int, ...]
    radius: tuple[int, ...]
    everywhere: tuple[str, ...]


def stride_of(predictor: Predictor) -> int:
    """Input pixels of a position of the network's coarsest stage: moved by fewer, an image gets another answer."""
    return int(predictor._network.config.multiple)


def locality_of(predictor: Predictor, tile: Sequence[int]) -> Locality:
    """The locality of a predictor's network in tiles of this size, in the network's order of axes."""
    network = predictor._network  # the one that predicts, adapters merged, on its device
    config = network.config
    return measure_locality(network, (config.in_channels, *tile), config.multiple)


def measure_locality(network: nn.Module, shape: Sequence[int], multiple: int = 1) -> Locality:
    """The locality of a network in evaluation mode: (1, C, *S) -> (1, K, *S), or an output with such `logits`.

    Args:
        shape: (C, *S) of the input, in float32 noise. Where the extent is half of it, the network looks further.
        multiple: input pixels of a position of the coarsest stage.
    """
    channels, *tile = shape
    # A copy, for the network may predict meanwhile. Channels first, for torch 2.13 puts gradients of batch norms in the
    # wrong place where channels are last and the batch is one.
    probed: Any = copy.deepcopy(network).eval().requires_grad_(False)
    probed = probed.to(memory_format=torch.contiguous_format)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def noise(*sides: int) -> Tensor:
        return torch.randn(1, channels, *sides, generator=generator).to(device).requires_grad_()

    with torch.inference_mode(False), torch.enable_grad():
        gradients = [_input_gradient(probed, noise(*tile), generator) for _ in range(_PROBES)]
        # Long on one axis and thin on the others, which is little work in 3D too. A second cell across in 2D, for
        # backbones that keep their channels last.
        thin = [multiple * (2 if len(tile) == 2 else 1)] * (len(tile) - 1)
        everywhere = _everywhere(probed, noise(max(_CELLS * multiple, tile[0]), *thin), generator)
    reach = [_reach(torch.stack(gradients).sum(0), axis) for axis in range(len(tile))]
    return Locality(tuple(r[0] for r in reach), tuple(r[1] for r in reach), everywhere)


def _input_gradient(network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """The absolute gradient (*S) of the pixel in the middle with respect to the input, over all channels."""
    (gradient,) = torch.autograd.grad(_middle(_first(network(x)), generator), x)
    return gradient.abs().sum((0, 1)).cpu()


def _reach(gradient: Tensor, axis: int) -> tuple[int, int]:
    """How far from the middle of an axis there is any gradient, and 99 % of it."""
    profile = gradient.double().sum([a for a in range(gradient.ndim) if a != axis])
    away = (torch.arange(len(profile)) - len(profile) // 2).abs()
    held = torch.zeros(len(profile) // 2 + 1, dtype=torch.float64).index_add_(0, away, profile).cumsum(0)
    extent = int(away[profile > 0].max()) if bool((profile > 0).any()) else 0
    return extent, int(torch.searchsorted(held, _SHARE * held[-1]))


def _everywhere(network: nn.Module, strip: Tensor, generator: torch.Generator) -> tuple[str, ...]:
    calls: list[tuple[str, list[Tensor], Tensor]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            tensors = [t for t in _tensors([given, named]) if t.requires_grad and t.ndim >= 3]
            if tensors:
                calls.append((name, tensors, _first(out)))

        return hook

    hooks = []
    for name, module in network.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(_apart, with_kwargs=True))
            hooks.append(module.register_forward_hook(note(name), with_kwargs=True))
    try:
        network(strip)
    finally:
        for hook in hooks:
            hook.remove()
    found = [name for name, inputs, out in calls if _depends_on_all(inputs, out, generator)]
    inner = [n for n in dict.fromkeys(found) if not any(other.startswith(f"{n}.") for other in found)]
    return tuple(inner)


def _apart(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """Inputs under names of their own: a skip is not to answer for what a coarser input, made of it, does."""
    return _aliases(given), _aliases(named)


def _aliases(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.view_as(values) if values.requires_grad else values
    if type(values) in (list, tuple):
        return type(values)(map(_aliases, values))
    if type(values) is dict:
        return {key: _aliases(value) for key, value in values.items()}
    return values


def _depends_on_all(inputs: list[Tensor], out: Tensor, generator: torch.Generator) -> bool:
    if not out.requires_grad:
        return False
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        _middle(out, generator), inputs, retain_graph=True, allow_unused=True
    )
    for gradient in gradients:
        if gradient is None:
            continue
        # (B, C, *S), the long axis first, or tokens (B, N, h); a window's tokens are a batch item each.
        axis = 1 if gradient.ndim == 3 else 2
        touched = gradient.abs().sum([a for a in range(gradient.ndim) if a not in (0, axis)]) > 0
        places = touched.shape[1]
        if places <= _FEW or not bool(touched.any(1).all()):
            continue
        where = touched.any(0).nonzero()
        if int(where.max() - where.min()) + 1 >= _WHOLE * places:
            return True
    return False


def _middle(out: Tensor, generator: torch.Generator) -> Tensor:
    """A random mixture of the channels of the output's middle position."""
    for axis in (0, 1) if out.ndim == 3 else (0, *range(2, out.ndim)):
        out = out.narrow(axis, out.shape[axis] // 2, 1)
    return (out * torch.randn(out.shape, generator=generator).to(out.device)).sum()


def _first(out: Any) -> Tensor:
    return next(_tensors(out))


def _tensors(values: Any) -> Iterator[Tensor]:
    """The floating tensors in lists, tuples and dictionaries, in order; transformers' outputs are dictionaries."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
        return
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return
    for value in values:
        yield from _tensors(value)
