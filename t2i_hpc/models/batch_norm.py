"""Batch normalization over the global batch, on any device.

The statistics of a batch must not depend on how many ranks share it. torch's SyncBatchNorm
takes no CPU tensors, so the two sums are exchanged here, differentiably; with one rank this
is torch's own batch norm to the bit. The state-dict keys are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2i_hpc.common.collectives import sum_over_ranks, world_size


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W) whose training statistics span all ranks.

    Every rank must hold the same number of images.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalize by the global batch (training) or the running statistics (evaluation)."""
        if not self.training or world_size() == 1:
            return super().forward(features)
        count = features.numel() // features.shape[1] * world_size()
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        mean = sum_over_ranks(wide.sum((0, 2, 3))) / count
        centered = wide - mean[:, None, None]
        variance = sum_over_ranks(centered.square().sum((0, 2, 3))) / count
        self._track(mean, variance, count)
        normalized = centered * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normalized = normalized * self.weight[:, None, None] + self.bias[:, None, None]
        return normalized.to(features.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        momentum = 0.1 if self.momentum is None else self.momentum
        unbiased = variance.detach() * (count / max(1, count - 1))
        self.running_mean.lerp_(mean.detach(), momentum)
        self.running_var.lerp_(unbiased, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def make_global(module: nn.Module) -> None:
    """Replace every torch batch norm inside `module` by the global one, weights and all."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _as_global(child))


def _as_global(norm: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    replacement = GlobalBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    replacement.load_state_dict(norm.state_dict())
    for name, parameter in replacement.named_parameters():
        parameter.requires_grad_(norm.get_parameter(name).requires_grad)
    return replacement
