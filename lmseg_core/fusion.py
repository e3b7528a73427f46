"""Several sources in one input: instruments or sequences, of which some may be missing."""

from typing import cast

import torch
from torch import Tensor, nn

from lmseg_core.backbone import BackboneEncoder
from lmseg_core.blocks import CONV
from lmseg_core.config import LMSegConfig
from lmseg_core.encoder import Encoder
from lmseg_core.errors import ModelError


class SeparateEncoders(nn.Module):
    """An encoder a source, averaged over those that are present (Havaei et al. 2016, HeMIS).

    (B, C, *S) and present (B, n) bool -> [(B, w_i, *S/2^i)]; each source's features pass a 1x1 convolution of their
    own first. Where no source is present the features are zero.
    """

    def __init__(self, config: LMSegConfig) -> None:
        super().__init__()
        assert config.sources is not None
        self.sources = config.sources
        self.encoders = nn.ModuleList(_encoder(config, channels) for channels in self.sources)
        self.mixes = nn.ModuleList(
            nn.ModuleList(CONV[config.ndim](width, width, 1) for width in config.widths) for _ in self.sources
        )

    def forward(self, x: Tensor, present: Tensor) -> list[Tensor]:
        weights = present.to(x.dtype) / present.sum(1, keepdim=True).clamp_min(1)  # (B, n)
        fused: list[Tensor] = []
        for index, values in enumerate(torch.split(x, self.sources, dim=1)):  # (B, C, *S) -> n times (B, c_s, *S)
            features = self.encoders[index](values)
            weight = weights[:, index].view(-1, *[1] * (x.ndim - 1))  # (B, n) -> (B, 1, 1, 1)
            mixed = [weight * mix(f) for mix, f in zip(cast(nn.ModuleList, self.mixes[index]), features, strict=True)]
            fused = [a + b for a, b in zip(fused, mixed, strict=True)] if fused else mixed
        return fused


def make_encoder(config: LMSegConfig) -> Encoder | BackboneEncoder | SeparateEncoders:
    """Return the encoder of a configuration."""
    return SeparateEncoders(config) if config.fusion == "separate" else _encoder(config, config.in_channels)


def fill_missing(x: Tensor, sources: list[int], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `x` (B, C, *S) with zeros where a source is missing, and which are present, (B, n) bool.

    A source is missing in an item where `mask` (B, n) says so, or where all its values are NaN.
    """
    if mask is not None and tuple(mask.shape) != (len(x), len(sources)):
        raise ModelError(f"source_mask has shape {tuple(mask.shape)}; give {(len(x), len(sources))}, one a source.")
    parts = torch.split(x, sources, dim=1)
    present = torch.stack([~part.flatten(1).isnan().all(1) for part in parts], dim=1)  # -> (B, n)
    if mask is not None:
        present = present & mask.to(present)
    kept = present.repeat_interleave(torch.tensor(sources, device=x.device), dim=1)  # (B, n) -> (B, C)
    return torch.where(kept.view(*kept.shape, *[1] * (x.ndim - 2)), x, 0.0), present


def _encoder(config: LMSegConfig, channels: int) -> Encoder | BackboneEncoder:
    if config.backbone_config is not None:
        return BackboneEncoder(channels, config.widths, config.blocks, config.backbone_config)
    return Encoder(config.ndim, channels, config.widths, config.blocks, config.stride)
