"""The loss against its parts worked out in numpy."""

import numpy as np
import torch

from lmseg_core.loss import segmentation_loss


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
    loss = segmentation_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(float(loss), cross_entropy + 1 - np.mean(dice), rtol=1e-5)
