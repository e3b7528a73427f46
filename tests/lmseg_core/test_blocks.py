"""The shared blocks: faster where they only predict, and the same."""

import pytest
import torch
from torch import nn

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
