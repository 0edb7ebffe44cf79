"""The largest bytes of live tensors in each phase of a step, counted without a number computed.

    python -m benchmarks.live_memory                             # SSA-GAN of CUB, batch 4: a minute
    python -m benchmarks.live_memory experiment=cub_dfgan engine.split_losses=false

The step runs on fake tensors, so weights, gradients, moments, graphs and what kernels give count,
as torch would hold them; what kernels need inside and what an allocator keeps does not. The second
step is shown, which has Adam's moments.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.batches import TOKENS, VOCABULARY
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.systems import outline_system
from t2i_hpc.training.cost import Captions, random_batch
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.step_count import fake_tensors
from t2i_hpc.training.world import World

_USUAL = (
    "experiment=cub_ssagan",
    "engine.batch_size=4",
    "system.text_encoder.weights=",
    "engine.device=cpu",
)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors without numbers that somebody holds; of those made inside alone.

    Attributes:
        bytes: now.
        most: at most since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.most = 0
        self._known = set[int]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation and count what it makes."""
        made = func(*args, **dict(kwargs or {}))
        for value in tree_leaves(made):
            storage = value.untyped_storage() if isinstance(value, Tensor) else None
            if storage is not None and storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.bytes)
        return made

    def _forget(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.bytes -= size


def live_bytes(config: TrainConfig) -> dict[str, int]:
    """Return the largest bytes within each part of a step, by its name."""
    images = config.engine.batch_size
    outline = outline_system(config.system, VOCABULARY)
    assert outline is not None
    found: dict[str, int] = {}
    with fake_tensors(outline):
        strategy = DDPStrategy(outline, World(0, 1, 0, 1, torch.device("cpu")), config.engine)
        batch = random_batch(images, outline.resolution, Captions(TOKENS, VOCABULARY))
        noise, alive, start = (
            torch.randn(images, outline.noise_width),
            Alive(),
            strategy.clock.start,
        )
        part = ""

        def next_part(name: str) -> None:
            nonlocal part
            found[part], alive.most, part = alive.most, alive.bytes, name
            start(name)

        vars(strategy.clock)["start"] = next_part
        with alive:
            for step in range(2):
                train_step(strategy, batch, noise, step * images)
        next_part("")
    return {name: most for name, most in found.items() if name}


def main(arguments: list[str]) -> None:
    """Count and print."""
    config = compose_config("train", [*_USUAL, *arguments], TrainConfig)
    for name, most in live_bytes(config).items():
        sys.stdout.write(f"{name:<20}{most / 2**20:>10,.0f} MiB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
