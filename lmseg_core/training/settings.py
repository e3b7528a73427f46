"""What a training is told: one YAML file, checked before anything is read; explained in `docs/finetuning.md`."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lmseg_core.errors import ModelError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=1)]
Band = Annotated[int, Field(ge=1)]
Part = Literal["encoder", "bridge", "decoder", "head"]
NUMERICS = 2  # kept beside the digest: raise it when a change of the training gives the same settings other weights


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSettings(_Settings):
    """One class; its label value is its place in the list."""

    name: str = Field(min_length=1)
    colour: str | None = Field(None, pattern=r"^#[0-9a-f]{6}$", description='Such as "#ff8000".')
    code: str | None = Field(None, description="SNOMED CT code.")
    synonyms: list[str] = Field([], description="Other names, for a text head.")

    @field_validator("colour", mode="before")
    @classmethod
    def _is_lower(cls, colour: Any) -> Any:
        return colour.lower() if isinstance(colour, str) else colour


class LanguageSettings(_Settings):
    """The language model at the bottleneck."""

    name: str = Field(description="Folder or hub name of a BERT, GPT-2, Llama, Qwen, SmolLM or Gemma 3.")
    blocks: int | list[int] = Field(2, description="How many of its last blocks, or which.")
    pretrained: bool = Field(True, description="False keeps its shape and forgets its weights.")
    tune: Literal["frozen", "lora", "adalora", "dora", "prefix", "adapter", "full"] = "lora"
    rank: int = Field(8, ge=1, description="Rank of LoRAs, width of adapters, number of prefix tokens.")
    alpha: Positive = 16.0
    dropout: Share = 0.0


class ModelSettings(_Settings):
    """The network: a trained one to start from, or a new one."""

    start: str | None = Field(None, description="Bundled model, folder or hub name to go on from.")
    preset: Literal["tiny", "small", "base"] = "tiny"
    ndim: Literal[2, 3] = 2
    bands: list[str] = Field(["red", "green", "blue"], min_length=1)
    tile: list[Pixels] | None = Field(None, description="Window of prediction; that of training if empty.")
    classes: list[ClassSettings] = Field([], description="In the order of the label values; those of `start` if empty.")
    backbone: str | None = Field(None, description="Folder or hub name of a transformers backbone (2D).")
    language_model: LanguageSettings | None = None
    text_head: str | None = Field(None, description="Folder or hub name of the language model that names the classes.")
    context: str | None = Field(None, description='Words about the images, such as "Sentinel-2, July, 10 m".')
    save_as: Literal["float32", "float16"] = Field("float32", description="How the finished weights are stored.")
    config: dict[str, Any] = Field({}, description="Further fields of LMSegConfig: widths, stride, decoder ...")

    @model_validator(mode="after")
    def _has_classes(self) -> "ModelSettings":
        if self.start is None and len(self.classes) < 2:
            raise ValueError(f"classes has {len(self.classes)} entries; list at least two, or name a model in start")
        names = [entry.name for entry in self.classes]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"classes has {twice[0]} {names.count(twice[0])} times; give each class a name of its own")
        bare = [entry.name for entry in self.classes if entry.colour is None]
        if 0 < len(bare) < len(names):
            raise ValueError(f"classes has no colour for {bare[0]}; give every class one, or none")
        if self.start is not None and self.backbone is not None:
            raise ValueError(f"start brings its own encoder, so backbone {self.backbone} has no use; take one out")
        return self


class Pairs(_Settings):
    """Images and their labels: two files, or two folders or patterns matched by name."""

    image: str | list[str] = Field(description="File, folder or pattern; several co-registered sources as a list.")
    label: str = Field(description="Raster, volume, folder, pattern, or vector file with polygons.")
    attribute: str | None = Field(None, description="Attribute of the polygons that holds the class name or value.")
    bands: list[Band] | list[list[Band]] | None = Field(
        None, description="Bands of a raster, counted from 1; of several sources, a list each."
    )

    @model_validator(mode="after")
    def _bands_of_each(self) -> "Pairs":
        told, count = self.bands, 1 if isinstance(self.image, str) else len(self.image)
        if not count:
            raise ValueError("image is an empty list; name at least one source")
        if told is not None:
            nested = [bands for bands in told if isinstance(bands, list)]
            if len(nested) != count if nested else count > 1 or not told:
                raise ValueError(f"bands is {told} for {count} sources; give a list for each, such as [[4, 3, 2], [1]]")
        return self

    @property
    def chosen(self) -> list[tuple[int, ...] | None]:
        """The bands of each source, None for all."""
        if self.bands is None:
            return [None] * (1 if isinstance(self.image, str) else len(self.image))
        nested = [bands for bands in self.bands if isinstance(bands, list)]
        return [tuple(bands) for bands in nested] or [tuple(band for band in self.bands if isinstance(band, int))]


class DataSettings(_Settings):
    """Where windows come from."""

    root: Path = Field(Path("."), description="Folder that relative names start at.")
    train: list[Pairs] = Field(min_length=1)
    validation: list[Pairs] = Field(min_length=1)
    values: dict[int, int] | None = Field(None, description="Label value in the files: class; 0, 1, 2 ... if empty.")
    ignore: list[int] = Field([], description="Label values to leave out, besides nodata and 255.")
    normalise: Literal["fixed", "image"] | None = Field(
        None, description="Statistics of all training data, or an image's; those of `start`, or fixed, if empty."
    )
    window: list[Pixels] = Field([256, 256], min_length=2, max_length=3, description="Pixels an axis, as in an array.")
    balance: Share = Field(0.5, description="Share of windows that are centred on a class drawn evenly.")
    cache: int = Field(2 * 2**30, ge=0, description="Bytes of images that are kept in memory.")
    workers: int = Field(1, ge=0, description="Processes that read and augment.")


class AugmentSettings(_Settings):
    """Random changes of a window; 0 leaves a change out. Chances are per window."""

    flip: list[Literal["x", "y", "z"]] = Field(["x", "y"], description="Axes to mirror.")
    quarter_turns: bool = Field(False, description="Turns by 90 degrees in the plane; needs a square window.")
    rotate: float = Field(0.0, ge=0, le=180, description="Largest angle in degrees, about each axis.")
    scale: list[Positive] = Field([1.0, 1.0], min_length=2, max_length=2, description="Smallest and largest zoom.")
    resample: Share = Field(1.0, description="Chance that a window is rotated and zoomed at all.")
    shift: Share = Field(0.0, description="Chance that a window may reach beyond the image.")
    brightness: float = Field(0.0, ge=0, description="Largest offset, in standard deviations.")
    contrast: float = Field(0.0, ge=0, lt=1, description="Largest change of the factor.")
    gamma: float = Field(0.0, ge=0, description="Largest absolute logarithm of the exponent.")
    noise: float = Field(0.0, ge=0, description="Largest standard deviation of the noise.")
    blur: float = Field(0.0, ge=0, description="Largest sigma in pixels; half the windows stay sharp.")
    band_dropout: Share = Field(0.0, description="Chance that a band is blanked.")
    source_dropout: Share = Field(0.0, description="Chance that one of several sources is missing.")
    cutmix: Share = Field(0.0, description="Chance that a box of another window is pasted in (Yun et al. 2019).")
    settle: Share = Field(0.0, description="Last share of the training without rotation, zoom and blur.")

    @property
    def settled(self) -> "AugmentSettings":
        """Those of that last share: windows have the pixels of the file, as those of a prediction."""
        return self.model_copy(update={"rotate": 0.0, "scale": [1.0, 1.0], "blur": 0.0})


class LossSettings(_Settings):
    """A weighted sum of losses; weights of 0 leave a term out."""

    cross_entropy: float = Field(1.0, ge=0)
    focal: float = Field(0.0, ge=0, description="Lin et al. 2017.")
    gamma: float = Field(2.0, ge=0, description="Exponent of the focal loss.")
    dice: float = Field(1.0, ge=0, description="Milletari et al. 2016.")
    jaccard: float = Field(0.0, ge=0)
    lovasz: float = Field(0.0, ge=0, description="Berman et al. 2018.")
    tversky: float = Field(0.0, ge=0, description="Salehi et al. 2017.")
    alpha: Share = Field(0.3, description="Tversky's weight of false positives; that of misses is 1 - alpha.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: list[Positive] | Literal["balanced"] | None = Field(
        None, description='One a class, or "balanced": 1 / ln(1.02 + share) (Paszke et al. 2016).'
    )
    deep_supervision: float = Field(0.5, ge=0, description="Weight of each coarser level against the next finer one.")

    @model_validator(mode="after")
    def _has_a_term(self) -> "LossSettings":
        if not any((self.cross_entropy, self.focal, self.dice, self.jaccard, self.lovasz, self.tversky)):
            raise ValueError("every loss has weight 0; give cross_entropy, dice or another a weight")
        return self


class OptimiseSettings(_Settings):
    """How weights move."""

    steps: int = Field(2000, ge=1, description="Optimiser steps.")
    batch: int = Field(8, ge=1, description="Windows a device and step.")
    accumulate: int = Field(1, ge=1, description="Batches a step.")
    optimiser: Literal["adamw", "sgd"] = "adamw"
    rate: Positive = 1e-3
    rates: dict[Part, Positive] = Field({}, description="Other learning rates, by part.")
    freeze: list[Part] = Field([], description="Parts that stay as they are.")
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: Share = Field(0.05, description="Share of the steps in which the rate rises.")
    weight_decay: float = Field(1e-2, ge=0)
    momentum: Share = Field(0.9, description="Of SGD.")
    clip: Positive = Field(5.0, description="Largest norm of the gradient.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(0.995, description="Decay of the averaged weights; 0 for none.")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpointing: bool = Field(False, description="Recompute activations to save memory.")


class WatchSettings(_Settings):
    """What happens beside the training."""

    evaluate: int = Field(200, ge=1, description="Steps between validations, which also save a checkpoint.")
    patience: int | None = Field(None, ge=1, description="Validations without progress after which training stops.")
    metric: Literal["mean_iou", "mean_dice", "foreground_dice", "pixel_accuracy"] = "mean_iou"
    report_to: list[Literal["tensorboard", "wandb"]] = []


class SearchSettings(_Settings):
    """Hyper-parameter search with Optuna: `lmseg finetune CONFIG --search`."""

    trials: int = Field(20, ge=1)
    steps: int = Field(500, ge=1, description="Steps a trial.")
    space: dict[str, list[Any]] = Field(
        description='"optimise.rate": [low, high, "log"]; two numbers for a range; else choices.', min_length=1
    )


class CardSettings(_Settings):
    """What the model card says besides what was measured."""

    about: str = Field("", description="What the model is for.")
    licence: str | None = Field(None, description="Of the weights: apache-2.0, cc-by-sa-4.0 ...")
    data: str = Field("", description="Where images and labels come from, and under which terms.")
    limits: str = Field("", description="What it is not for.")
    tags: list[str] = []


class Settings(_Settings):
    """One training."""

    output: Path = Field(description="Folder that receives checkpoints, curves, pictures and the model.")
    seed: int = Field(0, ge=0)
    model: ModelSettings
    data: DataSettings
    augment: AugmentSettings = AugmentSettings()
    loss: LossSettings = LossSettings()
    optimise: OptimiseSettings = OptimiseSettings()
    watch: WatchSettings = WatchSettings()
    search: SearchSettings | None = None
    card: CardSettings = CardSettings()

    @property
    def digest(self) -> str:
        """Changes with everything that changes the weights, and not with where files are."""
        # Without defaults: a setting that a later version adds changes nothing for those who do not use it.
        told = self.model_dump(
            mode="json",
            exclude_defaults=True,
            exclude={"output": True, "search": True, "card": True, "data": {"root", "cache", "workers"}},
        )
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        if self.model.start is None and len(self.data.window) != self.model.ndim:
            raise ValueError(f"data.window {self.data.window} has not the {self.model.ndim} axes of model.ndim")
        if self.model.tile is not None and len(self.model.tile) != len(self.data.window):
            raise ValueError(f"model.tile {self.model.tile} has not the {len(self.data.window)} axes of data.window")
        if "z" in self.augment.flip and len(self.data.window) == 2:
            raise ValueError("augment.flip has z, which images in 2D lack; use x and y")
        weights = self.loss.class_weights
        if isinstance(weights, list) and self.model.classes and len(weights) != len(self.model.classes):
            raise ValueError(f"loss.class_weights has {len(weights)} values for {len(self.model.classes)} classes")
        return self


def read_settings(path: Path, changes: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings in a YAML file, with `changes` ("optimise.rate": 1e-3) put over them.

    Raises ModelError with the file, the key, its value and the fix; for an unknown key, the nearest known one.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); pass a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not YAML ({' '.join(str(error).split())}); mend it.") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds no settings; start with output:, model: and data:.")
    for key, value in (changes or {}).items():
        put(raw, key, value)
    return parse_settings(raw, str(path))


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says; 1e-3 is a number, as people and YAML 1.2 mean it. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # a SafeLoader


def parse_settings(raw: Mapping[str, Any], name: str) -> Settings:
    """Return the settings in a dictionary; `name` is what errors call it. Raises ModelError."""
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields(first["loc"][:-1]), n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(_fields(first['loc'][:-1]))}."
        raise ModelError(f"{name} has the unknown key {key}; {hint}")
    if first["type"] == "missing":
        raise ModelError(f"{name} lacks {key}; add it.")
    reason = first["msg"].removeprefix("Value error, ")
    value = f" {first['input']!r}" if first["type"] != "value_error" else ""
    raise ModelError(f"{name}: {key}{value}: {reason}" if key else f"{name}: {reason}")


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a value of nested settings in place: "optimise.rate", "data.train.0.image". Raises ModelError."""
    place: Any = raw
    path = key.split(".")
    for number, part in enumerate(path):
        last = number == len(path) - 1
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            index: Any = int(part)
        elif isinstance(place, dict):
            index = part
        else:
            raise ModelError(f"{key} leads nowhere: {'.'.join(path[:number])} is {place!r}; mend the name.")
        if last:
            place[index] = value
        elif isinstance(place, dict) and place.get(index) is None:
            place[index] = {}
        place = place[index]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _fields(path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model that a location in the file leads to."""
    model: type[BaseModel] = Settings
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
