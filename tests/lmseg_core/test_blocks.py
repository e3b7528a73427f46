"""The shared blocks: faster where they only predict, and the same."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lmseg_core import LMSegForSemanticSegmentation
from lmseg_core.blocks import Conv3d, Residual


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (1, 1, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_3d_convolution_gives_what_torchs_own_does(kernel: int, stride: int, padding: int, bias: bool) -> None:
    torch.manual_seed(0)
    mine = Conv3d(4, 6, kernel, stride=stride, padding=padding, bias=bias)
    theirs = nn.Conv3d(4, 6, kernel, stride=stride, padding=padding, bias=bias)
    theirs.load_state_dict(mine.state_dict())
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = torch.randn(1, 4, 8, 10, 12).contiguous(memory_format=layout)
        with torch.inference_mode():
            assert torch.allclose(mine(x), theirs(x), atol=1e-6)
        x.requires_grad_()
        assert torch.equal(mine(x), theirs(x))


@pytest.mark.parametrize("ndim", [2, 3])
def test_norms_fold_into_the_convolutions(ndim: int) -> None:
    torch.manual_seed(0)
    block = Residual(ndim, 3, 5)
    x = torch.randn(4, 3, *(8,) * ndim)
    block(x)  # statistics of their own
    for norm in (block.norm1, block.norm2):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    block.eval()
    with torch.inference_mode():
        before = block(x)
        block.fold()
        assert torch.allclose(block(x), before, atol=1e-5)
    assert not any("Norm" in type(module).__name__ for module in block.modules())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(
    ndim: int, reentrant: bool, make_network: Callable[..., LMSegForSemanticSegmentation]
) -> None:
    x = torch.randn(2, 2, *(16,) * ndim, generator=torch.Generator().manual_seed(1)).requires_grad_()
    networks = [make_network(ndim).train() for _ in range(2)]
    networks[1].gradient_checkpointing_enable({"use_reentrant": reentrant})
    for network in networks:
        for _ in range(2):
            network(x).logits.square().mean().backward()
    plain, frugal = networks
    for (name, mine), (_, theirs) in zip(plain.named_buffers(), frugal.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    for (name, mine), (_, theirs) in zip(plain.named_parameters(), frugal.named_parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name
