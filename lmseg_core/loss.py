"""The training losses. Every one is over the pixels that are not ignored, and over a whole batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

if TYPE_CHECKING:  # at run time the network needs no settings, and so no pydantic
    from lmseg_core.training.settings import LossSettings

IGNORE = 255


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice loss, averaged over the pixels that are not ignored.

    logits (B, K, *S) float, labels (B, *S) integer with 255 = ignore. The Dice part (Milletari et al. 2016)
    is over the whole batch and only the classes present in it; if every pixel is ignored the loss is zero.
    """
    batch = _Batch.compare(logits, labels)
    if batch is None:
        return logits.sum() * 0.0
    return batch.cross_entropy(None, 0.0) + batch.missed(batch.dice)


class SegmentationLoss:
    """The weighted sum of losses that the settings ask for, with deep supervision."""

    def __init__(self, settings: "LossSettings", share: ArrayLike) -> None:
        """share: of each class (K,) among the training pixels, for balanced class weights."""
        self._settings = settings
        self._weights: Tensor | None = None
        if settings.class_weights == "balanced":
            self._weights = torch.as_tensor(1 / np.log(1.02 + np.asarray(share)), dtype=torch.float32)
        elif settings.class_weights is not None:
            self._weights = torch.tensor(settings.class_weights, dtype=torch.float32)

    def __call__(self, logits: Tensor, auxiliary: Sequence[Tensor] | None, labels: Tensor) -> Tensor:
        """Return the loss of logits (B, K, *S) and of auxiliary logits, from finer to coarser, against labels (B, *S).

        Coarser logits are compared with the labels nearest to the centres of their pixels; the levels are averaged with
        weights deep_supervision^level. labels are integer, 255 = ignore; where all are, the loss is 0.
        """
        total, weights, weight = self._level(logits, labels), 1.0, 1.0
        for coarse in auxiliary or ():
            weight *= self._settings.deep_supervision
            if weight:
                total = total + weight * self._level(coarse, reduce_labels(labels, coarse.shape[2:]))
                weights += weight
        return total / weights

    def _level(self, logits: Tensor, labels: Tensor) -> Tensor:
        batch = _Batch.compare(logits, labels)
        if batch is None:
            return logits.sum() * 0.0
        told = self._settings
        weights = None if self._weights is None else self._weights.to(logits.device)
        terms = []
        if told.cross_entropy:
            terms.append(told.cross_entropy * batch.cross_entropy(weights, told.label_smoothing))
        if told.focal:
            terms.append(told.focal * batch.focal(weights, told.gamma))
        if told.dice:
            terms.append(told.dice * batch.missed(batch.dice))
        if told.jaccard:
            terms.append(told.jaccard * batch.missed(batch.jaccard))
        if told.tversky:
            terms.append(told.tversky * batch.missed(batch.tversky(told.alpha)))
        if told.lovasz:
            terms.append(told.lovasz * batch.lovasz())
        return torch.stack(terms).sum()


