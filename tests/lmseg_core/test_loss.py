"""The losses against numpy, torch, MONAI and what their papers say."""

import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmseg_core.loss import IGNORE, SegmentationLoss, reduce_labels, segmentation_loss
from lmseg_core.training.settings import LossSettings

TERMS = ("cross_entropy", "focal", "dice", "jaccard", "lovasz", "tversky")


def _only(term: str, **changes: object) -> Callable[[Tensor, Tensor], Tensor]:
    """Return one term alone, with weight 1."""
    settings = LossSettings.model_validate({"cross_entropy": 0, "dice": 0, term: 1, **changes})
    loss = SegmentationLoss(settings, [0.2, 0.3, 0.4, 0.1])
    return lambda logits, labels: loss(logits, None, labels)


def _batch(shape: tuple[int, ...] = (2, 5, 6), classes: int = 4, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Return random logits (B, K, *S) float64 and labels (B, *S) uint8, whose last class is absent."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes - 1, shape)
    labels[rng.random(shape) < ignored] = IGNORE
    logits = torch.from_numpy(rng.normal(size=(shape[0], classes, *shape[1:])))
    return logits, torch.from_numpy(labels.astype(np.uint8))


def _kept(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels that count as one image (1, K, N) and (1, N)."""
    keep = labels != IGNORE
    return logits.movedim(1, -1)[keep].T[None], labels[keep].long()[None]


def test_cross_entropy_and_dice_over_what_is_not_ignored() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5))
    labels = rng.integers(0, 2, (2, 4, 5))  # class 2 is absent: its Dice does not count
    labels[0, :2] = 255
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = np.moveaxis(probability, 1, -1)[labels != 255]
    t = labels[labels != 255]
    cross_entropy = -np.log(p[np.arange(len(t)), t]).mean()
    dice = [2 * p[t == k, k].sum() / (p[:, k].sum() + (t == k).sum()) for k in (0, 1)]
    expected = cross_entropy + 1 - np.mean(dice)
    plain = segmentation_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(float(plain), expected, rtol=1e-5)
    settings = SegmentationLoss(LossSettings(), [1, 1, 1])
    np.testing.assert_allclose(
        float(settings(torch.from_numpy(logits), None, torch.from_numpy(labels))), expected, rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0]])
def test_cross_entropy_is_torchs(
    shape: tuple[int, ...], ignored: float, smoothing: float, weights: list[float] | None
) -> None:
    logits, labels = _batch(shape, ignored=ignored)
    expected = F.cross_entropy(
        logits,
        labels.long(),
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    loss = _only("cross_entropy", class_weights=weights, label_smoothing=smoothing)(logits, labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_balanced_weights_are_those_of_enet() -> None:
    logits, labels = _batch()
    weights = [1 / np.log(1.02 + share) for share in (0.2, 0.3, 0.4, 0.1)]
    balanced = _only("cross_entropy", class_weights="balanced")(logits, labels)
    torch.testing.assert_close(balanced, _only("cross_entropy", class_weights=weights)(logits, labels))


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_overlaps_and_focal_are_monais(ignored: float) -> None:
    losses = pytest.importorskip("monai.losses")
    logits, labels = _batch(ignored=ignored)
    pixels, truth = _kept(logits, labels)
    target = F.one_hot(truth, 4).movedim(-1, 1).double()
    present = slice(0, 3)  # MONAI also counts the class that is absent
    overlap = {"softmax": True, "batch": True, "smooth_nr": 0, "smooth_dr": 0, "reduction": "none"}
    for term, changes, peer in (
        ("dice", {}, losses.DiceLoss(**overlap)),
        ("jaccard", {}, losses.DiceLoss(jaccard=True, **overlap)),
        ("tversky", {"alpha": 0.2}, losses.TverskyLoss(alpha=0.2, beta=0.8, **overlap)),
    ):
        expected = peer(pixels, target).flatten()[present].mean()
        torch.testing.assert_close(_only(term, **changes)(logits, labels).double(), expected, rtol=1e-5, atol=1e-6)
    focal = losses.FocalLoss(gamma=1.5, use_softmax=True, reduction="none")(pixels, target).sum(1).mean().double()
    torch.testing.assert_close(_only("focal", gamma=1.5)(logits, labels).double(), focal, rtol=1e-5, atol=1e-6)


def test_focal_without_its_exponent_is_cross_entropy() -> None:
    weights = [1.0, 2.0, 0.5, 3.0]
    focal = _only("focal", gamma=0, class_weights=weights)(*_batch())
    torch.testing.assert_close(focal, _only("cross_entropy", class_weights=weights)(*_batch()))


def test_tversky_of_equal_errors_is_dice() -> None:
    torch.testing.assert_close(_only("tversky", alpha=0.5)(*_batch()), _only("dice")(*_batch()))


@pytest.mark.parametrize("term", ["jaccard", "lovasz"])
def test_of_a_hard_prediction_is_one_minus_iou(term: str) -> None:
    # Berman et al. 2018, section 2: the extension agrees with the Jaccard loss where the prediction is hard.
    _, labels = _batch()
    predicted = torch.from_numpy(np.random.default_rng(1).integers(0, 3, labels.shape))
    logits = 100.0 * F.one_hot(predicted, 4).movedim(-1, 1).float()
    keep = labels != IGNORE
    iou = [
        ((predicted == k) & (labels == k))[keep].sum() / ((predicted == k) | (labels == k))[keep].sum()
        for k in range(3)
    ]
    torch.testing.assert_close(_only(term)(logits, labels), 1 - torch.stack(iou).mean())


def test_lovasz_is_the_extension_of_the_jaccard_loss() -> None:
    # The integral over thresholds t of the Jaccard loss of the set {error >= t} (Lovasz 1983).
    logits, labels = _batch((1, 12), classes=2, ignored=0)
    labels[0, :5] = 1
    probability = logits.softmax(1)
    expected = []
    for k in (0, 1):
        truth = (labels[0] == k).numpy()
        errors = np.abs(truth - probability[0, k].numpy())
        cuts = np.concatenate([[0], np.sort(errors)])
        integral = 0.0
        for low, high in itertools.pairwise(cuts):
            wrong = errors >= high
            integral += (high - low) * wrong.sum() / (wrong | truth).sum()
        expected.append(integral)
    np.testing.assert_allclose(float(_only("lovasz")(logits, labels)), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_those_of_finite_differences(term: str) -> None:
    logits, labels = _batch()
    logits, loss = logits.float().requires_grad_(), _only(term, gamma=0.5)
    (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
    assert not gradient.movedim(1, -1)[labels == IGNORE].any()
    rng = np.random.default_rng(2)
    for _ in range(3):
        direction = torch.from_numpy(rng.normal(size=logits.shape)).float()
        with torch.no_grad():
            difference = loss(logits + 0.01 * direction, labels) - loss(logits - 0.01 * direction, labels)
        torch.testing.assert_close((gradient * direction).sum(), difference / 0.02, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("term", TERMS)
def test_falls_when_followed(term: str) -> None:
    logits, labels = _batch()
    logits, loss = logits.float().requires_grad_(), _only(term)
    before = loss(logits, labels)
    (gradient,) = torch.autograd.grad(before, logits)
    assert torch.isfinite(gradient).all()
    assert loss(logits - gradient, labels) < before


def test_is_a_weighted_sum() -> None:
    logits, labels = _batch()
    weights = {term: 0.5 + i for i, term in enumerate(TERMS)}
    together = SegmentationLoss(LossSettings.model_validate(weights), [1, 1, 1, 1])(logits, None, labels)
    apart = [weight * _only(term)(logits, labels) for term, weight in weights.items()]
    torch.testing.assert_close(together, torch.stack(apart).sum())


def test_coarser_levels_weigh_less() -> None:
    logits, labels = _batch((2, 8, 6))
    coarse = [torch.randn(2, 4, 4, 3), torch.randn(2, 4, 2, 2)]
    loss = SegmentationLoss(LossSettings(deep_supervision=0.5), [1, 1, 1, 1])
    levels = [
        loss(logits, None, labels),
        loss(coarse[0], None, labels[:, 1::2, 1::2]),
        loss(coarse[1], None, labels[:, 2::4, [2, 5]]),
    ]
    expected = (levels[0] + 0.5 * levels[1] + 0.25 * levels[2]) / 1.75
    torch.testing.assert_close(loss(logits, coarse, labels), expected)
    without = SegmentationLoss(LossSettings(deep_supervision=0), [1, 1, 1, 1])
    torch.testing.assert_close(without(logits, coarse, labels), levels[0])


@pytest.mark.parametrize(("size", "step"), [(8, 2), (9, 2), (35, 8), (5, 8), (7, 1), (40, 4)])
def test_labels_are_reduced_as_the_stages_are(size: int, step: int) -> None:
    labels = torch.arange(size)[None].expand(1, size)
    reduced = reduce_labels(labels, [-(-size // step)])
    blocks = [range(start, min(start + step, size)) for start in range(0, size, step)]
    assert all(value in block for value, block in zip(reduced[0].tolist(), blocks, strict=True))


@pytest.mark.parametrize("term", TERMS)
def test_is_zero_with_a_gradient_where_all_is_ignored(term: str) -> None:
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    loss = _only(term)(logits, torch.full((2, 5, 6), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("term", TERMS)
def test_stays_exact_under_autocast(term: str) -> None:
    logits, labels = _batch()
    with torch.autocast("cpu", torch.bfloat16):
        rough = _only(term)(logits, labels)
    torch.testing.assert_close(rough, _only(term)(logits, labels))


def test_needs_no_settings_library() -> None:
    code = "import sys, lmseg_core.loss; assert not {'pydantic', 'yaml', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("term", TERMS)
def test_a_finite_loss_has_a_finite_gradient(term: str, ignored: float) -> None:
    """Of the absent class no probability is left, and of a present one neither: their scores are 0 / 0 and 0."""
    logits, labels = _batch(ignored=ignored)
    logits = logits.float()
    logits[:, 3] -= 1e4
    logits[:, 2] -= 1e4
    for changes in ({}, {"alpha": 1.0}, {"alpha": 0.0}) if term == "tversky" else ({},):
        values = logits.clone().requires_grad_()
        loss = _only(term, **changes)(values, labels)
        loss.backward()
        assert torch.isfinite(loss)
        assert values.grad is not None
        assert torch.isfinite(values.grad).all()
