"""The averaged weights, against the sum by hand."""

from pathlib import Path

import torch
from torch import nn

from lmseg_core.training.average import Average


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return net


def test_it_is_the_moving_average_of_what_moves() -> None:
    net = network()
    average = Average(net, 0.9)
    expected = net[2].weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            net[2].weight.add_(torch.randn(2, 4))
            net[1].running_mean.add_(1)
        average.update(net)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[2].weight.detach()
    last, seen = net[2].weight.detach().clone(), net[1].running_mean.clone()
    with average.swapped(net):
        torch.testing.assert_close(net[2].weight.detach(), expected)
        assert bool((net[1].running_mean < seen).all())
    assert torch.equal(net[2].weight, last)
    assert torch.equal(net[1].running_mean, seen)


def test_what_is_frozen_is_not_copied_and_a_file_goes_on(tmp_path: Path) -> None:
    net = network()
    average = Average(net, 0.9)
    average.update(net)
    average.save(tmp_path / "a.safetensors")
    again = Average(network(), 0.9)
    again.load(tmp_path / "a.safetensors", 1)
    for one in (average, again):
        with torch.no_grad():
            net[2].weight.fill_(1)
        one.update(net)
    with average.swapped(net):
        first = {name: value.clone() for name, value in net.state_dict().items()}
    with again.swapped(net):
        assert all(torch.equal(first[name], value) for name, value in net.state_dict().items())
    from safetensors.torch import load_file

    assert not any(name.startswith("0.") for name in load_file(tmp_path / "a.safetensors"))


def test_an_error_gives_the_weights_back() -> None:
    net = network()
    average = Average(net, 0.5)
    with torch.no_grad():
        net[2].weight.fill_(7)
    try:
        with average.swapped(net):
            raise KeyError
    except KeyError:
        pass
    assert bool((net[2].weight == 7).all())
