"""The convolutional encoder."""

from itertools import pairwise

from torch import Tensor, nn

from lmseg_core.blocks import CONV, Residual, Stages


class Encoder(Stages):
    """Residual stages, each at half the resolution of the one before: (B, C, *S) -> [(B, w_i, *S/(stride 2^i))].

    Spatial sizes must be multiples of stride * 2**(stages - 1); `LMSegForSemanticSegmentation` pads to that.
    """

    def __init__(self, ndim: int, in_channels: int, widths: list[int], blocks: int, stride: int = 1) -> None:
        super().__init__()
        # Symmetric about each cell it writes, so that interpolating the logits back moves nothing.
        kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2)
        self.stem = CONV[ndim](in_channels, widths[0], kernel, stride=stride, padding=padding)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(ndim, width, width) for _ in range(blocks))) for width in widths
        )
        self.downs = nn.ModuleList(CONV[ndim](fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.run(self.stages[0], self.stem(x))]  # (B, C, *S) -> (B, w_0, *S/stride)
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            x = down(features[-1])  # (B, w_i, *S/2^i) -> (B, w_i+1, *S/2^(i+1))
            features.append(self.run(stage, x))
        return features
