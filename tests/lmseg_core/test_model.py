"""The network in two and three dimensions, and as a transformers model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from lmseg_core import LMSegForSemanticSegmentation

Maker = Callable[..., LMSegForSemanticSegmentation]


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (1, 5), (8, 12, 16), (7, 9, 10)])
def test_logits_have_the_size_of_the_input(size: tuple[int, ...], make_network: Maker) -> None:
    output = make_network(ndim=len(size))(torch.randn(2, 2, *size))
    assert output.logits.shape == (2, 3, *size)
    assert output.loss is None
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize("lm", [None, "bert", "gpt2", "llama"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_saving_and_loading_changes_no_bit(
    tmp_path: Path, ndim: int, lm: str | None, make_network: Maker, language_models: dict
) -> None:
    network = make_network(ndim, language_models[lm] if lm else None)
    if network.bridge is not None:
        torch.nn.init.normal_(network.bridge.gate.weight)
    x = torch.randn(1, 2, *(12,) * ndim)
    network.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert isinstance(loaded, LMSegForSemanticSegmentation)
    assert torch.equal(loaded.eval()(x).logits, network(x).logits)


def test_loss_ignores_255_and_falls_when_trained(make_network: Maker) -> None:
    network = make_network().train()
    x = torch.randn(2, 2, 16, 16)
    labels = (x[:, 0] > 0).long()
    labels[:, :4] = 255
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = network(x, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert network(x, labels=torch.full_like(labels, 255)).loss.item() == 0.0


def test_a_far_pixel_does_not_change_a_score(make_network: Maker) -> None:
    # A norm layer that looks at the tile would let every pixel change every other one, and leave seams.
    network = make_network()
    x = torch.randn(1, 2, 16, 128)
    y = x.clone()
    y[..., -8:] += 10.0
    before, after = network(x).logits, network(y).logits
    assert torch.allclose(before[..., :40], after[..., :40], atol=1e-6)
    assert not torch.allclose(before[..., -8:], after[..., -8:], atol=1e-2)
