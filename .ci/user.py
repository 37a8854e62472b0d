"""What a user writes in Python: its types are checked strictly against the installed package, then it is executed."""

from __future__ import annotations

from studiogan_guidance import GAN, Images, LabelPlan, LatentView, UserError, builtin, load, samplers, view_for
from studiogan_guidance.samplers import Sampler, Samples

gan: GAN = load()
images: Images = gan.sample("gandance", scale=1.4, classes=[3], num=8)
assert images.pixels.shape == (8, 3, 32, 32)

view: LatentView = view_for(builtin.networks())
sampler: Sampler = samplers.create("gandance", {"scale": 1.3})
batches: list[Samples] = list(sampler.stream(view, range(4), batch_size=2, plan=LabelPlan(classes=(3, 5))))
shapes: list[tuple[int, ...]] = [tuple(batch.images.shape) for batch in batches]
assert shapes == [(2, 3, 32, 32)] * 2

try:
    samplers.create("gandanc")
except UserError as error:
    message: str = str(error)
    assert "did you mean 'gandance'" in message
