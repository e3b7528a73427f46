"""The configuration of the network, as transformers keeps it in `config.json`."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any

from transformers import PreTrainedConfig

from lmseg_core.classes import SegmentClass
from lmseg_core.errors import ModelError
from lmseg_core.mirror import AXES

_COLOUR = re.compile(r"#[0-9a-f]{6}")
_UNNAMED = re.compile(r"|LABEL_\d+")  # what transformers calls a class that was given no name
_CHOICES = {
    "bridge": ("none", "language", "mlp"),
    "decoder": ("unet", "fcn"),
    "head": ("closed", "text"),
    "fusion": ("stack", "separate"),
}
# Six stages in 2D keep the tokens of a 256-pixel tile at 64, so that a language model costs little beside the
# convolutions; a volume has few enough after four.
_PRESETS: dict[str, dict[int, dict[str, Any]]] = {
    "tiny": {2: {"widths": (16, 32, 64, 96, 128, 160)}, 3: {"widths": (16, 32, 64, 96)}},
    "small": {2: {"widths": (32, 64, 128, 192, 256, 320)}, 3: {"widths": (24, 48, 96, 160)}},
    "base": {
        2: {"widths": (48, 96, 192, 320, 448, 512), "blocks": 2},
        3: {"widths": (32, 64, 128, 256, 320), "blocks": 2},
    },
}


class LMSegConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Shape of an LMSeg network, and what its channels and classes are. Raises ModelError on contradictions.

    ndim: 2 or 3 spatial axes. in_channels: bands. tile: default window of prediction in pixels, one a spatial
    axis. bands: name of each input channel. colours ("#rrggbb") and codes (SNOMED CT or None): one a class, in
    the order of `id2label`.

    Encoder: widths, the channels of each stage; stage i works at 1/(stride 2**i) of the resolution, with
    `blocks` residual blocks. stride (a power of two): of the stem; the logits are interpolated back.
    backbone_config: a transformers backbone as a dict (2D only): its features, projected to the last `widths`,
    take the place of those stages, and a light stem of our own supplies the finer ones.
    sources: channels of each source where the bands come from several instruments or sequences; fusion "stack"
    has one encoder for all, "separate" one each, averaged over the sources that are present.

    Bridge at the bottleneck: "none", "language" or "mlp"; None means "language" where lm_config, a transformers
    configuration as a dict, is given. lm_blocks: how many of its last blocks are used, or the indices of those
    that are. lm_prefix: learned tokens before the image's. lm_adapter: what `adapt` did to the blocks.
    mlp_blocks and mlp_hidden: the residual MLP that is as large as a language model of that hidden size.
    context_size: width of the text tokens that the language bridge accepts beside the image's, 0 for none;
    context and context_length: the text stored in the network, and its number of tokens.

    Decoder: "unet" or "fcn"; deep_supervision: how many coarser stages have a head of their own in training;
    dropout: of channels before the head. Head: "closed", one convolution, or "text", the cosine to class-name
    embeddings of size text_size.

    mirror: axes ("x", "y", "z") along which windows are mirrored when the network predicts, to average the answers:
    of one axis twice the work, of two four times. For networks that were trained on flips along them.
    """

    model_type = "lmseg"

    def __init__(
        self,
        ndim: int = 2,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 1,
        tile: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        colours: Sequence[str] | None = None,
        codes: Sequence[str | None] | None = None,
        stride: int = 1,
        backbone_config: dict[str, Any] | None = None,
        sources: Sequence[int] | None = None,
        fusion: str = "stack",
        bridge: str | None = None,
        lm_config: dict[str, Any] | None = None,
        lm_blocks: int | Sequence[int] = 2,
        lm_prefix: int = 0,
        lm_adapter: dict[str, Any] | None = None,
        mlp_blocks: int = 2,
        mlp_hidden: int = 384,
        context_size: int = 0,
        context: str | None = None,
        context_length: int = 0,
        decoder: str = "unet",
        deep_supervision: int = 0,
        dropout: float = 0.0,
        head: str = "closed",
        text_size: int = 0,
        mirror: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ndim = ndim
        self.in_channels = in_channels
        self.widths = list(widths)
        self.blocks = blocks
        self.tile = list(tile) if tile is not None else [256] * 2 if ndim == 2 else [64] * 3
        self.bands = list(bands) if bands is not None else [f"band {i + 1}" for i in range(in_channels)]
        count = len(self.id2label or {})
        self.colours = list(colours) if colours is not None else [_spread(i, count) for i in range(count)]
        self.codes = list(codes) if codes is not None else [None] * count
        self.stride = stride
        self.backbone_config = backbone_config
        self.sources = None if sources is None else list(sources)
        self.fusion = fusion
        self.bridge = bridge or ("none" if lm_config is None else "language")
        self.lm_config = lm_config
        self.lm_blocks = lm_blocks if isinstance(lm_blocks, int) else list(lm_blocks)
        self.lm_prefix = lm_prefix
        self.lm_adapter = lm_adapter
        self.mlp_blocks = mlp_blocks
        self.mlp_hidden = mlp_hidden
        self.context_size = context_size
        self.context = context
        self.context_length = context_length
        self.decoder = decoder
        self.deep_supervision = deep_supervision
        self.dropout = dropout
        self.head = head
        self.text_size = text_size
        self.mirror = list(mirror)
        self._check(count)

    @classmethod
    def preset(cls, name: str, ndim: int = 2, **overrides: Any) -> "LMSegConfig":
        """Return the configuration "tiny", "small" or "base" for `ndim` axes, with fields replaced by `overrides`.

        Raises ModelError on an unknown name or field.
        """
        if name not in _PRESETS or ndim not in (2, 3):
            raise ModelError(f'preset "{name}" with ndim {ndim} is not known; use {", ".join(_PRESETS)} and 2 or 3.')
        known = {*signature(cls).parameters, *vars(PreTrainedConfig()), "id2label", "label2id", "num_labels"}
        unknown = sorted(set(overrides) - known)
        if unknown:
            near = get_close_matches(unknown[0], known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else "remove it."
            raise ModelError(
                f'preset "{name}" was given "{unknown[0]}", which is no field of the configuration; {hint}'
            )
        return cls(**{"ndim": ndim, **_PRESETS[name][ndim], **overrides})

    @property
    def multiple(self) -> int:
        """What the network pads every spatial size to a multiple of."""
        return int(self.stride * 2 ** (len(self.widths) - 1))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "LMSegConfig":
        """Return this configuration: transformers would take the field `decoder` for a nested one."""
        return self

    @property
    def classes(self) -> tuple[SegmentClass, ...]:
        """The class table, in the order of the label values 0..K-1."""
        names = {int(value): name for value, name in (self.id2label or {}).items()}
        return tuple(
            SegmentClass(value, names[value], self.colours[value], self.codes[value]) for value in sorted(names)
        )

    def _check(self, count: int) -> None:
        if self.ndim not in (2, 3):
            raise ModelError(f"config.json has ndim {self.ndim}; set it to 2 for rasters or 3 for volumes.")
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ModelError(f"config.json has widths {self.widths}; give at least two positive stage widths.")
        if sorted(self.id2label or {}) != list(range(count)):
            raise ModelError(f"config.json has id2label {self.id2label}; number the classes 0, 1, 2, ...")
        lists: list[tuple[str, Sequence[Any], int]] = [
            ("tile", self.tile, self.ndim),
            ("bands", self.bands, self.in_channels),
            ("colours", self.colours, count),
            ("codes", self.codes, count),
        ]
        for name, values, wanted in lists:
            if len(values) != wanted:
                raise ModelError(f"config.json has {len(values)} {name} ({values}); give exactly {wanted}.")
        self._check_parts()
        wrong = [colour for colour in self.colours if not _COLOUR.fullmatch(colour)]
        if wrong:
            raise ModelError(f'config.json has colour "{wrong[0]}"; write it as "#rrggbb" in lower case.')

    def _check_parts(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ModelError(f'config.json has {field} "{getattr(self, field)}"; use {" or ".join(allowed)}.')
        if self.stride < 1 or self.stride & (self.stride - 1):
            raise ModelError(f"config.json has stride {self.stride}; give a power of two: 1, 2, 4, ...")
        if not 0 <= self.deep_supervision <= len(self.widths) - 2:
            raise ModelError(
                f"config.json has deep_supervision {self.deep_supervision}; {len(self.widths)} stages allow 0 to "
                f"{len(self.widths) - 2}."
            )
        axes = list(AXES)[: self.ndim]
        if len(set(self.mirror)) != len(self.mirror) or not set(self.mirror) <= set(axes):
            raise ModelError(f"config.json has mirror {self.mirror}; list some of {', '.join(axes)}, each once.")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"config.json has dropout {self.dropout}; give a share of at least 0 and below 1.")
        if self.backbone_config is not None and (self.ndim, self.stride) != (2, 1):
            raise ModelError(
                f"config.json has a backbone_config with ndim {self.ndim} and stride {self.stride}; backbones need "
                "ndim 2 and stride 1."
            )
        if self.bridge == "language" and self.lm_config is None:
            raise ModelError('config.json has bridge "language" and no lm_config; give one, or set bridge to "mlp".')
        if self.bridge != "language" and (self.lm_prefix or self.lm_adapter or self.context_size):
            raise ModelError(
                f'config.json has lm_prefix, lm_adapter or context_size; bridge "{self.bridge}" has no use for them.'
            )
        if self.context_length and not self.context_size:
            raise ModelError(f"config.json has context_length {self.context_length} and context_size 0; give both.")
        sources = self.sources
        if sources is not None and (not sources or min(sources) < 1 or sum(sources) != self.in_channels):
            raise ModelError(f"config.json has sources {sources}; their channels must add up to {self.in_channels}.")
        if self.fusion == "separate" and sources is None:
            raise ModelError('config.json has fusion "separate" and no sources; give the channels of each source.')
        if self.head == "text":
            self._check_text()

    def _check_text(self) -> None:
        if self.text_size < 1:
            raise ModelError(f'config.json has head "text" and text_size {self.text_size}; give the embedding size.')
        unnamed = [value for value, name in (self.id2label or {}).items() if _UNNAMED.fullmatch(str(name).strip())]
        if unnamed:
            raise ModelError(f'config.json has head "text" and no name for class {unnamed[0]}; name it in id2label.')


def _spread(index: int, count: int) -> str:
    """Return a grey for each class that was given no colour, from black to white."""
    level = round(255 * index / max(count - 1, 1))
    return f"#{level:02x}{level:02x}{level:02x}"
