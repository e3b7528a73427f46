"""The LMSeg network as a transformers model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
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
from lmseg_core.backbone import backbone_dict, load_backbone
from lmseg_core.blocks import CONV, DROPOUT, resize
from lmseg_core.bridge import Bridge, Gain, MLPBlock, Tokens
from lmseg_core.config import LMSegConfig
from lmseg_core.decoder import DECODERS
from lmseg_core.errors import ModelError
from lmseg_core.fusion import fill_missing, make_encoder
from lmseg_core.head import TAU, TextHead
from lmseg_core.language import language_blocks, load_language
from lmseg_core.loss import reduce_labels, segmentation_loss
from lmseg_core.processor import LMSegImageProcessor
from lmseg_core.text import check_names


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
        self.encoder = make_encoder(config)
        self.bridge = _bridge(config)
        self.decoder = DECODERS[config.decoder](config.ndim, config.widths)
        self.dropout = DROPOUT[config.ndim](config.dropout)
        widths = self.decoder.widths
        closed = config.head == "closed"
        self.head = (
            CONV[config.ndim](widths[0], classes, 1) if closed else TextHead(widths[0], config.text_size, classes)
        )
        self.auxiliary = nn.ModuleList(
            CONV[config.ndim](width, classes if closed else widths[0], 1)
            for width in widths[1 : 1 + config.deep_supervision]
        )
        stored = torch.zeros(1, config.context_length, config.context_size) if config.context_length else None
        self.stored_context: Tensor | None
        self.register_buffer("stored_context", stored)
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
        # Weights lie in the mapped file as they come; some processors round otherwise where they are not aligned.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
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
        load_language(model.bridge, name_or_path, blocks, pretrained)
        return model

    @classmethod
    def with_backbone(cls, config: LMSegConfig, name_or_path: str) -> "LMSegForSemanticSegmentation":
        """Return a new network whose encoder is a pretrained transformers backbone, for any number of bands.

        `name_or_path` is a hub name or a folder. Its configuration is written into a copy of `config`, so that the
        network saves and loads without it. For a pretrained language model besides, pass the configuration of this
        network to `with_language_model`, then the new network to `load_backbone`.
        """
        model = cls(LMSegConfig(**{**config.to_dict(), "backbone_config": backbone_dict(name_or_path)}))
        load_backbone(model, name_or_path)
        return model

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        source_mask: Tensor | None = None,
        context: Tensor | None = None,
        return_dict: bool = True,
    ) -> LMSegOutput | tuple[Tensor, ...]:
        """Return logits (B, K, *S) at the resolution of `pixel_values` (B, C, *S), and the loss where labels
        are given.

        `pixel_values` are normalised float; `labels` are integer (B, *S) with 255 for pixels to ignore. Any
        spatial size is allowed: it is padded inside to a multiple of the coarsest stage, by repeating the
        border. source_mask (B, n) bool: which sources are there; one that is all NaN is not. context: text tokens
        (B or 1, T, context_size), by default the stored ones. Raises ModelError.
        """
        size = tuple(pixel_values.shape[2:])
        features = self._encode(pixel_values, source_mask)  # (B, C, *S) -> [(B, w_i, *S'/(stride 2^i))]
        features[-1] = self._cross(features[-1], context)
        embeddings = self.decoder(features)
        logits = self.head(self.dropout(embeddings[0]))  # -> (B, K, *S'/stride)
        full = tuple(n * self.config.stride for n in logits.shape[2:])
        logits = _crop(resize(logits, full), size)  # (B, K, *S'/stride) -> (B, K, *S') -> (B, K, *S)
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

    def set_classes(self, names: Sequence[str], embeddings: Tensor, colours: Sequence[str] | None = None) -> None:
        """Make a network with a text head know these classes, with embeddings (K, D) of `TextEncoder.classes`.

        Classes of the same name as before keep their bias, colour and code. Raises ModelError on another head, on a
        class without a name, or on embeddings of another shape.
        """
        head = self.head
        if not isinstance(head, TextHead):
            raise ModelError('the network has head "closed", whose classes are fixed; train one with head "text".')
        check_names(names)
        if tuple(embeddings.shape) != (len(names), self.config.text_size):
            raise ModelError(
                f"the embeddings have shape {tuple(embeddings.shape)}; {len(names)} classes need "
                f"{(len(names), self.config.text_size)}."
            )
        before = {entry.name: entry for entry in self.config.classes}
        kept = [before.get(name) for name in names]
        settings = self.config.to_dict() | {"id2label": dict(enumerate(names)), "label2id": None}
        settings["codes"] = [entry and entry.code for entry in kept]
        fresh = LMSegConfig(**settings | {"colours": colours})
        if colours is None:
            fresh.colours = [
                entry.color if entry else colour for entry, colour in zip(kept, fresh.colours, strict=True)
            ]
        head.replace(embeddings, [entry and entry.value for entry in kept])
        self.config = fresh

    def set_context(self, text: str, tokens: Tensor) -> None:
        """Store a text's tokens (1, T, context_size), of `TextEncoder.tokens`, as what forward uses by default."""
        if tokens.ndim != 3 or len(tokens) != 1 or tokens.shape[-1] != self.config.context_size:
            raise ModelError(
                f"the context has shape {tuple(tokens.shape)}; this network takes (1, T, {self.config.context_size})."
            )
        self.stored_context = tokens.detach().to(self.device, self.dtype)
        self.config.context, self.config.context_length = text, tokens.shape[1]

    def _encode(self, x: Tensor, source_mask: Tensor | None) -> list[Tensor]:
        sources = self.config.sources
        if sources is None:
            if source_mask is not None:
                raise ModelError("source_mask is given, but config.json has no sources; leave it out.")
            return cast(list[Tensor], self.encoder(self._pad(x)))
        x, present = fill_missing(x, sources, source_mask)
        told = (present,) if self.config.fusion == "separate" else ()
        return cast(list[Tensor], self.encoder(self._pad(x), *told))

    def _cross(self, x: Tensor, context: Tensor | None) -> Tensor:
        context = self.stored_context if context is None else context
        if self.bridge is not None and (context is None or self.config.bridge == "language"):
            return cast(Tensor, self.bridge(x, context))
        if context is not None:
            raise ModelError(f'context is given, but the network has bridge "{self.config.bridge}"; leave it out.')
        return x

    def _auxiliary(self, embeddings: list[Tensor], size: Sequence[int]) -> tuple[Tensor, ...]:
        steps = [self.config.stride * 2**i for i in range(1, 1 + len(self.auxiliary))]
        coarse = [head(embedding) for head, embedding in zip(self.auxiliary, embeddings[1:], strict=False)]
        if isinstance(self.head, TextHead):
            coarse = [self.head(embedding) for embedding in coarse]  # (B, w_0, *S'/step) -> (B, K, *S'/step)
        return tuple(
            _crop(logits, [-(-n // step) for n in size])  # (B, K, *S'/step) -> (B, K, *S/step)
            for logits, step in zip(coarse, steps, strict=True)
        )

    def _loss(self, logits: Tensor, auxiliary: tuple[Tensor, ...] | None, labels: Tensor) -> Tensor:
        loss, total = segmentation_loss(logits, labels), 1.0
        for i, coarse in enumerate(auxiliary or (), 1):  # half the weight a stage (Isensee et al. 2021)
            loss = loss + segmentation_loss(coarse, reduce_labels(labels, coarse.shape[2:])) / 2**i
            total += 1 / 2**i
        return loss / total

    def _pad(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            multiple = self.config.multiple
            return _taken(x, [(n + multiple - 1) // multiple * multiple for n in x.shape[2:]])
        amounts = [amount for n in reversed(x.shape[2:]) for amount in (0, -n % self.config.multiple)]
        return nn.functional.pad(x, amounts, mode="replicate") if any(amounts) else x

    def _init_weights(self, module: nn.Module) -> None:
        # Complete on purpose: transformers' default would fill the zero gate with noise, and modules that it
        # does not know would keep uninitialised memory after from_pretrained.
        if isinstance(module, Gain):
            init.constant_(module.weight, module.initial)
        elif isinstance(module, Tokens):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, TextHead):
            init.constant_(module.tau, TAU)
            init.zeros_(module.bias)
            init.zeros_(module.embeddings)
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


def _taken(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return `x` (B, C, *S) cut or padded to `size` without a branch on sizes, which are free while exporting."""
    for axis, (own, wanted) in enumerate(zip(x.shape[2:], size, strict=True), 2):
        x = x.index_select(axis, torch.arange(wanted, device=x.device).clamp(max=own - 1))
    return x


def _crop(x: Tensor, size: Sequence[int]) -> Tensor:
    if torch.compiler.is_exporting():
        return _taken(x, size)
    return x[cast(Any, (..., *(slice(n) for n in size)))]


def register() -> None:
    """Make transformers' Auto classes know the "lmseg" architecture."""
    AutoConfig.register("lmseg", LMSegConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(LMSegConfig, LMSegForSemanticSegmentation, exist_ok=True)
    processors: dict[str, Any] = {"pil": LMSegImageProcessor}  # the backend that needs no torchvision
    AutoImageProcessor.register(LMSegConfig, image_processor_classes=processors, exist_ok=True)


register()
