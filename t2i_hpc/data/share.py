"""A rank's part of the global batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.data.plan import batch_positions


@dataclass(frozen=True)
class Share:
    """Part number `rank` of `world` equal parts of each global batch of `batch_size` samples.

    A batch that is made of several micro-batches, one after the other, is shared micro-batch by
    micro-batch: each is made of the same samples, in the same order, on any number of ranks.

    Raises:
        ConfigurationError: the batch cannot be divided by the number of ranks.
    """

    batch_size: int
    rank: int = 0
    world: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        size, world = self.batch_size, self.world
        if size % world:
            raise ConfigurationError(
                f"engine.batch_size={size} cannot be divided by {world} ranks: take a "
                f"multiple of {world}, e.g. {world * max(1, round(size / world))}"
            )

    def positions(self, start: int) -> Callable[[int], Sequence[int]]:
        """Return what gives the positions of batch n = 0, 1, 2, … from sample `start` on."""
        size = self.batch_size // self.micro_batches

        def of_batch(number: int) -> Sequence[int]:
            begin = start + number * self.batch_size
            micro = [
                batch_positions(begin + part * size, size, self.rank, self.world)
                for part in range(self.micro_batches)
            ]
            return [position for positions in micro for position in positions]

        return of_batch
