"""The U-Net decoder (Ronneberger et al. 2015)."""

import torch
from torch import Tensor, nn

from lmseg_core.blocks import CONV_TRANSPOSE, Residual


class UNetDecoder(nn.Module):
    """Upsample, join the skip, convolve, stage by stage: [(B, w_i, *S/2^i)] -> (B, w_0, *S)."""

    def __init__(self, ndim: int, widths: list[int]) -> None:
        super().__init__()
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))  # coarse to fine
        self.ups = nn.ModuleList(CONV_TRANSPOSE[ndim](coarse, fine, 2, stride=2) for coarse, fine in pairs)
        self.stages = nn.ModuleList(Residual(ndim, 2 * fine, fine) for _, fine in pairs)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for up, stage, skip in zip(self.ups, self.stages, features[-2::-1], strict=True):
            x = torch.cat([up(x), skip], dim=1)  # (B, w_i+1, *S/2^(i+1)) -> (B, 2 w_i, *S/2^i)
            x = stage(x)  # (B, 2 w_i, *S/2^i) -> (B, w_i, *S/2^i)
        return x
