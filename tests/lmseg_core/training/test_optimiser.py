"""Learning rates by part and by step."""

import math
from typing import Any

import pytest
import torch

from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation
from lmseg_core.training.optimiser import optimiser, schedule
from lmseg_core.training.settings import OptimiseSettings


def make(**told: Any) -> tuple[torch.optim.Optimizer, OptimiseSettings, LMSegForSemanticSegmentation]:
    network = LMSegForSemanticSegmentation(LMSegConfig(widths=[4, 8], id2label={0: "a", 1: "b"}))
    settings = OptimiseSettings(**told)
    return optimiser(network.parts(), settings), settings, network


def test_each_part_has_its_rate_and_every_weight_is_there_once() -> None:
    chosen, _, network = make(rate=0.1, rates={"encoder": 0.01}, weight_decay=0.3)
    groups = {id(weight): group for group in chosen.param_groups for weight in group["params"]}
    assert len(groups) == sum(len(group["params"]) for group in chosen.param_groups) == len(list(network.parameters()))
    for part, module in network.parts().items():
        for weight in module.parameters():
            assert groups[id(weight)]["lr"] == (0.01 if part == "encoder" else 0.1)
            assert groups[id(weight)]["weight_decay"] == (0.3 if weight.ndim > 1 else 0.0)


def test_what_is_frozen_is_left_out() -> None:
    network = LMSegForSemanticSegmentation(LMSegConfig(widths=[4, 8], id2label={0: "a", 1: "b"}))
    network.encoder.requires_grad_(False)
    chosen = optimiser(network.parts(), OptimiseSettings(optimiser="sgd"))
    count = sum(len(group["params"]) for group in chosen.param_groups)
    assert count == sum(weight.requires_grad for weight in network.parameters())
    assert isinstance(chosen, torch.optim.SGD)


@pytest.mark.parametrize(("name", "at_half"), [("cosine", 0.5), ("poly", 0.5**0.9), ("constant", 1.0)])
def test_the_rate_rises_then_falls(name: str, at_half: float) -> None:
    chosen, settings, _ = make(rate=1.0, steps=110, warmup=10 / 110, schedule=name)
    rates = []
    plan = schedule(chosen, settings)
    for _ in range(110):
        rates.append(chosen.param_groups[0]["lr"])
        chosen.step()
        plan.step()
    assert rates[:11] == pytest.approx([*(i / 10 for i in range(1, 11)), 1.0])
    assert rates[60] == pytest.approx(at_half)
    last = {"cosine": 0.5 * (1 + math.cos(math.pi * 0.99)), "poly": 0.01**0.9, "constant": 1.0}
    assert rates[-1] == pytest.approx(last[name])
