"""What a model's `config.json` and `preprocessor_config.json` may hold: checked by pydantic, without torch."""

import json
import math
import operator
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lmseg_core.errors import ModelError

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
TESTED = (0.8, 1.25)  # of a model that gives a spacing or resolution, and not the range it was tested in

_T = TypeVar("_T", bound=BaseModel)
_LARGEST = 4 * 2**20  # bytes of a file; the classes of ImageNet take 60 000
_DEEPEST = 32  # JSON objects and lists inside each other
_UNNAMED = re.compile(r"|LABEL_\d+")  # what transformers calls a class that was given no name
_LAYERS = re.compile(r"(layers?|depths?|blocks)$")
_WIDTHS = re.compile(r"(?!.*position).*(hidden|embd|embed|dim|channel|width|intermediate|inner|head|group)")


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError from None


def _number(value: Any) -> Any:
    if isinstance(value, (bool, str, bytes)):
        raise ValueError
    return value


def _printable(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError
    return name


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError
    return value


def _bounded(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse numbers in a nested configuration that no model has, which would take all memory or time."""
    todo: list[tuple[str, Any]] = list(values.items())
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            todo += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            todo += [(key, inner) for inner in value]
        elif isinstance(value, (int, float)):
            most = 2**10 if _LAYERS.search(key) and isinstance(value, int) else 2**31
            most = 2**16 if most > 2**16 and _WIDTHS.match(key) else most
            if not math.isfinite(value) or abs(value) > most:
                raise ValueError
    return values


_Integer = Annotated[int, BeforeValidator(_integer)]
_Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
_Positive = Annotated[_Number, Field(gt=0, le=1e9)]
_Size = Annotated[_Integer, Field(ge=1, le=2**14)]
_Count = Annotated[_Integer, Field(ge=0, le=2**16)]
_Few = Annotated[_Integer, Field(ge=0, le=2**10)]
_Name = Annotated[str, Field(strict=True, max_length=256), AfterValidator(_printable)]
_Nested = Annotated[dict[str, Any], AfterValidator(_bounded)]


class NetworkFields(BaseModel):
    """The fields of `LMSegConfig`, which says what they mean. A description here says how to mend a wrong value."""

    model_config = ConfigDict(extra="ignore")

    ndim: Annotated[Literal[2, 3], BeforeValidator(_integer)] = Field(
        2, description="set it to 2 for rasters or 3 for volumes"
    )
    in_channels: Annotated[_Integer, Field(ge=1, le=10_000)] = Field(
        3, description="give the number of bands, 1 to 10000"
    )
    widths: list[_Size] = Field(
        [16, 32, 64, 128],
        min_length=2,
        max_length=12,
        description="give at least two positive stage widths, at most 12, of at most 16384 channels",
    )
    blocks: Annotated[_Integer, Field(ge=1, le=100)] = Field(1, description="give 1 to 100 blocks a stage")
    tile: list[_Size] | None = Field(None, description="give the pixels of each axis, 1 to 16384")
    bands: list[_Name] | None = Field(None, description="name each band in one printable line")
    colours: list[Annotated[str, Field(strict=True, pattern=r"^#[0-9a-f]{6}$")]] | None = Field(
        None, description='write it as "#rrggbb" in lower case'
    )
    codes: list[_Name | None] | None = Field(None, description="give a SNOMED CT code or null for each class")
    id2label: dict[
        Annotated[_Integer, BeforeValidator(lambda key: int(key) if isinstance(key, str) else key)], _Name
    ] = Field({0: "LABEL_0", 1: "LABEL_1"}, description="number the classes 0, 1, 2, ... and name each in one line")
    stride: Annotated[_Integer, Field(ge=1, le=64), AfterValidator(_power_of_two)] = Field(
        1, description="give a power of two: 1, 2, 4, ... 64"
    )
    backbone_config: _Nested | None = Field(None, description="give a configuration of a transformers backbone")
    sources: list[_Size] | None = Field(None, min_length=1, description="give the channels of each source")
    fusion: Literal["stack", "separate"] = Field("stack", description="use stack or separate")
    bridge: Literal["none", "language", "mlp"] | None = Field(None, description="use none or language or mlp")
    lm_config: _Nested | None = Field(None, description="give a configuration of a transformers language model")
    lm_blocks: Annotated[_Integer, Field(ge=1, le=2**10)] | list[_Few] = Field(
        2, description="give the number of the last blocks, or a list of indices"
    )
    lm_prefix: _Few = Field(0, description="give 0 to 1024 tokens")
    lm_adapter: _Nested | None = Field(None, description="leave it as `adapt` wrote it")
    mlp_blocks: _Few = Field(2, description="give 0 to 1024 blocks")
    mlp_hidden: _Size = Field(384, description="give the width, 1 to 16384")
    context_size: _Count = Field(0, description="give the size of a text token, 0 for none")
    context: Annotated[str, Field(strict=True)] | None = Field(None, description="give text or null")
    context_length: _Count = Field(0, description="give the number of text tokens, 0 for none")
    decoder: Literal["unet", "fcn"] = Field("unet", description="use unet or fcn")
    deep_supervision: _Few = Field(0, description="give the number of coarser stages with a head, 0 for none")
    dropout: Annotated[_Number, Field(ge=0, lt=1)] = Field(0.0, description="give a share of at least 0 and below 1")
    head: Literal["closed", "text"] = Field("closed", description="use closed or text")
    text_size: _Count = Field(0, description="give the size of a class-name embedding, 0 for none")
    mirror: list[Literal["x", "y", "z"]] = Field([], description="list some of x, y, z, each once")
    spacing: list[_Positive] | None = Field(None, description="give the millimetres of a voxel, one for each axis")
    resolution: _Positive | None = Field(None, description="give the metres of a pixel on the ground")
    tested_range: tuple[_Positive, _Positive] | None = Field(
        None, description="give two factors of the spacing or resolution, such as [0.8, 1.25]"
    )

    @model_validator(mode="after")
    def _complete(self) -> "NetworkFields":
        count = len(self.id2label)
        if self.tile is None:
            self.tile = [256] * 2 if self.ndim == 2 else [64] * 3
        if self.bands is None:
            self.bands = [f"band {i + 1}" for i in range(self.in_channels)]
        if self.colours is None:
            self.colours = spread(count)
        if self.codes is None:
            self.codes = [None] * count
        if self.bridge is None:
            self.bridge = "none" if self.lm_config is None else "language"
        if self.tested_range is None and (self.spacing or self.resolution):
            self.tested_range = TESTED
        return self

    def check(self) -> None:
        """Raise ModelError where fields contradict each other."""
        names = list(self.id2label.values())
        if sorted(self.id2label) != list(range(len(names))) or not names:
            raise ModelError(f"{CONFIG} has id2label {_shown(self.id2label)}; number the classes 0, 1, 2, ...")
        if len(names) > 65_534:
            raise ModelError(f"{CONFIG} has {len(names)} classes; labels have room for 65534.")
        if (twice := _twice(names)) is not None:
            raise ModelError(f'{CONFIG} has two classes of the name "{twice}" in id2label; give each its own.')
        self._check_lengths(len(names))
        self._check_network()
        self._check_bridge()
        self._check_scale()
        if self.head == "text":
            self._check_text()

    def _check_lengths(self, count: int) -> None:
        lists: list[tuple[str, list[Any] | None, int]] = [
            ("tile", self.tile, self.ndim),
            ("bands", self.bands, self.in_channels),
            ("colours", self.colours, count),
            ("codes", self.codes, count),
        ]
        for name, values, wanted in lists:
            if values is not None and len(values) != wanted:
                raise ModelError(f"{CONFIG} has {len(values)} {name} ({_shown(values)}); give exactly {wanted}.")

    def _check_network(self) -> None:
        if self.deep_supervision > len(self.widths) - 2:
            raise ModelError(
                f"{CONFIG} has deep_supervision {self.deep_supervision}; {len(self.widths)} stages allow 0 to "
                f"{len(self.widths) - 2}."
            )
        axes = ["x", "y", "z"][: self.ndim]
        if len(set(self.mirror)) != len(self.mirror) or not set(self.mirror) <= set(axes):
            raise ModelError(f"{CONFIG} has mirror {self.mirror}; list some of {', '.join(axes)}, each once.")
        if self.backbone_config is not None and (self.ndim, self.stride) != (2, 1):
            raise ModelError(
                f"{CONFIG} has a backbone_config with ndim {self.ndim} and stride {self.stride}; backbones need "
                "ndim 2 and stride 1."
            )
        if self.sources is not None and sum(self.sources) != self.in_channels:
            raise ModelError(f"{CONFIG} has sources {self.sources}; their channels must add up to {self.in_channels}.")
        if self.fusion == "separate" and self.sources is None:
            raise ModelError(f'{CONFIG} has fusion "separate" and no sources; give the channels of each source.')

    def _check_bridge(self) -> None:
        if self.bridge == "language" and self.lm_config is None:
            raise ModelError(f'{CONFIG} has bridge "language" and no lm_config; give one, or set bridge to "mlp".')
        if self.bridge != "language" and (self.lm_prefix or self.lm_adapter or self.context_size):
            raise ModelError(
                f'{CONFIG} has lm_prefix, lm_adapter or context_size; bridge "{self.bridge}" has no use for them.'
            )
        if self.context_length and not self.context_size:
            raise ModelError(f"{CONFIG} has context_length {self.context_length} and context_size 0; give both.")

    def _check_scale(self) -> None:
        name, foreign = ("resolution", "spacing") if self.ndim == 2 else ("spacing", "resolution")
        if getattr(self, foreign) is not None:
            raise ModelError(f"{CONFIG} has {foreign} with ndim {self.ndim}; give {name} instead, or leave it out.")
        if self.spacing is not None and len(self.spacing) != 3:
            raise ModelError(f"{CONFIG} has {len(self.spacing)} spacing ({self.spacing}); give exactly 3.")
        if self.tested_range is None:
            return
        if getattr(self, name) is None:
            raise ModelError(f"{CONFIG} has tested_range and no {name}; give both.")
        low, high = self.tested_range
        if not low <= 1 <= high:
            raise ModelError(f"{CONFIG} has tested_range [{low:g}, {high:g}]; give factors around 1.")

    def _check_text(self) -> None:
        if self.text_size < 1:
            raise ModelError(f'{CONFIG} has head "text" and text_size {self.text_size}; give the embedding size.')
        unnamed = [value for value, name in self.id2label.items() if _UNNAMED.fullmatch(name.strip())]
        if unnamed:
            raise ModelError(f'{CONFIG} has head "text" and no name for class {unnamed[0]}; name it in id2label.')

    def least_weights(self) -> int:
        """Return a number of weights that the network has at least: those of its widest convolutions."""
        ours = self.widths if self.backbone_config is None else self.widths[:2]
        return 2 * self.blocks * 3**self.ndim * sum(width * width for width in ours)


class ProcessorFields(BaseModel):
    """The fields of `LMSegImageProcessor`."""

    model_config = ConfigDict(extra="ignore")

    mode: Literal["fixed", "image"] = Field("image", description='use "fixed" or "image"')
    scale: _Positive = Field(1.0, description="give a factor above 0")
    image_mean: list[_Number] | None = Field(None, description="give one finite number a band")
    image_std: list[_Positive] | None = Field(None, description="give one number above 0 a band")

    def check(self) -> None:
        """Raise ModelError where fields contradict each other."""
        mean, std = self.image_mean, self.image_std
        if self.mode == "fixed" and (mean is None or std is None or len(mean) != len(std)):
            raise ModelError(
                f'{PROCESSOR} has mode "fixed" with image_mean {_shown(mean)} and '
                f"image_std {_shown(std)}; give both, one value a band."
            )


class Description(NamedTuple):
    """What the files of a model say, before its weights are read."""

    network: NetworkFields
    processor: ProcessorFields


class _ConfigFile(NetworkFields):
    """`config.json` as it lies on disk: with what transformers keeps there besides."""

    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = Field(
        None, description="use float16, bfloat16, float32 or float64"
    )
    architectures: list[_Name] | None = Field(None, description="leave it as save_pretrained wrote it")
    transformers_version: _Name | None = Field(None, description="leave it as save_pretrained wrote it")
    num_labels: _Count | None = Field(None, description="leave it out; id2label says it")
    label2id: dict[_Name, _Integer] | None = Field(None, description="leave it out; id2label says it")

    def check(self) -> None:
        super().check()
        if self.num_labels not in (None, len(self.id2label)):
            raise ModelError(
                f"{CONFIG} has num_labels {self.num_labels} and {len(self.id2label)} classes; leave it out."
            )
        if self.label2id is not None and self.label2id != {name: value for value, name in self.id2label.items()}:
            raise ModelError(f"{CONFIG} has a label2id that contradicts its id2label; leave label2id out.")


def check_network(values: dict[str, Any]) -> NetworkFields:
    """Return the fields of a configuration, completed; ModelError where a value is wrong or contradicts another."""
    fields = _validated(NetworkFields, values, CONFIG)
    fields.check()
    return fields


def check_processor(values: dict[str, Any]) -> ProcessorFields:
    """Return the fields of an image processor; ModelError where a value is wrong or contradicts another."""
    fields = _validated(ProcessorFields, values, PROCESSOR)
    fields.check()
    return fields


def read_description(folder: Path) -> Description:
    """Return what a model folder says of itself; ModelError naming the file, the key, the value and the fix."""
    config = _read(folder / CONFIG)
    if config.get("model_type") != "lmseg":
        raise ModelError(
            f'{folder / CONFIG} has model_type {_shown(config.get("model_type"))}; lmseg reads models of type "lmseg".'
        )
    processor = _read(folder / PROCESSOR)
    try:
        network = _validated(_ConfigFile, config, CONFIG)
        network.check()
        fields = check_processor(processor)
        if fields.mode == "fixed" and len(fields.image_mean or ()) != network.in_channels:
            raise ModelError(
                f"{PROCESSOR} has image_mean of {len(fields.image_mean or ())} values, and {CONFIG} has "
                f"{network.in_channels} bands; give one value a band."
            )
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    return Description(network, fields)


def spread(count: int) -> list[str]:
    """Return a grey for each of `count` classes that were given no colour, from black to white."""
    levels = [round(255 * index / max(count - 1, 1)) for index in range(count)]
    return [f"#{level:02x}{level:02x}{level:02x}" for level in levels]


def _validated(kind: type[_T], values: dict[str, Any], file: str) -> _T:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    key = str(first["loc"][0])
    where = "".join(f"[{part}]" for part in first["loc"][1:] if isinstance(part, int))
    fix = kind.model_fields[key].description
    name = "colour" if key == "colours" and where else f"{key}{where}"
    raise ModelError(f"{file} has {name} {_shown(first['input'])}; {fix}.")


def _shown(value: Any) -> str:
    """Return a value as one short printable line."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    text = f'"{text[1:-1]}"' if isinstance(value, str) else text
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read(path: Path) -> dict[str, Any]:
    writer = "model" if path.name == CONFIG else "processor"
    fix = f"write it with {writer}.save_pretrained"
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise ModelError(f"{path} has {size} bytes, and {_LARGEST} are read at most; {fix}.")
        data = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=_unique)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check the file.") from None
    except RecursionError:
        raise ModelError(f"{path} has lists inside each other without end; {fix}.") from None
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{path} is not a JSON object ({error}); {fix}.") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object; {fix}.")
    if _depth(data) > _DEEPEST:
        raise ModelError(f"{path} has objects inside each other {_DEEPEST} deep and more; {fix}.")
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"it has {constant}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (twice := _twice([name for name, _ in pairs])) is not None:
        raise ValueError(f"it has the key {_shown(twice)} twice")
    return dict(pairs)


def _twice(names: list[str]) -> str | None:
    """Return the first name that a list holds a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _depth(data: Any) -> int:
    level, depth = [data], 0
    while level and depth <= _DEEPEST:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return depth
