"""Inception-v3 as oneDNN likes it on a CPU: the same convolutions, with fewer passes over memory.

Each convolution and its ReLU are one kernel, whose weights are put in its order once (eager torch
does so in each call). Where a block averages its input and then mixes channels with a 1 × 1
convolution, channels are mixed first: both are linear, and there are a quarter to a tenth of the
channels to average then. Chunks of a batch go through the network side by side, each on threads of
its own: no thread waits for another one after each layer.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Blocks, of torch-fidelity and torchvision alike, that average their input for one branch.
_AVERAGING = ("InceptionA", "InceptionC")
_CHUNK = 16  # images; one thread sends 1 × 1 convolutions of fewer to a slow kernel


def prepare_for_cpu(network: nn.Module, *, average_counts_padding: bool) -> nn.Module:
    """Return a network with folded batch norms for a CPU; the given one where oneDNN is missing.

    Args:
        network: whose blocks ``conv`` and ``bn`` end with a ReLU.
        average_counts_padding: whether a mean at the border is over the pixels outside as well.
    """
    if not _has_kernels():
        return network
    for name, child in list(network.named_children()):
        convolution = getattr(child, "conv", None)
        if isinstance(convolution, nn.Conv2d):
            setattr(network, name, ReLUConvolution(convolution))
            continue
        averages = type(child).__name__ in _AVERAGING
        block = AveragedLast(child, average_counts_padding) if averages else child
        setattr(
            network, name, prepare_for_cpu(block, average_counts_padding=average_counts_padding)
        )
    return network


class ReLUConvolution(nn.Module):
    """A convolution, with bias, and a ReLU."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._weight, self._bias = convolution.weight.detach(), convolution.bias
        self._shape = (convolution.padding, convolution.stride, convolution.dilation)
        self._groups = convolution.groups
        self._ordered: dict[torch.Size, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 (B, C, H, W) of float32 (B, C', H', W'), channels last."""
        weight = self._ordered.get(images.shape)
        if weight is None:  # the order depends on the input's size, above all on its batch
            weight = self._ordered[images.shape] = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, *map(list, self._shape), self._groups, list(images.shape)
            )
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, weight, self._bias, *self._shape, self._groups, "relu", [], ""
        )
        return result


class AveragedLast(nn.Module):
    """Branches side by side; the last one averages 3 × 3 pixels after its 1 × 1 convolution.

    Args:
        block: whose children are named by branch and place in it, in the order of the channels.
        counts_padding: whether a mean at the border is over the pixels outside as well.
    """

    def __init__(self, block: nn.Module, counts_padding: bool) -> None:
        super().__init__()
        branches: dict[str, list[nn.Module]] = {}
        for name, child in block.named_children():
            branches.setdefault(re.sub(r"_\d$", "", name), []).append(child)
        (averaged,) = branches.pop("branch_pool")
        convolution = averaged.conv
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None  # of the folded batch norm
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches.values())
        self._counts_padding = counts_padding
        self._weight = convolution.weight.detach()
        self._bias = convolution.bias.detach()[:, None, None]

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 (B, C, H, W) of float32 (B, C', H, W), channels last."""
        mixed = F.conv2d(images, self._weight)
        means = F.avg_pool2d(mixed, 3, 1, 1, count_include_pad=self._counts_padding)
        means = means.add_(self._bias).relu_()
        return torch.cat([*(branch(images) for branch in self.branches), means], 1)


class SideBySide:
    """Runs a function over the chunks of a batch, each in a thread with its share of torch's.

    Args:
        function: of a batch, float (B, …) from (B, …).
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._pool: ThreadPoolExecutor | None = None
        self._workers = 1

    def __call__(self, images: Tensor, threads: int) -> Tensor:
        """Return the function of a batch of at least two chunks."""
        chunks = images.tensor_split(chunks_of(len(images), threads))
        if self._pool is None or self._workers != len(chunks):
            self._start(len(chunks), threads)
        assert self._pool is not None
        return torch.cat(list(self._pool.map(self._run, chunks)))

    def _run(self, images: Tensor) -> Tensor:
        with torch.inference_mode():  # which is of one thread, as the number of threads is
            return self._function(images)

    def _start(self, workers: int, threads: int) -> None:
        if self._pool:
            self._pool.shutdown()
        self._workers, there = workers, threading.Barrier(workers + 1)

        def take_share() -> None:
            torch.get_num_threads()  # a thread takes the process's number when first asked
            torch.set_num_threads(max(1, threads // workers))
            there.wait()

        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="detector")
        for _ in range(workers):
            self._pool.submit(take_share)
        there.wait()
        torch.set_num_threads(threads)  # what threads that begin later take


def chunks_of(images: int, threads: int) -> int:
    """Return into how many chunks a batch is cut, one a thread at most; 1: it stays whole."""
    return max(1, min(threads, images // _CHUNK))


def _has_kernels() -> bool:
    names: Sequence[str] = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )
