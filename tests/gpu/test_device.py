"""What the heartbeat and the log ask a GPU: how far it is, and what each phase took."""

from __future__ import annotations

import torch

from t2i_hpc.training.heartbeat_device import DeviceProgress, device_clock

_CYCLES = 400_000_000  # a fifth of a second or more


def test_marks_are_passed_when_the_gpu_comes_to_them(gpu: torch.device) -> None:
    clock = device_clock(gpu)
    assert clock is not None
    clock.mark("before")
    torch.cuda.synchronize(gpu)
    torch.cuda._sleep(_CYCLES)
    clock.mark("after")
    assert clock.read() == DeviceProgress(2, 1, "before")  # at once, while the GPU sleeps
    torch.cuda.synchronize(gpu)
    assert clock.read() == DeviceProgress(2, 2, "after")
