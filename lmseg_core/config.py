"""The configuration of the network, as transformers keeps it in `config.json`."""

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from lmseg_core.classes import SegmentClass
from lmseg_core.description import NetworkFields, check_network, spread
from lmseg_core.errors import ModelError

_OF_CLASSES = ("colours", "codes")
_OWN = set(NetworkFields.model_fields) - {"id2label"}
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

    What it was trained on: spacing, the millimetres of a voxel for each axis in the order of `tile` (z, y, x), or
    resolution, the metres of a pixel on the ground; None where it is unknown. tested_range: the smallest and the
    largest multiple of it that the network was tested with.
    """

    model_type = "lmseg"

    if TYPE_CHECKING:  # transformers would make fields of these; they come from NetworkFields
        ndim: int
        in_channels: int
        widths: list[int]
        blocks: int
        tile: list[int]
        bands: list[str]
        colours: list[str]
        codes: list[str | None]
        stride: int
        backbone_config: dict[str, Any] | None
        sources: list[int] | None
        fusion: str
        bridge: str
        lm_config: dict[str, Any] | None
        lm_blocks: int | list[int]
        lm_prefix: int
        lm_adapter: dict[str, Any] | None
        mlp_blocks: int
        mlp_hidden: int
        context_size: int
        context: str | None
        context_length: int
        decoder: str
        deep_supervision: int
        dropout: float
        head: str
        text_size: int
        mirror: list[str]
        spacing: list[float] | None
        resolution: float | None
        tested_range: list[float] | None

    def __init__(self, **fields: Any) -> None:
        """Take fields of `NetworkFields`, with its defaults, and those of every transformers configuration."""
        own = {name: fields.pop(name) for name in _OWN & set(fields)}
        names = fields.get("id2label")
        if names is not None:
            check_network({"id2label": names, "head": "closed"})  # before transformers, which takes any
            if fields.get("num_labels") not in (None, len(names)):  # from_pretrained(folder, num_labels=...)
                own = {name: value for name, value in own.items() if name not in _OF_CLASSES}
        super().__init__(**fields)
        checked = check_network(own | {"id2label": self.id2label})
        for name in _OWN:
            setattr(self, name, getattr(checked, name))
        self.tested_range = None if checked.tested_range is None else list(checked.tested_range)
        self.label2id = {name: value for value, name in checked.id2label.items()}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)  # type: ignore[no-untyped-call]
        # What transformers does for from_pretrained(folder, id2label=...) and num_labels=...
        if name == "id2label" and "colours" in vars(self):
            self.label2id = {entry: int(number) for number, entry in value.items()}
            if len(value) != len(self.colours):
                self.colours, self.codes = spread(len(value)), [None] * len(value)

    @classmethod
    def preset(cls, name: str, ndim: int = 2, **overrides: Any) -> "LMSegConfig":
        """Return the configuration "tiny", "small" or "base" for `ndim` axes, with fields replaced by `overrides`.

        Raises ModelError on an unknown name or field.
        """
        if name not in _PRESETS or ndim not in (2, 3):
            raise ModelError(f'preset "{name}" with ndim {ndim} is not known; use {", ".join(_PRESETS)} and 2 or 3.')
        known = {*_OWN, *vars(PreTrainedConfig()), "id2label", "label2id", "num_labels"}
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
