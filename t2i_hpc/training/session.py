"""One session of a training: what it opens, checks and builds, in order, and how it ends.

The same command finds its run again and resumes it from its newest checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from t2i_hpc.cluster.local_processes import BackgroundEvaluations
from t2i_hpc.common.errors import STOPPED, TRAINING_REMEDIES, ConfigurationError, UserError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.fields import file_entries
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.systems import OTHER_JUDGE, DAMSMPretrainingConfig, detector_within
from t2i_hpc.config.tasks import EvaluateConfig, TrainConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import TrainingData, fit_to_timeout, open_training_data
from t2i_hpc.runs.inputs import keep_inputs, with_inputs
from t2i_hpc.runs.layout import list_checkpoints, newest_images
from t2i_hpc.runs.run_directory import (
    STARTED,
    data_record,
    locked,
    prepare_run,
    recorded_files,
    refuse_swapped_vocabulary,
    run_folder,
)
from t2i_hpc.systems import build_system, outline_system
from t2i_hpc.systems.base import RetrievalSystem, System, TextToImageSystem
from t2i_hpc.systems.encoders import (
    check_caption_length,
    check_text_encoder,
    checkpoint_follows,
)
from t2i_hpc.training.callbacks.background_evaluation import EvaluationRequests
from t2i_hpc.training.callbacks.retrieval import (
    Batches,
    RetrievalReport,
    warning_of_one_class,
    warning_of_weak_text,
)
from t2i_hpc.training.callbacks.sample_grids import SampleGrids
from t2i_hpc.training.checks import check_engine
from t2i_hpc.training.first_weights import FirstWeights, changed_start, given_networks
from t2i_hpc.training.loop import Loop, TrainingSetup
from t2i_hpc.training.precision import describe_arithmetic
from t2i_hpc.training.progress import ProgressLine, RunOutput, open_progress
from t2i_hpc.training.rank_info import RankInfo, find_rank
from t2i_hpc.training.real_moments import (
    aims_at_moments,
    measure_real_moments,
    warning_of_gamed_scores,
)
from t2i_hpc.training.session_record import run_recorded
from t2i_hpc.training.stopping import listening
from t2i_hpc.training.threads import keep_threads, settle_threads
from t2i_hpc.training.trackers import check_trackers
from t2i_hpc.training.world import World, gather_hosts, joined_world, raise_together


def train(config: TrainConfig) -> int:
    """Train to the end or to a request to stop; return the exit code."""
    with _loading(config) as opened, joined_world(config.engine) as world:
        if isinstance(opened, Exception):
            raise opened
        data = opened.data
        folder = run_folder(config, data.identity)
        raise_together(world, _refusal(folder, config, data, world) if world.is_main else None)
        line = open_progress(world.is_main)
        try:
            settle_threads(folder, config.engine, world, line.say)
            setup = build_setup(config, world, opened, line)
            hosts = gather_hosts(world)
            if not world.is_main:
                return _run(setup, line)
            with locked(folder):
                record = _record(folder, config, data)
                origin = {STARTED: setup.first} if setup.first else None
                prepare_run(folder, config, world.size, world.device, record, origin=origin)
                keep_threads(folder, config.engine, world)
                keep_inputs(folder, config, data.vocabulary)
                return run_recorded(folder, world, hosts, partial(_run, setup, line))
        finally:
            line.close()


@dataclass(frozen=True)
class OpenedData:
    """What a rank trains on, what makes its batches, and operations of a step by its images.

    `measuring` makes the same batches once more, where their features are measured first.
    """

    data: TrainingData
    loader: Loader
    flops: float | None = None
    measuring: Loader | None = None


@contextmanager
def _loading(config: TrainConfig) -> Iterator[OpenedData | Exception]:
    """Start the loader processes before CUDA and the process group are.

    Gives an error of the data instead: other ranks can hear of it only once all have met.
    """
    try:
        opened = open_data(config, find_rank(os.environ))
    except Exception as error:
        yield error
        return
    try:
        # What its first batches need of a server comes while the model is built.
        opened.loader.start(newest_images(run_folder(config, opened.data.identity)) or 0)
        if opened.measuring:
            opened.measuring.start(0)
        # Counted while there is no process group: fake tensors must meet no real collective.
        yield replace(opened, flops=_flops(config, opened.data))
    finally:
        opened.loader.close()
        if opened.measuring:
            opened.measuring.close()


def _flops(config: TrainConfig, data: TrainingData) -> float | None:
    """Count a step's floating-point operations by its images, on rank 0 of a training on GPUs.

    Counting takes seconds of the host. None where it cannot be done, as of some user-defined
    systems; what is wrong with settings is said later.
    """
    place, engine = find_rank(os.environ), config.engine
    if place.rank != 0 or engine.device == "cpu" or not _has_gpu():
        return None
    from t2i_hpc.training.cost import Captions
    from t2i_hpc.training.step_count import flops_per_image

    images = max(2, engine.batch_size // place.size // engine.accumulate)
    captions = Captions(config.data.max_tokens, data.vocabulary.size)
    try:
        outline = outline_system(config.system, data.vocabulary.size)
        return None if outline is None else flops_per_image(outline, captions, images)
    except Exception:
        return None


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def open_data(config: TrainConfig, place: RankInfo) -> OpenedData:
    """Open what a rank trains on; no process is started yet.

    Raises:
        UserError: whatever is wrong with the data or its values.
    """
    engine = config.engine
    settings, answer_within = fit_to_timeout(config.data, engine.timeout, place.size)
    data = open_training_data(settings, check_tars=False)
    # Rank 0 says what is worth knowing; how weights begin matters to a new run only.
    resumes = bool(list_checkpoints(run_folder(config, data.identity)))
    level = logging.WARNING if resumes else logging.INFO
    logging.basicConfig(level=level if place.rank == 0 else logging.ERROR, format="%(message)s")
    rank_slice = RankSlice(engine.batch_size, place.rank, place.size, engine.accumulate)
    resolution = config.system.resolution
    made = partial(data.loader, resolution, config.seed, rank_slice, answer_within=answer_within)
    measures = aims_at_moments(config.system) and not resumes
    return OpenedData(data, made(), measuring=made() if measures else None)


def check_start(config: TrainConfig, ranks: int = 1) -> Path:
    """Check what a training of so many ranks would refuse as soon as it starts.

    Returns:
        Its run directory.

    Raises:
        UserError: the data or the text encoder's weights do not fit, or settings do not.
    """
    data = open_training_data(config.data)
    folder = run_folder(config, data.identity)
    _check(folder, config, data, ranks, None)
    return folder


def locate(config: TrainConfig) -> Path:
    """Return the run directory of a configuration, whether it exists or not."""
    return run_folder(config, open_training_data(config.data).identity)


def with_epoch(config: TrainConfig) -> TrainConfig:
    """Fill in the length of an epoch, which the learning rate follows, from the training split.

    Raises:
        ConfigurationError: the system is none of encoders, or the data has no known length.
    """
    system = config.system
    if not isinstance(system, DAMSMPretrainingConfig):
        raise ConfigurationError(
            f"system={system.name} is trained by t2i_hpc.train: pretrain takes system=damsm"
        )
    if system.epoch_images is not None:
        return config
    samples = open_training_data(config.data, check_tars=False).epoch("system.epoch_images")
    return replace(config, system=replace(system, epoch_images=samples))


def _refusal(
    folder: Path, config: TrainConfig, data: TrainingData, world: World
) -> UserError | None:
    """Return what rank 0 finds for all: a file system is not asked for each tar by each rank."""
    try:
        _check(folder, config, data, world.size, world.device)
        open_training_data(config.data)
        Split.open(config.data, config.data.test_split)
    except UserError as error:
        return error
    return None


def _check(
    folder: Path, config: TrainConfig, data: TrainingData, ranks: int, device: torch.device | None
) -> None:
    """Refuse what does not go together, before anything is built; `device` None: not known."""
    check_trackers(config.trackers)
    refuse_swapped_vocabulary(folder, config, _record(folder, config, data))
    resumes = bool(list_checkpoints(folder))
    if not resumes:
        check_text_encoder(config.system, data.vocabulary.sha256)
    used = with_inputs(folder, config) if resumes else config
    with checkpoint_follows() if resumes else checkpoint_follows(given_networks(config)):
        outline = outline_system(used.system, data.vocabulary.size)
    if outline is not None:
        networks = dict(outline.modules.items())
        check_caption_length(networks, config.data.max_tokens, "data.max_tokens")
        check_engine(outline, config.engine, ranks, device)
    if outline is not None and config.start_from and not resumes:
        FirstWeights.plan(config, outline, data.vocabulary).start.verify()


def _record(folder: Path, config: TrainConfig, data: TrainingData) -> dict[str, str]:
    return data_record(config, data.content, data.vocabulary.sha256, recorded_files(folder))


def build_setup(
    config: TrainConfig, world: World, opened: OpenedData, line: ProgressLine
) -> TrainingSetup:
    """Build everything the loop needs; nothing is written yet.

    Raises:
        UserError: whatever is wrong with weights or values.
    """
    data = opened.data
    batches: Batches = opened.loader.batches
    folder = run_folder(config, data.identity)
    torch.manual_seed(config.seed)
    system, first = _build(folder, config, data.vocabulary)
    system.modules.to(world.device)
    sampler = _sampler_of(folder, config, system, line)
    line.say(
        f"run {folder}: {config.system.name} at {config.system.resolution} px on "
        f"{data.summary}, batch {config.engine.batch_size} "
        f"on {world.size} rank{'s' * (world.size > 1)} ({world.device}, "
        f"{describe_arithmetic(config.engine, world.device)})"
    )
    started = first.lines() if first else [changed_start(folder, config)]
    judged = flattering_evaluations(config)
    weak = "" if config.system.name == "damsm" else warning_of_weak_text(config.system)
    gamed = warning_of_gamed_scores(config.system)
    for notice in (data.notice, _lost_files(config), *started, weak, judged, gamed):
        if notice:
            line.say(notice)
    if opened.measuring:
        measure_real_moments(
            system,
            opened.measuring,
            data.samples,
            world=world,
            precision=config.engine.precision,
            say=line.say,
        )
    if _learns_by_damsm(config.system):
        batches = warning_of_one_class(batches, world, line.say)
    return TrainingSetup(
        folder,
        system,
        batches,
        sampler,
        config.seed,
        config.engine,
        world,
        _evaluations(RunOutput(folder, line), config) if world.is_main else None,
        data.vocabulary.sha256,
        lambda: _build_anew(config, data.vocabulary)[0],
        first.record() if first else {},
        flops=opened.flops,
        trackers=tuple(config.trackers),
        finished=sampler.finished,
        reads=opened.loader.reads,
    )


def _build(
    folder: Path, config: TrainConfig, vocabulary: Vocabulary
) -> tuple[System, FirstWeights | None]:
    """Build the system; a run that has a checkpoint needs no files of initial weights."""
    if not list_checkpoints(folder):
        return _build_anew(config, vocabulary)
    with checkpoint_follows():
        return build_system(with_inputs(folder, config).system, vocabulary.size), None


def _build_anew(config: TrainConfig, vocabulary: Vocabulary) -> tuple[System, FirstWeights | None]:
    """Build the system with the weights that a run begins with, and say which it starts from."""
    torch.manual_seed(config.seed)
    with checkpoint_follows(given_networks(config)):
        system = build_system(config.system, vocabulary.size)
    if not config.start_from:
        return system, None
    first = FirstWeights.plan(config, system, vocabulary)
    first.load(system)
    return system, first


def _lost_files(config: TrainConfig) -> str:
    """Return a notice of files that a resumed run does without, "" where all are there."""
    lost = [f"{e.key}={e.value}" for e in file_entries(config) if not Path(e.value).is_file()]
    return f"{', '.join(lost)}: no such file, the checkpoint holds its weights" if lost else ""


def flattering_evaluations(config: TrainConfig) -> str:
    """Return a notice of background evaluations by what the run is trained against, else ""."""
    within, asked = detector_within(config.system), config.evaluation
    if not within or not asked.every_images:
        return ""
    own = [each for each in asked.overrides if re.match(r"evaluation[.=]", each)]
    try:
        detector = compose_config("evaluate", own, EvaluateConfig).evaluation.detector
    except UserError:  # the evaluation itself says what is wrong
        return ""
    if detector != within:
        return ""
    return (
        f"background evaluations ask evaluation.detector={within}, whose network this run is "
        "trained against: its distances flatter the run, and alone they are refused; put "
        f"evaluation.detector={OTHER_JUDGE} into evaluation.overrides"
    )


def _sampler_of(
    folder: Path, config: TrainConfig, system: System, line: ProgressLine
) -> SampleGrids | RetrievalReport:
    """Return what a system shows of itself from time to time."""
    held_out = Split.open(config.data, config.data.test_split, check_tars=False)
    if isinstance(system, TextToImageSystem):
        return SampleGrids(folder, config, held_out, system, line)
    if isinstance(system, RetrievalSystem):
        return RetrievalReport(folder, config, held_out, system, line)
    raise TypeError(f"{type(system).__name__} neither generates nor retrieves")


def _learns_by_damsm(system: SystemConfig) -> bool:
    damsm = getattr(system, "damsm", None)
    return damsm is not None and getattr(damsm, "weight", 1.0) > 0


def _evaluations(output: RunOutput, config: TrainConfig) -> EvaluationRequests | None:
    every = config.evaluation.every_images
    if not every:
        return None
    starter = BackgroundEvaluations(output.folder, config.evaluation.overrides)
    return EvaluationRequests(output, every, config.engine.batch_size, starter)


def _run(setup: TrainingSetup, line: ProgressLine) -> int:
    with setup.world.memory_explained(TRAINING_REMEDIES), listening() as stop:
        done = Loop(setup, line, stop).run()
    if done:
        line.say(f"done: {setup.run}")
        return 0
    line.say(f"stopped and saved: the same command resumes {setup.run}")
    if stop.reason == "SIGTERM" and setup.world.is_main and "SLURM_JOB_ID" in os.environ:
        # Slurm may have ended the batch script as well: then nobody else requeues the job.
        command = [sys.executable, "-m", "t2i_hpc.cluster.slurm.job", str(setup.run), "TERM"]
        subprocess.run(command, check=False)
    return STOPPED
