"""The head of the adversarial objective."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from studiogan_guidance.training.adversary import Head


@pytest.mark.parametrize(("hidden", "separates"), [(0, False), (16, True)])
def test_a_hidden_layer_separates_what_a_linear_head_cannot(hidden: int, separates: bool) -> None:
    """Real features lie on both sides of the fakes."""
    torch.manual_seed(0)
    fake = 0.1 * torch.randn(64, 1)
    real = fake + 2 * torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    head = Head(1, torch.ones(()), hidden)
    optimiser = torch.optim.Adam(head.parameters(), 0.05)
    at_first = head(real)
    for _ in range(200):
        loss = F.softplus(-head(real)).mean() + F.softplus(head(fake)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert not at_first.any()
    assert (loss.item() < 0.1) == separates
    assert separates or loss.item() > 1.3  # 2 log 2 = 1.386 is that of a coin


def test_features_are_divided_by_their_unit() -> None:
    torch.manual_seed(0)
    head = Head(4, torch.tensor(3.0))
    torch.nn.init.normal_(head.layers[0].weight)  # type: ignore[arg-type]
    features = torch.randn(5, 4)
    torch.testing.assert_close(head(features), head.layers(features / 3).squeeze(1))
