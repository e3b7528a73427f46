"""The convolution blocks that encoder and decoder share, for any number of spatial axes."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Conv3d(nn.Conv3d):
    """A 3D convolution that oneDNN computes on a CPU also where torch would not: on one small window at a time.

    torch keeps such windows for a loop of its own, which takes two to five times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not _is_plain(input):
            return super().forward(input)
        assert not isinstance(self.padding, str)
        return torch.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def _is_plain(x: Tensor) -> bool:
    """Whether oneDNN may take x as it is: float32 on a CPU, and wanted so."""
    on_cpu = x.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return on_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
# Batch norm uses fixed statistics at inference. Group and instance norm would look at the tile and leave
# seams.
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Residual(nn.Module):
    """Two 3-wide convolutions with a shortcut (He et al. 2016): (B, in, *S) -> (B, out, *S)."""

    def __init__(self, ndim: int, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv1 = CONV[ndim](in_width, out_width, 3, padding=1, bias=False)
        self.norm1 = NORM[ndim](out_width)
        self.conv2 = CONV[ndim](out_width, out_width, 3, padding=1, bias=False)
        self.norm2 = NORM[ndim](out_width)
        self.shortcut = nn.Identity() if in_width == out_width else CONV[ndim](in_width, out_width, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)  # in place: of the finest stage each array is as large as the window's features
        return cast(Tensor, self.act(y))

    def fold(self) -> None:
        """Take the norms into the convolutions, for inference: what they do to a pixel is fixed then."""
        for conv, norm in (("conv1", "norm1"), ("conv2", "norm2")):
            setattr(self, conv, fuse_conv_bn_eval(getattr(self, conv), getattr(self, norm)))
            setattr(self, norm, nn.Identity())
        self.act = nn.ReLU(inplace=True)


def fold(network: nn.Module) -> None:
    """Take all norms of a network into its convolutions, for inference."""
    for module in network.modules():
        if isinstance(module, Residual):
            module.fold()


class Stages(nn.Module):
    """A module that can forget what its stages hold and compute it again on the way back (Chen et al. 2016)."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]  # transformers sets both

    def run(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Return stage(x)."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(_Once(stage), x)
        return cast(Tensor, stage(x))


class _Once:
    """A stage whose norm layers count a batch once in their statistics, though it is computed again on the way back."""

    def __init__(self, stage: nn.Module) -> None:
        self._stage = stage
        self._counted = False

    def __call__(self, x: Tensor) -> Tensor:
        if not self._counted:
            self._counted = True
            return cast(Tensor, self._stage(x))
        norms = [module for module in self._stage.modules() if isinstance(module, _BatchNorm)]
        statistics = [dict(norm.named_buffers(recurse=False)) for norm in norms]
        try:
            for norm, own in zip(norms, statistics, strict=True):
                norm._buffers.update({name: value.clone() for name, value in own.items()})
            return cast(Tensor, self._stage(x))
        finally:
            for norm, own in zip(norms, statistics, strict=True):
                norm._buffers.update(own)


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Interpolate (B, C, *S) linearly to (B, C, *size); the centres of the cells stay where they are."""
    if _is_same(tuple(x.shape[2:]), size):
        return x
    return nn.functional.interpolate(x, size, mode=LINEAR[x.ndim - 2], align_corners=False)


def _is_same(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes are equal; while exporting, whether they are so for all sizes that are free."""
    if not torch.compiler.is_exporting():
        return size == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(a == b) for a, b in zip(size, other, strict=True))
