"""A rank's part of the global batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.data.plan import batch_positions


@dataclass(frozen=True)
class Share:
    """Part number `rank` of `world` equal parts of each global batch of `batch_size` samples.

    Raises:
        ConfigurationError: the batch cannot be divided by the number of ranks.
    """

    batch_size: int
    rank: int
    world: int

    def __post_init__(self) -> None:
        size, world = self.batch_size, self.world
        if size % world:
            raise ConfigurationError(
                f"engine.batch_size={size} cannot be divided by {world} ranks: take a "
                f"multiple of {world}, e.g. {world * max(1, round(size / world))}"
            )

    def positions(self, start: int) -> Callable[[int], range]:
        """Return what gives the positions of batch n = 0, 1, 2, … from sample `start` on."""

        def of_batch(number: int) -> range:
            begin = start + number * self.batch_size
            return batch_positions(begin, self.batch_size, self.rank, self.world)

        return of_batch
