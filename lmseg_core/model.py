"""The LMSeg network as a transformers model."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.pytorch_utils import Conv1D

from lmseg_core.blocks import CONV
from lmseg_core.config import LMSegConfig
from lmseg_core.decoder import UNetDecoder
from lmseg_core.encoder import Encoder
from lmseg_core.language import Gain, LanguageBridge
from lmseg_core.loss import segmentation_loss
from lmseg_core.processor import LMSegImageProcessor


class LMSegForSemanticSegmentation(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Encoder, optional language-model bridge at the bottleneck, U-Net decoder and a 1x1 head, in 2D or
    3D."""

    config_class = LMSegConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    # Trainer: the loss is a mean already, so it must divide by the accumulation steps itself.
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: LMSegConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.ndim, config.in_channels, config.widths, config.blocks)
        self.bridge: LanguageBridge | None = None
        if config.lm_config is not None:
            self.bridge = LanguageBridge(config.widths[-1], config.lm_config, config.lm_blocks)
        self.decoder = UNetDecoder(config.ndim, config.widths)
        self.head = CONV[config.ndim](config.widths[0], len(config.classes), 1)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def with_language_model(cls, config: LMSegConfig, name_or_path: str, blocks: int) -> "LMSegForSemanticSegmentation":
        """Return a new network whose bridge holds the last blocks of a pretrained language model.

        `name_or_path` is a hub name or a folder. The configuration of the language model is written into a
        copy of `config`, so that the network saves and loads without it.
        """
        lm_config = AutoConfig.from_pretrained(name_or_path).to_diff_dict()
        model = cls(LMSegConfig(**{**config.to_dict(), "lm_config": lm_config, "lm_blocks": blocks}))
        assert model.bridge is not None
        model.bridge.load_pretrained(name_or_path)
        return model

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool = True
    ) -> SemanticSegmenterOutput | tuple[Tensor, ...]:
        """Return logits (B, K, *S) at the resolution of `pixel_values` (B, C, *S), and the loss where labels
        are given.

        `pixel_values` are normalised float; `labels` are integer (B, *S) with 255 for pixels to ignore. Any
        spatial size is allowed: it is padded inside to a multiple of the coarsest stage, by repeating the
        border.
        """
        size = pixel_values.shape[2:]
        features = self.encoder(self._pad(pixel_values, size))  # (B, C, *S) -> [(B, w_i, *S'/2^i)]
        if self.bridge is not None:
            features[-1] = self.bridge(features[-1])
        logits = self.head(self.decoder(features))  # -> (B, K, *S')
        logits = logits[(..., *(slice(n) for n in size))]  # (B, K, *S') -> (B, K, *S)
        loss = None if labels is None else segmentation_loss(logits, labels)
        output = SemanticSegmenterOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()

    def _pad(self, x: Tensor, size: Sequence[int]) -> Tensor:
        multiple = 2 ** (len(self.config.widths) - 1)
        amounts = [amount for n in reversed(size) for amount in (0, -n % multiple)]
        return nn.functional.pad(x, amounts, mode="replicate") if any(amounts) else x

    def _init_weights(self, module: nn.Module) -> None:
        # Complete on purpose: transformers' default would fill the zero gate with noise, and modules that it
        # does not know would keep uninitialised memory after from_pretrained.
        if isinstance(module, Gain):
            init.constant_(module.weight, module.initial)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Conv1D):  # GPT-2's linear layer
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        else:  # norms, linear layers, rotary embeddings
            super()._init_weights(module)  # type: ignore[no-untyped-call]


def register() -> None:
    """Make transformers' Auto classes know the "lmseg" architecture."""
    AutoConfig.register("lmseg", LMSegConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(LMSegConfig, LMSegForSemanticSegmentation, exist_ok=True)
    processors: dict[str, Any] = {"pil": LMSegImageProcessor}  # the backend that needs no torchvision
    AutoImageProcessor.register(LMSegConfig, image_processor_classes=processors, exist_ok=True)


register()
