"""The convolutional encoder."""

from itertools import pairwise

from torch import Tensor, nn

from lmseg_core.blocks import CONV, Residual


class Encoder(nn.Module):
    """Residual stages, each at half the resolution of the one before: (B, C, *S) -> [(B, w_i, *S/2^i)].

    Spatial sizes must be multiples of 2**(stages - 1); `LMSegForSemanticSegmentation` pads to that.
    """

    def __init__(self, ndim: int, in_channels: int, widths: list[int], blocks: int) -> None:
        super().__init__()
        self.stem = CONV[ndim](in_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(ndim, width, width) for _ in range(blocks))) for width in widths
        )
        self.downs = nn.ModuleList(CONV[ndim](fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stages[0](self.stem(x))]  # (B, C, *S) -> (B, w_0, *S)
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            features.append(stage(down(features[-1])))  # (B, w_i, *S/2^i) -> (B, w_i+1, *S/2^(i+1))
        return features
