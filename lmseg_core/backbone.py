"""Any transformers backbone in 2D as the encoder, with pretrained weights for any number of bands."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig

from lmseg_core.blocks import resize
from lmseg_core.encoder import Encoder
from lmseg_core.errors import ModelError, first_line

_FINE = 2  # stages of our own before those of the backbone, which begin at a quarter of the resolution
_LAYERS = 4  # of an isotropic transformer, evenly spaced, as its pyramid


class BackboneEncoder(nn.Module):
    """A light stem for full and half resolution, a backbone for the rest: (B, C, H, W) -> [(B, w_i, H/2^i, W/2^i)].

    The backbone's features are projected to the last `widths` and, where they lie on another grid, interpolated: a
    transformer of one resolution, such as DINOv2, becomes a pyramid of four of its layers (Li et al. 2022, ViTDet).
    H and W must be multiples of 2**(stages - 1). Raises ModelError on an unknown backbone, or where `widths` are not
    two more than its features.
    """

    def __init__(self, in_channels: int, widths: list[int], blocks: int, backbone_config: dict[str, Any]) -> None:
        super().__init__()
        settings = _settings(backbone_config, in_channels)
        self.backbone = _build(settings)
        channels: list[int] = list(cast(Any, self.backbone).channels)
        if len(widths) != len(channels) + _FINE:
            raise ModelError(
                f"config.json has {len(widths)} widths and a backbone with {len(channels)} features; give "
                f"{len(channels) + _FINE} widths: {_FINE} for the stem, then one a feature."
            )
        self.stem = Encoder(2, in_channels, widths[:_FINE], blocks)
        self.project = nn.ModuleList(
            nn.Conv2d(channel, width, 1) for channel, width in zip(channels, widths[_FINE:], strict=True)
        )
        self.patch = _patch(settings)

    def forward(self, x: Tensor) -> list[Tensor]:
        size = tuple(x.shape[2:])
        fine = self.stem(x)  # (B, C, H, W) -> [(B, w_0, H, W), (B, w_1, H/2, W/2)]
        # Whole patches, by interpolation: a patch cut off would shift all others.
        fitted = resize(x, tuple(_nearest(n, self.patch) for n in size))
        maps = self.backbone(fitted).feature_maps
        coarse = [
            resize(project(values), tuple(n // 2**i for n in size))  # (B, c_i, ...) -> (B, w_i, H/2^i, W/2^i)
            for i, (project, values) in enumerate(zip(self.project, maps, strict=True), _FINE)
        ]
        return [*fine, *coarse]


def _nearest(size: int, patch: int) -> int:
    """Return the multiple of `patch` nearest to a size, at least one; without a float, for sizes may be free."""
    if patch == 1:
        return size
    return max((2 * size + patch) // (2 * patch), 1) * patch


def backbone_dict(name_or_path: str) -> dict[str, Any]:
    """Return the configuration of a backbone, on the hub or in a folder, as `LMSegConfig` keeps it."""
    settings = AutoConfig.from_pretrained(name_or_path).to_dict()
    return {name: value for name, value in settings.items() if name not in ("out_features", "out_indices")}


def load_backbone(model: nn.Module, name_or_path: str) -> None:
    """Copy the pretrained weights of a backbone, on the hub or in a folder, into every backbone of a network."""
    settings = _settings(backbone_dict(name_or_path), None)
    for encoder in model.modules():
        if not isinstance(encoder, BackboneEncoder):
            continue
        theirs = cast(Any, type(encoder.backbone)).from_pretrained(name_or_path, config=settings, dtype=torch.float32)
        mine = encoder.backbone.state_dict()
        weights = {
            name: value if value.shape == mine[name].shape else adapt_bands(value, mine[name].shape[1])
            for name, value in theirs.state_dict().items()
        }
        encoder.backbone.load_state_dict(weights)


def adapt_bands(weight: Tensor, channels: int) -> Tensor:
    """Return the weights (O, 3, ...) of a first convolution for `channels` bands: (O, channels, ...).

    Bands repeat and share their weight, so that an image whose bands are all equal gives the same response.
    """
    known = weight.shape[1]
    if channels < known:
        rest = weight[:, channels:].sum(1, keepdim=True) / channels
        return weight[:, :channels] + rest
    order = torch.arange(channels) % known
    return weight[:, order] / torch.bincount(order)[order].view(-1, *[1] * (weight.ndim - 2))


def _settings(backbone_config: dict[str, Any], channels: int | None) -> PreTrainedConfig:
    try:
        settings: Any = AutoConfig.for_model(**backbone_config)
    except (TypeError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(f"config.json has a backbone_config that transformers refuses ({reason}).") from None
    if channels is not None:
        settings.num_channels = channels
    if not hasattr(settings, "stage_names"):
        raise ModelError(
            f"config.json has a backbone_config of {settings.model_type}, which is no backbone; use one of "
            "transformers' backbones, such as resnet, convnext, swin or dinov2."
        )
    if not (backbone_config.get("out_features") or backbone_config.get("out_indices")):
        count = len(settings.stage_names) - 1  # the first is the stem
        wanted = range(1, count + 1) if _is_pyramid(settings) else [count * (i + 1) // _LAYERS for i in range(_LAYERS)]
        settings.out_indices = sorted({max(i, 1) for i in wanted})
    return cast(PreTrainedConfig, settings)


def _build(settings: PreTrainedConfig) -> nn.Module:
    try:
        return cast(nn.Module, AutoBackbone.from_config(settings))  # type: ignore[no-untyped-call]
    except (ImportError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(f"config.json has a backbone_config that transformers cannot build ({reason}).") from None


def _is_pyramid(settings: Any) -> bool:
    return hasattr(settings, "depths")


def _patch(settings: Any) -> int:
    if _is_pyramid(settings):
        return 1
    patch = getattr(settings, "patch_size", 1)
    return int(patch[0] if isinstance(patch, (list, tuple)) else patch)
