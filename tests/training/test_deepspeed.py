"""What engine=deepspeed refuses, and what it says nothing of."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.base import Phase
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.checks import check_deepspeed
from t2i_hpc.training.deepspeed import deepspeed_config
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.toys import Toy
from tests.support.training import environment, tiny_batch, tiny_system

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def refuse(system: Any, sentence: str, **options: Any) -> None:
    config = EngineConfig(name="deepspeed", **options)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        build_strategy(system, CPU, config)
    assert "\n" not in str(caught.value)


def test_what_zero_does_not_do_exactly_is_refused() -> None:
    refuse(Toy(), r"take engine\.precision=bf16, or engine=ddp", precision="fp16")
    refuse(Toy(), "must see whole gradients", on_nonfinite="skip")
    refuse(Toy(), "take one or the other", gradient_compression="bf16")
    refuse(Toy(), "accumulate=5 does not divide", accumulate=5)


def set_of(system: OneStageGAN, part: str, **options: Any) -> None:
    changed = replace(system.optimizers[part], **options)
    system.optimizers = {**system.optimizers, part: changed}


def test_limits_of_parts_that_are_updated_together_are_refused() -> None:
    sentence = "generator and text_encoder and image_heads are updated together, and"
    refuse(tiny_system("joint", 0.1), sentence, clip=1.0)
    own = tiny_system("joint", 0.1)
    set_of(own, "text_encoder", clip=0.25)
    refuse(own, sentence)
    check_deepspeed(tiny_system("frozen"), EngineConfig(clip=1.0, name="deepspeed"))
    restarting = tiny_system("joint", 0.1)
    set_of(restarting, "generator", restart_every=8)
    refuse(restarting, "together with different restart_every")


def test_a_part_that_is_updated_alone_and_with_others_is_refused() -> None:
    system = Toy()
    both = Phase("both", ("a", "b"), system.phases[0].loss)
    system.phases = [*system.phases, both]
    refuse(system, "updates a either alone or with others")


@pytest.mark.parametrize("missing", ["deepspeed", "ninja"])
def test_packages_that_are_missing_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else found(name)
    )
    refuse(Toy(), rf"needs {missing}: pip install 't2i-hpc\[deepspeed\]'")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    refuse(Toy(), r"finds no g\+\+: load a compiler module or set CXX")
    monkeypatch.setenv("CXX", "icpx")
    refuse(Toy(), "finds no icpx")


def test_clipping_is_off_unless_asked_for() -> None:
    config = EngineConfig(batch_size=8, accumulate=2, zero_stage=2)
    said = deepspeed_config(config, CPU, None, 101)
    assert said["gradient_clipping"] == 0.0
    assert said["train_micro_batch_size_per_gpu"] == 4
    assert said["gradient_accumulation_steps"] == 2
    assert said["zero_optimization"]["stage"] == 2
    assert said["zero_optimization"]["reduce_bucket_size"] == 102  # even, and no 2 GB
    assert said["zero_optimization"]["allgather_bucket_size"] == 102
    assert deepspeed_config(config, CPU, 0.25, 101)["gradient_clipping"] == 0.25


@pytest.mark.parametrize("stage", [1, 2])
def test_images_are_channels_last_throughout(stage: int) -> None:
    options: dict[str, Any] = {"name": "deepspeed", "zero_stage": stage, "batch_size": 4}
    system = tiny_system()
    strategy = build_strategy(system, CPU, EngineConfig(**options, channels_last=True))
    seen: list[Tensor] = []
    for network in (system.generator, system.discriminator):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, i, output: seen.append(output))
    train_step(strategy, tiny_batch(), torch.randn(4, system.noise_width))
    assert seen
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in seen)


SCRIPT = """
import torch
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.toys import Toy, toy_batch

world = World(0, 1, 0, 1, torch.device("cpu"))
strategy = build_strategy(Toy(), world, EngineConfig(name="deepspeed", batch_size=4))
for step in range(2):
    train_step(strategy, *toy_batch(4, 4 * step), 4 * step)
print(strategy.kind)
"""


def test_it_needs_no_environment_and_says_nothing(tmp_path: Path) -> None:
    names = environment()
    names.pop("DS_ACCELERATOR", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**names, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("DeepSpeed 0.")
    assert lines[0].endswith("ZeRO 1")
    assert done.stderr == ""
