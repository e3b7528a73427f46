"""The training loop learns, and its windows stay inside their sample."""

from collections.abc import Callable
from pathlib import Path

import torch

from lmseg_core import LMSegForSemanticSegmentation, LMSegImageProcessor, Predictor
from lmseg_core.training.plain import Sample, batches, random_window, save, train


def coded(size: tuple[int, ...]) -> Sample:
    labels = torch.arange(torch.Size(size).numel()).view(size) % 251
    return Sample(labels[None].float(), labels.to(torch.uint8))


def test_windows_are_cut_and_flipped_alike() -> None:
    for size, tile in (((20, 30), (8, 8)), ((9, 10, 11), (9, 4, 5))):
        images, labels = next(batches([coded(size)], random_window(tile), 6, seed=1))
        assert images.shape == (6, 1, *tile)
        assert torch.equal(images[:, 0], labels.float())


def test_batches_repeat_with_their_seed() -> None:
    first, again = (next(batches([coded((30, 30))], random_window((8, 8)), 4, seed=5))[1] for _ in range(2))
    assert torch.equal(first, again)


def test_training_learns_a_threshold(make_network: Callable[..., LMSegForSemanticSegmentation]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 64, 64)
    sample = Sample(image, (image[0] > 0).to(torch.uint8))
    network = make_network()
    train(network, batches([sample], random_window((16, 16)), 4, seed=0), steps=60, rate=1e-2)
    assert not network.training
    with torch.inference_mode():
        right = (network(image[None]).logits.argmax(1)[0] == sample.labels).float().mean()
    assert right > 0.9


def test_saved_models_are_half_the_size_and_predict_as_measured(
    make_network: Callable[..., LMSegForSemanticSegmentation], tmp_path: Path
) -> None:
    network = make_network(widths=(16, 32))
    save(network, LMSegImageProcessor(mode="image"), tmp_path)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 3 * parameters
    x = torch.randn(1, 2, 16, 16)
    scores = Predictor.from_pretrained(tmp_path, device="cpu").with_statistics([0, 0], [1, 1])(x)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, network(x).logits.softmax(1), atol=1e-5)
