"""Out of memory is a sentence with rank, stage, numbers and remedies, and an exit code."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from t2i_hpc import train
from t2i_hpc.cli.command import answered
from t2i_hpc.common.errors import (
    OUT_OF_MEMORY,
    OutOfMemoryError,
    memory_explained,
    ran_out_of_memory,
)
from t2i_hpc.runs.sessions import read_sessions
from t2i_hpc.training.ddp import DDPStrategy
from tests.support.training import TINY, only_run

GPU = torch.device("cuda", 2)
OURS = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(OURS),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_every_kind_of_it_is_known(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> NoReturn:
        raise error

    assert answered("generate", work) == OUT_OF_MEMORY
    said = capsys.readouterr().err
    assert said.startswith("t2i_hpc.generate: ran out of memory: ")
    assert said.count("\n") == 1


def test_real_allocations_are_known() -> None:
    for allocate in (
        lambda: torch.empty(2**55),
        lambda: np.empty(2**55),
        lambda: bytearray(2**60),
    ):
        with pytest.raises(OutOfMemoryError, match="of main memory, the machine has"):  # noqa: SIM117
            with memory_explained():
                allocate()


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "no"), OutOfMemoryError("told")]
)
def test_other_errors_stay(error: Exception) -> None:
    assert not ran_out_of_memory(error)
    with pytest.raises(type(error)) as caught, memory_explained():
        raise error
    assert caught.value is error


def test_the_numbers_of_a_gpu_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "mem_get_info": (2**30, 80 * 2**30),
        "memory_allocated": 60 * 2**30,
        "memory_reserved": 70 * 2**30,
        "get_device_name": "NVIDIA A100-SXM4-80GB",
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    with (
        pytest.raises(OutOfMemoryError) as caught,
        memory_explained(lambda: "rank 3 on n7", GPU, "do x"),
    ):
        raise torch.OutOfMemoryError(OURS)
    assert str(caught.value) == (
        "rank 3 on n7 ran out of memory: 60.0 GiB of the 80.0 GiB of GPU 2 (NVIDIA A100-SXM4-80GB) "
        "are allocated, 70.0 reserved by this process, 9.0 taken by others and by CUDA itself; do x"
    )


def test_a_training_names_its_phase(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = DDPStrategy.backward

    def backward(strategy: DDPStrategy, phase: Any, *rest: Any) -> Any:
        if (strategy.step_number, phase.name) == (2, "penalty"):
            raise torch.OutOfMemoryError(OURS)
        return run(strategy, phase, *rest)

    monkeypatch.setattr(DDPStrategy, "backward", backward)
    arguments = [*TINY, f"data.path={shards}", f"runs={tmp_path}", "engine.images=16"]
    assert train.COMMAND.main(arguments) == OUT_OF_MEMORY
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert "at step 2, phase penalty ran out of memory: this process took up to" in said
    assert "use more ranks or lower engine.batch_size, raise engine.accumulate" in said
    (session,) = read_sessions(only_run(tmp_path))
    assert "phase penalty" in session.message
