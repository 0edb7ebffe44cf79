"""Speed, hours and the share of communication of a training on GPUs that are not here.

    python -m benchmarks.predict experiment=coco_ssagan card=h100 link=ib400 gpus=1,8,64,512,1024
    python -m benchmarks.predict experiment=cub_dfgan card=a100 link=4xib200 scaling=strong

Floating-point operations, bytes and collectives of a step are counted (t2i_hpc/training/
step_count.py), a few seconds a line, and timed by the figures of a card and of its links (t2i_hpc/
cluster/cards.csv, links.csv; the model: t2i_hpc/launching/prediction.py). Own keys are card, link,
gpus, per_node, scaling=weak|strong and each (images of a GPU); all others are train's. Weak
scaling gives each GPU `each` images, by default engine.batch_size; strong divides that number.
The phases of one GPU come last. `python -m benchmarks.predict_check` compares with measured runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from t2i_hpc.cluster.hardware import Card, Link, find_card, find_network, links
from t2i_hpc.common.errors import ConfigurationError, UserError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.training_data import open_training_data
from t2i_hpc.launching.prediction import Cluster, Prediction, phases, predict
from t2i_hpc.systems import outline_system
from t2i_hpc.training.cost import Captions
from t2i_hpc.training.step_count import StepCount, count_operations

_VOCABULARY = 27_297  # COCO's, where the data is not here
_KEYS = ("card", "link", "gpus", "per_node", "scaling", "each")
_ROW = "{:>6}{:>12}{:>14}{:>12}{:>12}{:>10}{:>15}\n"
_TITLES = ("GPUs", "images each", "global batch", "ms a step", "images/s", "hours", "communication")
_PHASES = "{:<16}{:>10}{:>16}{:>12}{:>12}\n"


@dataclass(frozen=True)
class Question:
    """What is asked."""

    config: TrainConfig
    card: Card
    network: Link | None
    gpus: tuple[int, ...]
    per_node: int
    scaling: str
    each: int

    @classmethod
    def read(cls, arguments: list[str]) -> Question:
        """Read a command line.

        Raises:
            ConfigurationError: a key or its value has no meaning.
        """
        own = dict(item.split("=", 1) for item in arguments if item.split("=")[0] in _KEYS)
        rest = [item for item in arguments if item.split("=")[0] not in _KEYS]
        config = compose_config("train", rest, TrainConfig)
        scaling = own.get("scaling", "weak")
        if scaling not in ("weak", "strong"):
            raise ConfigurationError(f"scaling={scaling}: take weak or strong")
        return cls(
            config,
            find_card(own.get("card", "h100")),
            find_network(own["link"]) if "link" in own else None,
            tuple(int(number) for number in own.get("gpus", "1,8,64,512,1024").split(",")),
            int(own.get("per_node", "8")),
            scaling,
            int(own.get("each", config.engine.batch_size)),
        )

    def images(self, gpus: int) -> int:
        """Return the images of a GPU; 0 where so many cannot share them."""
        return self.each if self.scaling == "weak" else self.each // gpus * (self.each % gpus == 0)

    def count(self, gpus: int, images: int) -> StepCount:
        """Count the step of one of so many GPUs."""
        try:
            vocabulary = open_training_data(self.config.data, check_tars=False).vocabulary.size
        except UserError:
            vocabulary = _VOCABULARY
        outline = outline_system(self.config.system, vocabulary)
        if outline is None:
            raise ConfigurationError("this system cannot be built without its weights")
        self.config.engine.optimizer = "fused"  # what auto is on a GPU
        captions = Captions(self.config.data.max_tokens, vocabulary)
        return count_operations(outline, self.config.engine, captions, images, gpus)

    def predict(self, count: StepCount) -> Prediction:
        """Time a counted step."""
        per_node = min(self.per_node, count.ranks)
        cluster = Cluster(self.card, links()[self.card.node_link], self.network, per_node)
        return predict(count, cluster, self.config.engine.precision)


def lines(question: Question) -> Iterator[str]:
    """Yield the lines of the tables as they are counted."""
    goal, first = question.config.engine.images, None
    known = question.network.name if question.network else "a network that costs nothing"
    yield (
        f"{question.config.name}, {question.config.engine.precision}, {question.card.name}, "
        f"{question.card.node_link} in nodes of {question.per_node}, {known} between; hours to "
        f"{goal:,} images\n\n"
    )
    yield _ROW.format(*_TITLES)
    for gpus in question.gpus:
        each = question.images(gpus)
        if each < 1 or each * gpus < 2:
            yield f"{gpus:>6}  cannot share {question.each} images\n"
            continue
        count = question.count(gpus, each)
        made = question.predict(count)
        first = first or (count, made)
        speed = made.images_per_second
        yield _ROW.format(
            gpus,
            each,
            made.images,
            f"{1000 * made.seconds:.1f}",
            f"{speed:,.0f}",
            f"{goal / speed / 3600:,.3g}",
            f"{made.communication:.0%}" if gpus > 1 else "-",
        )
    if first:
        yield from _phase_lines(*first)


def _phase_lines(count: StepCount, made: Prediction) -> Iterator[str]:
    yield "\n" + _PHASES.format("phase", "ms", "GFLOP an image", "GB an image", "operations")
    for name, seconds in phases(made).items():
        own = {kernel: times for kernel, times in count.kernels.items() if kernel.phase == name}
        flops = sum(kernel.flops * times for kernel, times in own.items()) / count.images
        size = sum(kernel.bytes * times for kernel, times in own.items()) / count.images
        cells = (f"{flops / 1e9:.1f}", f"{size / 1e9:.2f}", sum(own.values()))
        yield _PHASES.format(name, f"{1000 * seconds:.1f}", *cells)


def main(arguments: list[str]) -> int:
    """Read the command line, count, print."""
    try:
        for line in lines(Question.read(arguments)):
            sys.stdout.write(line)
            sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"benchmarks.predict: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
