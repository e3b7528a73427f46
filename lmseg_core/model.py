"""The LMSeg network as a transformers model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from lmseg_core.adapters import Adapter, freeze, inject
from lmseg_core.blocks import CONV, DROPOUT, resize
from lmseg_core.bridge import Bridge, Gain, MLPBlock, Tokens
from lmseg_core.config import LMSegConfig
from lmseg_core.decoder import DECODERS
from lmseg_core.encoder import Encoder
from lmseg_core.language import language_blocks, load_blocks
from lmseg_core.loss import segmentation_loss
from lmseg_core.processor import LMSegImageProcessor


@dataclass
class LMSegOutput(ModelOutput):
    """logits (B, K, *S); loss where labels were given; in training with deep supervision, `auxiliary` logits of the
    coarser stages, (B, K, *S/(stride 2^i)) for i = 1, 2, ..., sizes rounded up."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    auxiliary: tuple[Tensor, ...] | None = None


class LMSegForSemanticSegmentation(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Encoder, optional bridge at the bottleneck, decoder and head, in 2D or 3D."""

    config_class = LMSegConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    # Trainer: the loss is a mean already, so it must divide by the accumulation steps itself.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: LMSegConfig) -> None:
        super().__init__(config)
        classes = len(config.classes)
        self.encoder = Encoder(config.ndim, config.in_channels, config.widths, config.blocks, config.stride)
        self.bridge = _bridge(config)
        self.decoder = DECODERS[config.decoder](config.ndim, config.widths)
        self.dropout = DROPOUT[config.ndim](config.dropout)
        widths = self.decoder.widths
        self.head = CONV[config.ndim](widths[0], classes, 1)
        self.auxiliary = nn.ModuleList(
            CONV[config.ndim](width, classes, 1) for width in widths[1 : 1 + config.deep_supervision]
        )
        self.post_init()  # type: ignore[no-untyped-call]
        if config.lm_adapter is not None:
            assert self.bridge is not None
            inject(self.bridge, Adapter(**config.lm_adapter))  # after post_init, which would fill its zeros

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved network, as transformers does, with what its adapter froze frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model: LMSegForSemanticSegmentation = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.bridge is not None and model.config.lm_adapter is not None:
            freeze(model.bridge, Adapter(**model.config.lm_adapter))  # loading makes parameters anew
        return loaded

    @classmethod
    def with_language_model(
        cls, config: LMSegConfig, name_or_path: str, blocks: int | Sequence[int] = 2, pretrained: bool = True
    ) -> "LMSegForSemanticSegmentation":
        """Return a new network whose bridge holds the last `blocks` blocks of a language model, or those of these
        indices.

        `name_or_path` is a hub name or a folder; with pretrained=False only its configuration is read, and its
        weights are random. The configuration of the language model is written into a copy of `config`, so that the
        network saves and loads without it.
        """
        lm_config = AutoConfig.from_pretrained(name_or_path).to_diff_dict()
        changes = {"bridge": "language", "lm_config": lm_config, "lm_blocks": blocks}
        model = cls(LMSegConfig(**{**config.to_dict(), **changes}))
        assert model.bridge is not None
        if pretrained:
            load_blocks(list(model.bridge.blocks), name_or_path, blocks)
        return model

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool = True
    ) -> LMSegOutput | tuple[Tensor, ...]:
        """Return logits (B, K, *S) at the resolution of `pixel_values` (B, C, *S), and the loss where labels
        are given.

        `pixel_values` are normalised float; `labels` are integer (B, *S) with 255 for pixels to ignore. Any
        spatial size is allowed: it is padded inside to a multiple of the coarsest stage, by repeating the
        border.
        """
        size = tuple(pixel_values.shape[2:])
        x = self._pad(pixel_values, size)
        features = self.encoder(x)  # (B, C, *S') -> [(B, w_i, *S'/(stride 2^i))]
        if self.bridge is not None:
            features[-1] = self.bridge(features[-1])
        embeddings = self.decoder(features)
        logits = resize(self.head(self.dropout(embeddings[0])), tuple(x.shape[2:]))  # -> (B, K, *S')
        logits = _crop(logits, size)  # (B, K, *S') -> (B, K, *S)
        auxiliary = self._auxiliary(embeddings, size) if self.training and self.auxiliary else None
        loss = None if labels is None else self._loss(logits, auxiliary, labels)
        output = LMSegOutput(loss=loss, logits=logits, auxiliary=auxiliary)
        return output if return_dict else output.to_tuple()

    def parts(self) -> dict[str, nn.Module]:
        """Return "encoder", "bridge" (where there is one), "decoder" and "head", which hold every parameter."""
        parts: dict[str, nn.Module] = {"encoder": self.encoder, "decoder": self.decoder}
        if self.bridge is not None:
            parts["bridge"] = self.bridge
        parts["head"] = nn.ModuleList([self.head, self.auxiliary]) if self.auxiliary else self.head
        return parts

    def _auxiliary(self, embeddings: list[Tensor], size: Sequence[int]) -> tuple[Tensor, ...]:
        steps = [self.config.stride * 2**i for i in range(1, 1 + len(self.auxiliary))]
        return tuple(
            _crop(head(embedding), [-(-n // step) for n in size])  # (B, w_i, *S'/step) -> (B, K, *S/step)
            for head, embedding, step in zip(self.auxiliary, embeddings[1:], steps, strict=False)
        )

    def _loss(self, logits: Tensor, auxiliary: tuple[Tensor, ...] | None, labels: Tensor) -> Tensor:
        loss, total = segmentation_loss(logits, labels), 1.0
        for i, coarse in enumerate(auxiliary or (), 1):  # half the weight a stage (Isensee et al. 2021)
            every = slice(None, None, self.config.stride * 2**i)
            loss = loss + segmentation_loss(coarse, labels[(slice(None), *[every] * self.config.ndim)]) / 2**i
            total += 1 / 2**i
        return loss / total

    def _pad(self, x: Tensor, size: Sequence[int]) -> Tensor:
        amounts = [amount for n in reversed(size) for amount in (0, -n % self.config.multiple)]
        return nn.functional.pad(x, amounts, mode="replicate") if any(amounts) else x

    def _init_weights(self, module: nn.Module) -> None:
        # Complete on purpose: transformers' default would fill the zero gate with noise, and modules that it
        # does not know would keep uninitialised memory after from_pretrained.
        if isinstance(module, Gain):
            init.constant_(module.weight, module.initial)
        elif isinstance(module, Tokens):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Conv1D):  # GPT-2's linear layer
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        else:  # norms, linear layers, rotary embeddings
            super()._init_weights(module)  # type: ignore[no-untyped-call]


def _bridge(config: LMSegConfig) -> Bridge | None:
    width = config.widths[-1]
    if config.bridge == "mlp":
        return Bridge(width, config.mlp_hidden, [MLPBlock(config.mlp_hidden) for _ in range(config.mlp_blocks)])
    if config.bridge == "none":
        return None
    assert config.lm_config is not None
    blocks, rotary, hidden = language_blocks(config.lm_config, config.lm_blocks)
    return Bridge(width, hidden, blocks, rotary, config.lm_prefix, config.context_size)


def _crop(x: Tensor, size: Sequence[int]) -> Tensor:
    return x[cast(Any, (..., *(slice(n) for n in size)))]


def register() -> None:
    """Make transformers' Auto classes know the "lmseg" architecture."""
    AutoConfig.register("lmseg", LMSegConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(LMSegConfig, LMSegForSemanticSegmentation, exist_ok=True)
    processors: dict[str, Any] = {"pil": LMSegImageProcessor}  # the backend that needs no torchvision
    AutoImageProcessor.register(LMSegConfig, image_processor_classes=processors, exist_ok=True)


register()
