"""CPU stand-ins for the five batch norm kernels that torch has on CUDA alone, by their formulas."""

from __future__ import annotations

import torch
from torch import Tensor

_PLACES = (0, 2, 3)


def install() -> torch.library.Library:
    """Register them in this process, for as long as the result is kept."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    for kernel in (stats, gather_stats_with_counts, elemt, backward_reduce, backward_elemt):
        library.impl(f"batch_norm_{kernel.__name__}", kernel)
    return library


def stats(features: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, _PLACES, correction=0)
    return mean, (variance + epsilon).rsqrt()


def gather_stats_with_counts(  # noqa: PLR0917 (torch's own signature)
    features: Tensor,
    means: Tensor,
    deviations: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    momentum: float,
    epsilon: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    assert counts.dtype == features.dtype == means.dtype  # the CUDA kernel is compiled for these
    assert running_mean is running_variance is None
    number, mean, squares = 0, torch.zeros_like(means[0]), torch.zeros_like(means[0])
    for own, deviation, count in zip(means, deviations, counts.tolist(), strict=True):
        factor = 1 / (number + count)
        squares += (deviation**-2 - epsilon) * count
        squares += (mean - own) ** 2 * number * count * factor
        mean = number * factor * mean + count * factor * own
        number += int(count)
    return mean, (squares / number + epsilon).rsqrt()


def elemt(  # noqa: PLR0917 (torch's own signature)
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
    epsilon: float,
) -> Tensor:
    result = (features - spread(mean)) * spread(deviation)
    result = result if weight is None else result * spread(weight)
    result = result if bias is None else result + spread(bias)
    return result.to(features.dtype)


def backward_reduce(  # noqa: PLR0917 (torch's own signature)
    gradient: Tensor,
    features: Tensor,
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor | None,
    of_input: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = gradient.to(mean.dtype)
    of_gradient = wide.sum(_PLACES)
    of_product = (wide * (features - spread(mean))).sum(_PLACES)
    return of_gradient, of_product, of_product * deviation, of_gradient.clone()


def backward_elemt(  # noqa: PLR0917 (torch's own signature)
    gradient: Tensor,
    features: Tensor,
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor | None,
    of_gradient: Tensor,
    of_product: Tensor,
    counts: Tensor,
) -> Tensor:
    assert counts.dtype == torch.int32
    number = counts.sum()
    slope = of_product / number * deviation**2
    result = gradient - spread(of_gradient / number)
    result = (result - (features - spread(mean)) * spread(slope)) * spread(deviation)
    return (result if weight is None else result * spread(weight)).to(gradient.dtype)


def spread(values: Tensor) -> Tensor:
    """Return (C, 1, 1)."""
    return values[:, None, None]
