"""W: the latent between mapping and synthesis of StyleGAN2, StyleGAN3 and the built-in GAN."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance import rng
from studiogan_guidance.batches import Halving
from studiogan_guidance.errors import UserError
from studiogan_guidance.files import Arrays, cached
from studiogan_guidance.latents.base import LatentView, Networks
from studiogan_guidance.progress import track

MAX_ROWS = 4096  # rows of one mapping call while codes are averaged: what bounds the memory
MAX_NUMBERS = 2**27  # the same on a GPU, which large calls keep busy: numbers in the codes of one call
TABLE_DRAWS = 10_000  # prior draws behind each class mean (as in Dobler et al. 2022, arXiv:2202.11777)
TABLE_VERSION = 1  # raise it when the table of the same draws changes
TABLE_SEED = rng.TABLES
ALIKE = 0.02  # of the spread of w: by how much codes may differ that count as the same


class WView(LatentView):
    """Code = w of every layer, [B, rows, w_dim]; it depends on z, so the estimators of the joint really differ.

    Expects ``generator.mapping(z, c)``, ``generator.synthesis(ws)`` and the moving average ``w_avg`` that training
    kept on the generator or on its mapping network.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        generator: Any = self.generator
        self.mapping = generator.mapping
        self.synthesis = generator.synthesis
        self.rows: int = generator.synthesis.num_ws
        self.blocks = self.rows
        self.width: int = self.global_mean().shape[1]

    @property
    def normalises_z(self) -> bool:
        """Whether the mapping sees the direction of z alone, as that of StyleGAN2, StyleGAN3 and the built-in does."""
        if self.bare is not self:
            return self.bare.normalises_z
        return self.once("normalises z", self._sees_directions)

    def _sees_directions(self) -> bool:
        """Whether w of some noise and of twice that noise are equal, up to the rounding of a lower precision."""
        # The same draws, once and twice as far from the origin.
        gens = rng.generators(range(TABLE_SEED, TABLE_SEED + 4))
        prior = self.prior(gens)
        info = self.info(gens)
        once = torch.cat([prior, info], 1).to(self.device)
        twice = torch.cat([2 * prior, info], 1).to(self.device)

        # Their codes.
        with self.frozen(), torch.no_grad():
            weights = self.unit_vectors()[:1].expand(len(prior), -1)
            w = self._map(once, weights)
            change = self._map(twice, weights) - w
        return bool(change.abs().max() <= ALIKE * w.std())

    def _map(self, z: Tensor, weights: Tensor) -> Tensor:
        ws: Tensor = self.mapping(z, weights)
        return ws

    def _synthesise(self, ws: Tensor, noise: list[Tensor] | None) -> Tensor:
        images: Tensor = self.synthesis(ws)
        return images

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        self.ledger.cost["mapping"] += len(z)
        weights = self.unit_vectors()[labels] if labels.dim() == 1 else labels
        return self._map(z, weights)

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(code)
        return self._synthesise(code, noise)

    def layers(self) -> list[nn.Module]:
        return list(self.synthesis.blocks)

    def mean_over_classes(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean w for the same z over an image's classes ``labels`` [B, K], by ``weights`` [B, K]; [B, rows, w_dim]."""
        means = []
        for ws in self._of_classes(z, labels):
            means.append(_mean(ws, weights))
            weights = None if weights is None else weights[len(ws) :]
        return torch.cat(means).expand(-1, self.rows, -1)

    def encode_with_class_mean(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of any view; the code of an image is one of the C whose mean is taken, so it costs no further pass."""
        if labels.dim() == 2:
            return super().encode_with_class_mean(z, labels, weights)

        # The codes of all classes, and in them that of the image's own.
        classes = self.once("classes", lambda: torch.arange(self.num_classes, device=self.device))
        parts = self._of_classes(z, classes.expand(len(z), -1))
        rows = labels[:, None, None].expand(-1, 1, self.width)
        every = None if weights is None else weights.expand(len(z), -1)
        codes, means = [], []
        for ws in parts:
            codes.append(ws.gather(1, rows[: len(ws)]))
            means.append(_mean(ws, every))
            rows = rows[len(ws) :]

        code, mean = (values[0] if len(values) == 1 else torch.cat(values) for values in (codes, means))
        return code.expand(-1, self.rows, -1), mean.expand(-1, self.rows, -1)

    def _of_classes(self, z: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """w for the same z and each of an image's classes ``labels`` [B, K], in parts [b, K, w_dim].

        One mapping call sees no more rows than ``_max_rows``, or K if that is more.
        """
        k = labels.shape[1]
        size = max(1, self._max_rows() // k)
        for z_part, labels_part in zip(z.split(size), labels.split(size)):
            b = len(z_part)
            ws = self.encode(z_part[:, None].expand(-1, k, -1).reshape(b * k, -1), labels_part.reshape(-1))
            yield ws[:, 0].view(b, k, -1)

    def _max_rows(self) -> int:
        """Rows of one mapping call."""
        if self.device.type == "cpu":
            return MAX_ROWS
        return max(MAX_ROWS, MAX_NUMBERS // (self.rows * self.width))

    def global_mean(self) -> Tensor:
        """The moving average of w that training kept: the centre of the host's own truncation, [rows, w_dim]."""
        holder: Any = self.generator if hasattr(self.generator, "w_avg") else self.mapping
        w_avg: Tensor = holder.w_avg
        return w_avg.expand(self.rows, -1)

    def class_means(self) -> Tensor:
        """Mean w of each class over ``TABLE_DRAWS`` fixed prior draws, the same for all classes; [C, rows, w_dim].

        Computed once for a checkpoint: the table is cached on disk under the hash of the weights, if they have one.
        """
        if self.bare is not self:
            return self.bare.class_means()
        return self.once("class means", self._class_means)

    def _class_means(self) -> Tensor:
        networks = self.networks
        key = {
            "version": TABLE_VERSION,
            "weights": networks.digest,
            "prior": f"{networks.z_prior} {networks.z_dim}",
            "info": [networks.info_discrete, networks.info_discrete_dim, networks.info_continuous],
            "seed": TABLE_SEED,
            "draws": TABLE_DRAWS,
        }

        # One table serves all rows.
        with self.frozen(), torch.no_grad():
            arrays = cached("class-means", key, self._class_table, enabled=bool(networks.digest))
        return torch.from_numpy(arrays["means"]).to(self.device)[:, None].expand(-1, self.rows, -1)

    def _class_table(self) -> Arrays:
        """``means``: the mean w of each class, float32 [C, w_dim]."""
        # The same noise for all classes.
        gens = rng.generators(range(TABLE_SEED, TABLE_SEED + TABLE_DRAWS))
        z = torch.cat([self.prior(gens), self.info(gens)], 1).to(self.device)

        # Sum in double precision, class by class.
        halving = Halving()
        eye = self.unit_vectors()
        table = torch.zeros(self.num_classes, self.width, dtype=torch.float64, device=self.device)
        for label in track(range(self.num_classes), "class means"):
            for part in z.split(self._max_rows()):
                for total in halving(partial(self._sum_of_codes, weights=eye[label]), part):
                    table[label] += total
        return {"means": (table / len(z)).float().cpu().numpy()}

    def _sum_of_codes(self, z: Tensor, weights: Tensor) -> Tensor:
        """The sum of w over noise [N, Z] for one row of class weights [C], float64 [w_dim]."""
        return self._map(z, weights.expand(len(z), -1))[:, 0].double().sum(0)


def _mean(ws: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of w [b, K, w_dim] over classes, by the first b rows of ``weights`` [B, K]; [b, 1, w_dim]."""
    if weights is None:
        return ws.mean(1, keepdim=True)
    share = weights[: len(ws), None] / weights[: len(ws), None].sum(2, keepdim=True)
    return share @ ws


class StyleGANView(WView):
    """The host's StyleGAN2 and StyleGAN3: moving averages stay fixed, layer noise comes from each image's seed."""

    channels_last = False  # modulated weights are computed anew for each image, as groups of one convolution

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        info_width = self.info(rng.generators([0])).shape[1]
        if self.mapping.z_dim != networks.z_dim + info_width:
            raise UserError(
                f"this {networks.backbone} generator takes {self.mapping.z_dim} latent numbers but its configuration "
                "has InfoGAN numbers on top: the host cannot run such a generator either; set MODEL.info_type to N/A"
            )

        # Layers with noise inputs; StyleGAN3 has none, though it accepts a noise mode.
        layers: list[Any] = [layer for layer in self.synthesis.modules() if "noise_const" in layer._buffers]
        self._noisy_layers = layers if networks.backbone == "stylegan2" else []

    def _map(self, z: Tensor, weights: Tensor) -> Tensor:
        ws: Tensor = self.mapping(z, weights, update_emas=False)
        return ws

    def layers(self) -> list[nn.Module]:
        net = self.synthesis
        if self.networks.backbone == "stylegan3":
            return [getattr(net, name) for name in net.layer_names[:-1]]  # the last one makes RGB
        return [getattr(net, f"b{side}") for side in net.block_resolutions]

    def noise_sizes(self) -> list[int]:
        return [int(layer.resolution) for layer in self._noisy_layers]

    def _synthesise(self, ws: Tensor, noise: list[Tensor] | None) -> Tensor:
        layers = self._noisy_layers if noise else []
        constants = [layer._buffers["noise_const"] for layer in layers]
        try:
            # A layer multiplies its constant by its strength, so a batch-shaped constant is per-image noise.
            for layer, batch in zip(layers, noise or []):
                layer._buffers["noise_const"] = batch
            images: Tensor = self.synthesis(ws, noise_mode="const", update_emas=False)
            return images
        finally:
            for layer, constant in zip(layers, constants):
                layer._buffers["noise_const"] = constant