def reduce_labels(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Return labels (B, *S) at a coarser shape, of the pixels nearest to the centres of the coarse ones.

    An axis of n pixels is reduced by a power of two, and its length rounded up, as the stages of the network do.
    """
    for axis, want in enumerate(shape, 1):
        size = labels.shape[axis]
        step = 1 << (-(-size // want) - 1).bit_length()
        index = torch.arange(want, device=labels.device) * step + step // 2
        labels = labels.index_select(axis, index.clamp_max(size - 1))
    return labels


@dataclass(frozen=True)
class _Batch:
    """A batch with P pixels an image, and what several losses need of it."""

    log_probability: Tensor  # (B, K, P)
    truth: Tensor  # (B, P) int64, 0 where ignored
    keep: Tensor | None  # (B, P) float32, 0 where ignored; None where nothing is, which saves many passes
    log_true: Tensor  # (B, P) log-probability of the true class, 0 where ignored
    actual: Tensor  # (K,) pixels of each class

    @classmethod
    def compare(cls, logits: Tensor, labels: Tensor) -> "_Batch | None":
        """Return logits (B, K, *S) beside labels (B, *S); None if every pixel is ignored."""
        log_probability = logits.float().flatten(2).log_softmax(1)  # (B, K, *S) -> (B, K, P)
        truth = labels.flatten(1).long()  # (B, *S) -> (B, P)
        counts = torch.bincount(truth.flatten(), minlength=IGNORE + 1)
        kept = truth.numel() - int(counts[IGNORE])
        if not kept:
            return None
        keep = None
        if kept < truth.numel():
            ignored = truth == IGNORE
            keep, truth = (~ignored).float(), truth.masked_fill(ignored, 0)
        log_true = log_probability.gather(1, truth[:, None])[:, 0]  # (B, K, P) -> (B, P)
        return cls(
            log_probability,
            truth,
            keep,
            log_true if keep is None else log_true * keep,
            counts[: logits.shape[1]].to(log_true.dtype),
        )

    @cached_property
    def probability(self) -> Tensor:
        """Probability of each class (B, K, P)."""
        return self.log_probability.exp()

    @cached_property
    def sums(self) -> tuple[Tensor, Tensor]:
        """Sums (K,) of a class's probability over the pixels where it is true, and over all that are kept."""
        true = self.log_true.exp()
        if self.keep is None:
            predicted = self.probability.sum((0, 2))
        else:
            true = true * self.keep
            # Not as a matrix product: autocast would add up millions of pixels in bfloat16.
            predicted = (self.probability * self.keep[:, None]).sum((0, 2))
        return torch.zeros_like(self.actual).index_add(0, self.truth.flatten(), true.flatten()), predicted

    def cross_entropy(self, weights: Tensor | None, smoothing: float) -> Tensor:
        """Return the cross-entropy, weighted by the true class, with labels smoothed as in torch's."""
        loss = -self._mean(self.log_true, weights)
        if not smoothing:
            return loss
        every = self.log_probability if weights is None else self.log_probability * weights[:, None]
        spread = every.sum(1) if self.keep is None else every.sum(1) * self.keep  # (B, K, P) -> (B, P)
        even = -spread.sum() / (self.actual if weights is None else self.actual * weights).sum()
        return (1 - smoothing) * loss + smoothing / len(self.actual) * even

    def focal(self, weights: Tensor | None, gamma: float) -> Tensor:
        """Return the cross-entropy with each pixel weighted by (1 - p)^gamma (Lin et al. 2017)."""
        # An exponent below 1 has an infinite slope at 0.
        doubt = (1 - self.log_true.exp()).clamp_min(1e-6)
        return -self._mean(doubt**gamma * self.log_true, weights)

    @cached_property
    def present(self) -> tuple[Tensor, Tensor, Tensor]:
        """Overlap, predicted and actual pixels (P,) of the classes that are present."""
        # Chosen before they are divided: of an absent class all may be 0, and a mask after 0 / 0 keeps its gradient.
        overlap, predicted = self.sums
        here = self.actual > 0
        return overlap[here], predicted[here], self.actual[here]

    @property
    def dice(self) -> Tensor:
        """Soft Dice coefficient (P,) of the classes that are present (Milletari et al. 2016)."""
        overlap, predicted, actual = self.present
        return 2 * overlap / (predicted + actual)

    @property
    def jaccard(self) -> Tensor:
        """Soft intersection over union (P,) of the classes that are present."""
        overlap, predicted, actual = self.present
        return overlap / (predicted + actual - overlap)

    def tversky(self, alpha: float) -> Tensor:
        """Soft Tversky index (P,) of the classes that are present (Salehi et al. 2017).

        alpha weights false positives, 1 - alpha misses.
        """
        overlap, predicted, actual = self.present
        # The overlap of a class may be 0 where alpha is 1: then so is its index.
        whole = overlap + alpha * (predicted - overlap) + (1 - alpha) * (actual - overlap)
        return overlap / whole.clamp_min(torch.finfo(whole.dtype).tiny)

    @staticmethod
    def missed(score: Tensor) -> Tensor:
        """Return the mean of 1 - score (P,)."""
        return 1 - score.mean()

    def lovasz(self) -> Tensor:
        """Return the Lovasz-softmax loss over the classes that are present (Berman et al. 2018, algorithm 1)."""
        probability = self.probability.movedim(1, 0).flatten(1)  # (B, K, P) -> (K, B P)
        truth = self.truth.flatten()
        if self.keep is not None:
            kept = self.keep.flatten() > 0
            probability, truth = probability[:, kept], truth[kept]
        losses = []
        for value in torch.nonzero(self.actual)[:, 0].tolist():
            foreground = truth == value
            errors, order = (foreground.float() - probability[value]).abs().sort(descending=True)
            losses.append((errors * _steps(foreground[order])).sum())
        return torch.stack(losses).mean()

    def _mean(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """Return the mean of values (B, P), which are 0 where ignored, weighted by the true class (K,)."""
        if weights is None:
            return values.sum() / self.actual.sum()
        return (values * weights[self.truth]).sum() / (self.actual * weights).sum()


def _steps(foreground: Tensor) -> Tensor:
    """Return by how much each pixel of a sorted foreground (N,) adds to the Jaccard loss once it is wrong too."""
    hit = foreground.cumsum(0)  # integers: float32 stops counting at 16.7 million
    missing = hit[-1] - hit
    union = hit[-1] + (~foreground).cumsum(0)
    jaccard = 1 - missing / union
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))
