"""The optimiser and its schedule."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lmseg_core.training.settings import OptimiseSettings


def optimiser(parts: Mapping[str, nn.Module], settings: OptimiseSettings) -> torch.optim.Optimizer:
    """Return AdamW or SGD over the weights that train, with a learning rate a part.

    Biases and the weights of norm layers are not decayed (Loshchilov and Hutter 2019).
    """
    groups = []
    for name, part in parts.items():
        weights = [weight for weight in part.parameters() if weight.requires_grad]
        rate = settings.rates.get(name, settings.rate)  # type: ignore[call-overload]  # a part's name, of any kind
        for chosen, decay in (
            ([weight for weight in weights if weight.ndim > 1], settings.weight_decay),
            ([weight for weight in weights if weight.ndim <= 1], 0.0),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.rate)


def schedule(chosen: torch.optim.Optimizer, settings: OptimiseSettings) -> LambdaLR:
    """Return the learning rate by step: a linear rise, then a cosine, (1 - t)^0.9 or nothing."""
    warm = round(settings.warmup * settings.steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = min((step - warm) / max(settings.steps - warm, 1), 1.0)
        if settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return float((1 - done) ** 0.9) if settings.schedule == "poly" else 1.0

    return LambdaLR(chosen, factor)
