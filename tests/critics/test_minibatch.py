from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from studiogan_guidance.critics.minibatch import MinibatchPeers


class MinibatchStdLayer(nn.Module):
    """As StyleGAN2's, by hand: every image gets the standard deviation of its (strided) group as one more number."""

    def __init__(self, group_size: int | None) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        size = self.group_size or len(x)
        groups = x.reshape(size, -1, *x.shape[1:])
        spread = groups.std(0, unbiased=False).flatten(1).mean(1)
        return torch.cat([x, spread.repeat(size)[:, None]], 1)


def network(group_size: int | None) -> Any:
    return nn.Sequential(nn.Linear(3, 2), MinibatchStdLayer(group_size))


@pytest.mark.parametrize(("group_size", "count"), [(2, 1), (4, 3), (None, 3)])
def test_each_image_forms_a_group_with_the_peers_alone(group_size: int | None, count: int) -> None:
    net = network(group_size)
    peers = MinibatchPeers(net)
    assert peers.count == count
    images, others = torch.randn(5, 3), torch.randn(count, 3)
    peers.fix(count, lambda: net(others.repeat(4, 1)))

    with torch.no_grad():
        with peers.joined(5):
            together = net(images)
        assert together.shape == (5, 3)
        for image, row in zip(images, together):
            alone = network(count + 1)
            alone[0] = net[0]
            torch.testing.assert_close(row, alone(torch.cat([image[None], others]))[0])

    assert net[1].group_size == group_size
    assert not net[1]._forward_hooks
    assert not net[1]._forward_pre_hooks


def test_the_layer_is_left_as_it_was_when_the_pass_fails() -> None:
    net = network(4)
    peers = MinibatchPeers(net)
    peers.fix(3, lambda: net(torch.randn(4, 3)))
    with pytest.raises(RuntimeError), peers.joined(5):
        net(torch.randn(5, 99))
    assert net[1].group_size == 4
    assert not net[1]._forward_hooks


def test_without_peers_or_without_the_layer_nothing_happens() -> None:
    net = network(5)
    images = torch.randn(5, 3)
    with MinibatchPeers(net).joined(5):
        assert torch.equal(net(images), net(images))
    plain = nn.Linear(3, 2)
    peers = MinibatchPeers(plain)
    assert peers.count == 0
    with peers.joined(5):
        assert torch.equal(plain(images), plain(images))
