"""The convolution blocks that encoder and decoder share, for any number of spatial axes."""

from typing import cast

from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
# Batch norm uses fixed statistics at inference. Group and instance norm would look at the tile and leave
# seams.
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Residual(nn.Module):
    """Two 3-wide convolutions with a shortcut (He et al. 2016): (B, in, *S) -> (B, out, *S)."""

    def __init__(self, ndim: int, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv1 = CONV[ndim](in_width, out_width, 3, padding=1, bias=False)
        self.norm1 = NORM[ndim](out_width)
        self.conv2 = CONV[ndim](out_width, out_width, 3, padding=1, bias=False)
        self.norm2 = NORM[ndim](out_width)
        self.shortcut = nn.Identity() if in_width == out_width else CONV[ndim](in_width, out_width, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return cast(Tensor, self.act(y + self.shortcut(x)))
