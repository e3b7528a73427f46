"""Adapters: what of the language model's blocks is trained, and how that is saved and folded in.

The rest of the bridge (norm, enter, scale, leave, gate, prefix, context) is always trained, and saved with them.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmseg_core.bridge import Bridge, Tokens
from lmseg_core.errors import ModelError

if TYPE_CHECKING:
    from lmseg_core.model import LMSegForSemanticSegmentation

METHODS = ("frozen", "lora", "dora", "adalora", "adapter", "prefix", "full")
WEIGHTS = "adapter.safetensors"
RECORD = "adapter.json"
_PEFT = ("lora", "dora", "adalora")
# The last linear layer of the attention and of the MLP, in BERT, GPT-2 and Llama.
_OUTPUTS = (
    "attention.output.dense",
    "output.dense",
    "attn.c_proj",
    "mlp.c_proj",
    "self_attn.o_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """How the blocks of the language model are trained.

    method: "frozen"; "full"; "lora" (Hu et al. 2022); "dora" (Liu et al. 2024); "adalora" (Zhang et al. 2023, which
    needs total_steps, the optimiser steps to come); "adapter" (bottlenecks, Houlsby et al. 2019); "prefix" (Li &
    Liang 2021). rank: of the update, or width of the bottleneck, or number of prefix tokens. alpha / rank scales the
    update of LoRA and DoRA, alpha / (first rank) that of AdaLoRA. Raises ModelError.
    """

    method: str
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ModelError(f'adapter has method "{self.method}"; use {", ".join(METHODS)}.')
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ModelError(f"adapter has rank {self.rank} and dropout {self.dropout}; give rank >= 1, dropout < 1.")
        if self.method == "adalora" and (self.total_steps is None or self.total_steps < 4):
            raise ModelError(
                f"adapter adalora has total_steps {self.total_steps}; give the number of steps, at least 4."
            )


class Bottleneck(nn.Module):
    """A linear layer and, on its output, a residual bottleneck that starts at zero: (B, N, a) -> (B, N, b)."""

    def __init__(self, base: nn.Module, width: int, adapter: Adapter) -> None:
        super().__init__()
        self.base = base
        self.adapter_down = nn.Linear(width, adapter.rank)
        self.adapter_up = nn.Linear(adapter.rank, width)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(adapter.dropout)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return cast(Tensor, y + self.adapter_up(self.dropout(self.act(self.adapter_down(y)))))


def adapt(model: "LMSegForSemanticSegmentation", adapter: Adapter) -> None:
    """Put an adapter on the language model's blocks, in place, and set what is trained.

    The configuration records it, so that the saved network is rebuilt with it. Raises ModelError where there is no
    language model, or an adapter already.
    """
    bridge = _bridge(model)
    if model.config.lm_adapter is not None:
        raise ModelError(f"the network already has the adapter {model.config.lm_adapter}; merge it or load it anew.")
    had_prefix = bridge.prefix is not None
    inject(bridge, adapter)
    if not had_prefix:
        bridge.match_prefix()
    model.config.lm_adapter = asdict(adapter)


def inject(bridge: Bridge, adapter: Adapter) -> None:
    """Change the blocks of a bridge to those with the adapter, and set what is trained."""
    if adapter.method in _PEFT:
        _inject_peft(bridge, adapter)
    elif adapter.method == "adapter":
        for block in bridge.blocks:
            _inject_bottlenecks(block, adapter)
    elif adapter.method == "prefix" and bridge.prefix is None:  # lm_prefix may have made them
        bridge.prefix = Tokens(adapter.rank, bridge.enter.out_features).to(bridge.enter.weight)
    freeze(bridge, adapter)


def freeze(bridge: Bridge, adapter: Adapter) -> None:
    """Let only what the adapter trains of the blocks have a gradient."""
    marks = _marks(adapter.method)
    for name, parameter in bridge.blocks.named_parameters(prefix="blocks"):
        # The number of ranks is a parameter only so that it is saved.
        parameter.requires_grad_(any(mark in name for mark in marks) and ".ranknum." not in name)


def update_rank(model: "LMSegForSemanticSegmentation", step: int) -> None:
    """Let AdaLoRA move its ranks to where they matter; for other methods nothing happens.

    To be called in every step after the optimiser's and before the gradients are cleared; `step` counts from 1.
    """
    for tuner in _bridge(model).allocator:
        settings, ranks = tuner.peft_config["default"], tuner.rankallocator
        if step >= settings.total_step - settings.tfinal and not (settings.rank_pattern or ranks.exp_avg_ipt):
            # A run that goes on after its last allocation: what was cut is what is zero.
            parameters = _parameters(tuner.model, "lora_E")
            settings.rank_pattern = {name: (value != 0).flatten().tolist() for name, value in parameters.items()}
            ranks.mask_using_rank_pattern(tuner.model, settings.rank_pattern)
        else:
            tuner.update_and_allocate(step)


def ranks(model: "LMSegForSemanticSegmentation") -> dict[str, int]:
    """Return the rank that AdaLoRA has left each layer of the blocks; empty for other methods."""
    return {
        name.split(".lora_E.")[0]: int((value != 0).sum())
        for name, value in _parameters(_bridge(model).blocks, "lora_E").items()
    }


def is_rank(name: str) -> bool:
    """Return whether a weight is AdaLoRA's of the ranks of a layer, where 0 is a rank that was cut."""
    return ".lora_E." in name


