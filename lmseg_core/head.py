"""The open head: a pixel belongs to the class whose name its embedding points to."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAU = 2.0  # exp(2) is a mild contrast between cosines; CLIP ends near exp(4.6)


class TextHead(nn.Module):
    """exp(tau) cos(pixel, P(class name)) + b_k (Li et al. 2022, LSeg; Radford et al. 2021): (B, E, *S) -> (B, K, *S).

    The class embeddings (K, D) are stored and not trained; `set_classes` of the network replaces them.
    """

    def __init__(self, width: int, size: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, width, bias=False)
        self.tau = nn.Parameter(torch.tensor(TAU))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.embeddings: Tensor
        self.register_buffer("embeddings", torch.zeros(classes, size))

    def forward(self, x: Tensor) -> Tensor:
        names = F.normalize(self.project(self.embeddings), dim=1)  # (K, D) -> (K, E)
        pixels = F.normalize(x, dim=1)  # (B, E, *S)
        view = (1, -1, *[1] * (x.ndim - 2))
        cosine = torch.einsum("be...,ke->bk...", pixels, names)  # -> (B, K, *S)
        return self.tau.exp() * cosine + self.bias.view(view)

    def replace(self, embeddings: Tensor, kept: list[int | None]) -> None:
        """Take other classes (K', D); one that was class `kept[k]` before keeps its bias, a new one gets the mean."""
        old = self.bias.detach()
        bias = torch.stack([old.mean() if index is None else old[index] for index in kept])
        self.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)
        self.embeddings = embeddings.to(self.embeddings)
