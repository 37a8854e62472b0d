import pytest
import torch
from conftest import ToyGAN
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView


def test_anyone_can_recompute_image_i(toy: ToyGAN, toy_view: LatentView) -> None:
    images = torch.cat([s.images for s in samplers.create("plain").stream(toy_view, range(40, 46), 4, LabelPlan())])
    for i in range(6):
        g = torch.Generator().manual_seed(40 + i)
        z = torch.randn(toy.z_dim, generator=g)
        label = torch.randint(toy.classes, (), generator=g)
        by_hand = toy.mean + z @ toy.A + toy.b[label] + (z @ toy.Q) * toy.d[label]
        torch.testing.assert_close(images[i].flatten(), by_hand, atol=1e-5, rtol=0)


def test_chosen_classes_go_round_and_data_weights_are_followed(toy_view: LatentView) -> None:
    def labels(plan: LabelPlan, count: int) -> list[int]:
        stream = samplers.create("plain").stream(toy_view, range(count), 7, plan)
        return torch.cat([samples.labels for samples in stream]).tolist()

    assert labels(LabelPlan(classes=(3, 1)), 5) == [3, 1, 3, 1, 3]
    drawn = labels(LabelPlan(weights=(0.0, 0.75, 0.0, 0.25, 0.0)), 2000)
    assert set(drawn) == {1, 3}
    assert abs(drawn.count(1) / 2000 - 0.75) < 0.03
    uniform = labels(LabelPlan(), 2000)
    assert all(abs(uniform.count(c) / 2000 - 0.2) < 0.03 for c in range(5))


def test_cost_counts_rows_through_each_network(toy_view: LatentView) -> None:
    def cost(name: str, **options: object) -> dict[str, int]:
        return next(samplers.create(name, options).stream(toy_view, range(4), 4, LabelPlan())).cost

    assert cost("plain") == {"mapping": 4, "synthesis": 4}
    assert cost("gandance", joint="class_mean", scale=2) == {"mapping": 4 * 5, "synthesis": 4}
    assert cost("gandance", joint="class_subset", subset=2, scale=2) == {"mapping": 4 + 4 * 2, "synthesis": 4}
    assert cost("gandance", joint="class_shift", scale=2) == {"mapping": 4, "synthesis": 4}


def test_processes_that_take_turns_make_the_batches_of_one(toy_view: LatentView) -> None:
    plain = samplers.create("plain")
    plan = LabelPlan(classes=(3, 1, 2))
    whole = list(plain.stream(toy_view, range(40, 63), 4, plan))
    shares = [list(plain.stream(toy_view, range(40, 63), 4, plan, turn=(rank, 2))) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    for i, batch in enumerate(whole):
        other = shares[i % 2][i // 2]
        assert torch.equal(other.images, batch.images)
        assert torch.equal(other.labels, batch.labels)


def spoilt(view: LatentView, seeds: range, batch_size: int, bad: int) -> tuple[int, str]:
    """How many batches come before the refusal of image number ``bad``, which is not finite."""
    made = 0

    def decode(code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        nonlocal made
        images = view.decode(code, z, noise)
        if made <= bad < made + len(images):
            images[bad - made] = torch.nan
        made += len(images)
        return images

    count = 0
    with pytest.raises(UserError) as refusal:
        for _ in samplers.create("plain").stream(view.altered(decode=decode), seeds, batch_size, LabelPlan()):
            count += 1
    return count, str(refusal.value)


def test_images_that_are_not_finite_are_refused_soon(toy_view: LatentView) -> None:
    count, message = spoilt(toy_view, range(20), 2, 0)
    assert message.startswith("images are not finite with Plain(): damaged weights")
    assert count == 0  # the first batch at once
    assert spoilt(toy_view, range(20), 2, 2)[0] == 3  # the second with the fourth
    assert spoilt(toy_view, range(20), 2, 19)[0] == 10  # the last at the end