def orthogonality(model: "LMSegForSemanticSegmentation") -> Tensor:
    """Return how far AdaLoRA's factors are from orthogonal, to be added to the loss times 0.5 (Zhang et al. 2023)."""
    blocks = _bridge(model).blocks
    wide, tall = _parameters(blocks, "lora_A").values(), _parameters(blocks, "lora_B").values()
    grams = [a @ a.T for a in wide] + [b.T @ b for b in tall]  # each (r, r)
    return torch.stack([torch.linalg.norm(gram - torch.eye(len(gram)).to(gram)) for gram in grams]).mean()


def merge(model: "LMSegForSemanticSegmentation") -> None:
    """Fold LoRA, DoRA or AdaLoRA into plain weights, in place; the network then needs no peft. Others stay."""
    if (model.config.lm_adapter or {}).get("method") not in _PEFT:
        return
    bridge = _bridge(model)
    for name, module in list(bridge.blocks.named_modules()):
        if hasattr(module, "get_base_layer"):
            cast(Any, module).merge()
            bridge.blocks.set_submodule(name, cast(Any, module).get_base_layer())
    bridge.allocator = ()
    model.config.lm_adapter = None


def save_adapter(model: "LMSegForSemanticSegmentation", folder: str | Path) -> None:
    """Write the adapter and the rest of the bridge, without the language model's own weights, and a list of both.

    `adapter.safetensors` holds the tensors and `adapter.json` the method and their names. Raises ModelError where
    the network has no adapter.
    """
    bridge = _bridge(model)
    if model.config.lm_adapter is None:
        raise ModelError("the network has no adapter to save; put one on with adapt(model, Adapter(...)).")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in _own(bridge, model.config.lm_adapter["method"]).items()}
    save_file(tensors, path / WEIGHTS)
    record = {"adapter": model.config.lm_adapter, "tensors": sorted(tensors)}
    (path / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def load_adapter(model: "LMSegForSemanticSegmentation", folder: str | Path) -> None:
    """Put a saved adapter onto the network it was trained on, in place. Raises ModelError where it does not fit."""
    path, bridge = Path(folder), _bridge(model)
    try:
        record = json.loads((path / RECORD).read_text())
        tensors, adapter = load_file(path / WEIGHTS), Adapter(**record["adapter"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{path} holds no adapter ({error}); write one with save_adapter.") from None
    if model.config.lm_adapter is None:
        adapt(model, adapter)
    elif model.config.lm_adapter != asdict(adapter):
        raise ModelError(f"{path} holds {asdict(adapter)}; the network already has {model.config.lm_adapter}.")
    mine = _own(bridge, adapter.method)
    wrong = [name for name in sorted({*mine, *tensors}) if _shape(mine, name) != _shape(tensors, name)]
    if wrong:
        raise ModelError(
            f"{path / WEIGHTS} has {wrong[0]} of shape {_shape(tensors, wrong[0])}, the network of "
            f"{_shape(mine, wrong[0])}; load it onto the network that it was trained on."
        )
    bridge.load_state_dict(tensors, strict=False)


def _bridge(model: "LMSegForSemanticSegmentation") -> Bridge:
    if model.bridge is None or model.config.bridge != "language":
        raise ModelError(f'the network has bridge "{model.config.bridge}"; adapters need a language model.')
    return model.bridge


def _parameters(blocks: nn.Module, part: str) -> dict[str, Tensor]:
    return {name: value for name, value in blocks.named_parameters() if f".{part}." in name}


def _marks(method: str) -> tuple[str, ...]:
    return ("blocks.",) if method == "full" else (".lora_", ".ranknum.", ".adapter_down.", ".adapter_up.")


def _own(bridge: Bridge, method: str) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in bridge.state_dict().items()
        if not name.startswith(("blocks.", "rotary.")) or any(mark in name for mark in _marks(method))
    }


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _inject_bottlenecks(block: nn.Module, adapter: Adapter) -> None:
    for name in _OUTPUTS:
        try:
            base = block.get_submodule(name)
        except AttributeError:
            continue
        weight = cast(Tensor, base.weight)
        width = weight.shape[1] if isinstance(base, Conv1D) else weight.shape[0]
        block.set_submodule(name, Bottleneck(base, width, adapter).to(weight))


def _inject_peft(bridge: Bridge, adapter: Adapter) -> None:
    try:
        import peft
    except ImportError:
        raise ModelError(
            f"the adapter {adapter.method} needs peft, which is not installed; pip install 'lmseg[train]'."
        ) from None
    linear = {name: module for name, module in bridge.blocks.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    shared: dict[str, Any] = {
        "target_modules": list(linear),
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in linear.values()),
    }
    if adapter.method != "adalora":
        config = peft.LoraConfig(r=adapter.rank, use_dora=adapter.method == "dora", **shared)
        peft.inject_adapter_in_model(config, bridge.blocks)
        return
    assert adapter.total_steps is not None
    # It begins with half as much rank again as it ends with, as the paper does.
    schedule = peft.AdaLoraConfig(
        init_r=adapter.rank + max(1, adapter.rank // 2),
        target_r=adapter.rank,
        tinit=adapter.total_steps // 10,
        tfinal=adapter.total_steps // 4,
        deltaT=max(1, adapter.total_steps // 100),
        total_step=adapter.total_steps,
        **shared,
    )
    bridge.allocator = (cast(Any, peft.AdaLoraModel)(bridge.blocks, schedule, "default"),)
