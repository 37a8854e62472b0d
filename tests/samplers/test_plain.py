import torch
from conftest import ToyGAN

from studiogan_guidance import samplers
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
    assert cost("gandance", joint="class_mean", scale=2) == {"mapping": 4 + 4 * 5, "synthesis": 4}
    assert cost("gandance", joint="class_subset", subset=2, scale=2) == {"mapping": 4 + 4 * 2, "synthesis": 4}
    assert cost("gandance", joint="class_shift", scale=2) == {"mapping": 4, "synthesis": 4}
