"""Door: train a system on shards, from the beginning or from its newest checkpoint."""

from __future__ import annotations

import logging
import sys

import torch

from t2i_hpc.config.door import Door
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.data.stream import Stream
from t2i_hpc.engine.loop import Job, Loop
from t2i_hpc.engine.progress import open_progress
from t2i_hpc.engine.run_directory import locked, prepare_run, run_folder
from t2i_hpc.engine.stop import STOPPED_EXIT_CODE, listening
from t2i_hpc.engine.world import World, joined_world
from t2i_hpc.generation.samples import SampleGrids
from t2i_hpc.systems import build_system


def train(config: TrainConfig) -> int:
    """Train to the end or to a request to stop; return the exit code."""
    with joined_world(config.engine) as world:
        logging.basicConfig(
            level=logging.INFO if world.is_main else logging.ERROR, format="%(message)s"
        )
        training = Split.open(config.data, config.data.train_split)
        folder = run_folder(config, training.manifest.digest)
        if not world.is_main:
            return _train(config, world, training)
        with locked(folder):
            prepare_run(folder, config, world.size, world.device)
            return _train(config, world, training)


def _train(config: TrainConfig, world: World, training: Split) -> int:
    line = open_progress(world.is_main)
    job = _job(config, world, training)
    line.say(
        f"run {job.run}: {config.system.name} at {config.system.resolution} px on "
        f"{training.count:,} samples of {config.data.name}, batch {config.engine.batch_size} "
        f"on {world.size} rank{'s' * (world.size > 1)} ({world.device})"
    )
    with listening() as stop:
        try:
            done = Loop(job, line, stop).run()
        finally:
            line.close()
    if done:
        line.say(f"done: {job.run}")
        return 0
    line.say(f"stopped and saved: the same command goes on with {job.run}")
    return STOPPED_EXIT_CODE


def _job(config: TrainConfig, world: World, training: Split) -> Job:
    folder = run_folder(config, training.manifest.digest)
    stream = Stream(
        config.data,
        training,
        config.system.resolution,
        config.seed,
        config.engine.batch_size,
        rank=world.rank,
        world=world.size,
    )
    torch.manual_seed(config.seed)
    system = build_system(config.system, training.vocabulary.size)
    system.modules.to(world.device)
    captions = Split.open(config.data, config.data.test_split)
    sample = SampleGrids(folder, config, captions, system, world.device)
    return Job(folder, system, stream.batches, sample, config.seed, config.engine, world)


DOOR = Door(
    "train",
    "Trains a text-to-image system on shards. The same command finds its run again and goes "
    f"on.\nCtrl-C or SIGTERM saves and leaves with exit code {STOPPED_EXIT_CODE}.",
    TrainConfig,
    train,
    (
        "python -m t2i_hpc.train experiment=demo engine.minutes=5",
        "torchrun --nproc-per-node 8 -m t2i_hpc.train experiment=coco_ssagan seed=2",
    ),
)

if __name__ == "__main__":
    sys.exit(DOOR.open())
