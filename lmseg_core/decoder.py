"""The decoders: from features of every resolution to an embedding of each pixel."""

import torch
from torch import Tensor, nn

from lmseg_core.blocks import CONV, CONV_TRANSPOSE, Residual, Stages, resize


class UNetDecoder(Stages):
    """Upsample, join the skip, convolve, stage by stage (Ronneberger et al. 2015).

    [(B, w_i, *S/2^i)] -> the embeddings of all stages but the coarsest, finest first: [(B, widths[i], *S/2^i)].
    Takes the features off their list: the finest are a quarter of what a window needs, and not wanted after they are
    joined.
    """

    def __init__(self, ndim: int, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths[:-1]
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))  # coarse to fine
        self.ups = nn.ModuleList(CONV_TRANSPOSE[ndim](coarse, fine, 2, stride=2) for coarse, fine in pairs)
        self.stages = nn.ModuleList(Residual(ndim, 2 * fine, fine) for _, fine in pairs)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        embeddings = [features.pop()]
        for up, stage in zip(self.ups, self.stages, strict=True):
            x = torch.cat([up(embeddings[0]), features.pop()], dim=1)  # (B, w_i+1, *S/2^(i+1)) -> (B, 2 w_i, *S/2^i)
            embeddings.insert(0, self.run(stage, x))  # (B, 2 w_i, *S/2^i) -> (B, w_i, *S/2^i)
        return embeddings[:-1]


class FCNDecoder(nn.Module):
    """Project every feature to one width, interpolate, and sum (Long et al. 2015, FCN-8s).

    [(B, w_i, *S/2^i)] -> the sums of all stages but the coarsest, finest first: [(B, w_0, *S/2^i)].
    """

    def __init__(self, ndim: int, widths: list[int]) -> None:
        super().__init__()
        self.widths = [widths[0]] * (len(widths) - 1)
        self.scores = nn.ModuleList(CONV[ndim](width, widths[0], 1) for width in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        scores = [score(feature) for score, feature in zip(self.scores, features, strict=True)]  # -> (B, w_0, *S/2^i)
        sums = [scores[-1]]
        for score in scores[-2::-1]:
            sums.insert(0, score + resize(sums[0], score.shape[2:]))  # (B, w_0, *S/2^(i+1)) -> (B, w_0, *S/2^i)
        return sums[:-1]


DECODERS: dict[str, type[UNetDecoder] | type[FCNDecoder]] = {"unet": UNetDecoder, "fcn": FCNDecoder}
