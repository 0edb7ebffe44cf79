"""Fréchet distance of generated features to those of training images, as a generator's loss.

A batch is too small for a covariance of hundreds of features, so the generated images' moments
are running ones: each batch enters them, older ones fade, and the gradient goes through the
present batch alone. With normal distributions N(μ, Σ) of real and N(m, S) of generated features

    FD = ‖m - μ‖² + tr Σ + tr S - 2 tr A^½,   A = Σ^½ S Σ^½,

whose derivative by a generated image's features z is 2 (z - (μ + T (z - m))), where
T = Σ^½ A^-½ Σ^½ is the linear map of optimal transport between both: each image is pulled to where
the map puts it. So no decomposition is differentiated: a term that is quadratic in z has just this
gradient. It does not depend on how long the moments remember.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i_hpc.common.collectives import all_reduce, world_size

# Of the mean variance, added to every direction of both sides: the distance of features with so
# much noise. Without it features that hardly vary in generated images would be pulled without end.
RIDGE = 1e-3
_ITERATIONS = 40  # enough for a ratio of eigenvalues of 10^12, more than the ridge leaves


class FrechetMoments(nn.Module):
    """Moments of real features, and running ones of generated features; float64 buffers.

    Features come in groups, of which each is divided by the root of its variance over the training
    images, so that all groups count alike and the variances of real features add up to 1: a
    distance of 1 is as much as that of images that are all alike in features.

    Args:
        widths: of the groups, in order.
        half_life: generated images after which one counts half.

    Attributes:
        distance: the Fréchet distance (), as of the last :meth:`begin_step`.
    """

    scale: Tensor
    real_mean: Tensor
    real_root: Tensor  # Σ^½ with the ridge
    mean: Tensor  # of generated features, less real_mean
    second: Tensor  # moment of the same differences
    sums: Tensor  # of what the running moments take in when the next step begins
    products: Tensor
    count: Tensor
    pull: Tensor  # 1 - T
    distance: Tensor

    def __init__(self, widths: Sequence[int], half_life: float) -> None:
        super().__init__()
        self.widths, self.half_life = tuple(widths), half_life
        width = sum(widths)
        self.ridge = RIDGE / width
        one = torch.eye(width, dtype=torch.float64)
        zeros = one.new_zeros(width)
        real = one / width  # until they are measured
        root = one * (1 / width + self.ridge) ** 0.5
        buffers = {"scale": zeros + 1, "real_mean": zeros, "real_root": root}
        buffers |= {"mean": zeros, "second": real, "sums": zeros, "products": torch.zeros_like(one)}
        for name, value in {**buffers, "count": zeros[0]}.items():
            self.register_buffer(name, value.clone())
        self.register_buffer("pull", torch.zeros_like(one), persistent=False)
        self.register_buffer("distance", zeros[0].clone(), persistent=False)

    @torch.no_grad()
    def set_real(self, count: int, sums: Tensor, products: Tensor) -> None:
        """Take the moments of real features, from which generated ones begin.

        That begins training softly, and with moments of full rank.

        Args:
            count: images.
            sums, products: float64 (D,) of features and (D, D) of their outer products.
        """
        mean = sums / count
        covariance = products / count - torch.outer(mean, mean)
        variances = covariance.diagonal().split(self.widths)
        scales = [
            (len(variances) * one.sum().clamp(min=1e-12)).rsqrt().expand(len(one))
            for one in variances
        ]
        scale = torch.cat(scales)
        covariance = covariance * torch.outer(scale, scale)
        self.scale.copy_(scale)
        self.real_mean.copy_(mean * scale)
        self.real_root.copy_(self._root(covariance))
        self.mean.zero_()
        self.second.copy_(covariance)
        for pending in (self.sums, self.products, self.count):
            pending.zero_()

    def _root(self, covariance: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(covariance)
        root: Tensor = (vectors * (values.clamp(min=0) + self.ridge).sqrt()) @ vectors.T
        return root

    @torch.no_grad()
    def begin_step(self) -> None:
        """Take in what was generated in the step before; find the pull of this step.

        All of a step's micro-batches have the same pull.
        """
        share = 1 - 0.5 ** (self.count / self.half_life)  # 0 without images; no sync
        images = self.count.clamp(min=1)
        self.mean.lerp_(self.sums / images, share)
        self.second.lerp_(self.products / images, share)
        for pending in (self.sums, self.products, self.count):
            pending.zero_()
        distance, transport = transport_map(self.real_root, self._generated())
        self.distance.copy_(distance + self.mean.square().sum())
        self.pull.copy_(_one(transport) - transport)

    def _generated(self) -> Tensor:
        covariance = self.second - torch.outer(self.mean, self.mean)
        covariance.diagonal().add_(self.ridge)
        return covariance

    def forward(self, features: Tensor) -> Tensor:
        """Return the distance (), whose gradient pulls features (B, D) of generated images.

        They are taken in, over all ranks: a collective.
        """
        found = features.to(self.scale.dtype) * self.scale - self.real_mean
        self._take_in(found.detach())
        centered = found - self.mean
        quadratic = ((centered @ self.pull) * centered).sum(1).mean()
        pulled = 2 * (found @ self.mean).mean() + quadratic
        value = self.distance + (pulled - pulled.detach())
        return value.to(torch.promote_types(features.dtype, torch.float32))

    @torch.no_grad()
    def _take_in(self, found: Tensor) -> None:
        products = found.T @ found
        count = torch.full_like(self.count, len(found))
        if world_size() > 1:
            joined = torch.cat([found.sum(0), products.flatten(), count[None]])
            all_reduce(joined)
            width = len(self.sums)
            total, flat, number = joined.split([width, width * width, 1])
            self.sums.add_(total)
            self.products.add_(flat.view_as(products))
            self.count.add_(number[0])
            return
        self.sums.add_(found.sum(0))
        self.products.add_(products)
        self.count.add_(count)


def transport_map(root: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Fréchet distance () of two centered normal distributions, and the map (D, D).

    Args:
        root: Σ^½ (D, D), symmetric, of the distribution that the map leads to.
        covariance: S (D, D) of the one that it leads from; both are positive definite.

    Returns:
        tr Σ + tr S - 2 tr A^½, and T = Σ^½ A^-½ Σ^½ with A = Σ^½ S Σ^½: T S T = Σ.
    """
    product = root @ covariance @ root
    # A decomposition on a GPU waits for the device, and takes ten times as long as these products.
    roots = _roots_by_decomposition if product.device.type == "cpu" else roots_by_products
    trace, inverse = roots(product)
    distance = root.square().sum() + covariance.trace() - 2 * trace
    return distance, root @ inverse @ root


def _roots_by_decomposition(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the trace () of a positive definite matrix's root, and the root's inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    return values.sum(), (vectors / values) @ vectors.T


def roots_by_products(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same by Newton's and Schulz's iteration, of products alone.

    Y → A^½ and Z → A^-½ by M = (3 - Z Y) / 2, Y ← Y M, Z ← M Z, from Y = A / ‖A‖ and Z = 1.
    """
    size = matrix.square().sum().sqrt()
    one = _one(matrix)
    root, inverse = matrix / size, one
    for _ in range(_ITERATIONS):
        middle = 1.5 * one - 0.5 * inverse @ root
        root, inverse = root @ middle, middle @ inverse
    return root.trace() * size.sqrt(), inverse / size.sqrt()


def _one(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
