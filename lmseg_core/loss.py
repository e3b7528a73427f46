"""The training loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice loss, averaged over the pixels that are not ignored.

    logits (B, K, *S) float, labels (B, *S) integer with 255 = ignore. The Dice part (Milletari et al. 2016)
    is over the whole batch and only the classes present in it; if every pixel is ignored the loss is zero.
    """
    classes = logits.shape[1]
    flat = logits.float().movedim(1, -1).flatten(0, -2)  # (B, K, *S) -> (P, K)
    truth = labels.flatten().long()  # (B, *S) -> (P,)
    keep = truth != IGNORE
    if not keep.any():
        return flat.sum() * 0.0
    flat, truth = flat[keep], truth[keep]
    cross_entropy = F.cross_entropy(flat, truth)
    probability = flat.softmax(-1)
    target = F.one_hot(truth, classes).to(probability.dtype)  # (P,) -> (P, K)
    overlap = (probability * target).sum(0)  # (K,)
    dice = 2 * overlap / (probability.sum(0) + target.sum(0)).clamp_min(1e-6)
    present = target.sum(0) > 0
    return cross_entropy + 1 - torch.mean(dice[present])
