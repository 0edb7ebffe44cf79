"""Precisions: how far they part, what stays in float32, and float16's scale of losses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.precision import Precision, describe_arithmetic
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.toys import Toy, toy_batch, unspoilt
from tests.support.training import tiny_batch, tiny_system

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def ssa_gan(precision: str, damsm: float) -> DDPStrategy:
    config = EngineConfig(batch_size=4, precision=precision)
    return DDPStrategy(tiny_system("frozen", damsm), CPU, config)


def losses(precision: str, damsm: float) -> dict[str, Tensor]:
    """Each term over five steps."""
    engine = ssa_gan(precision, damsm)
    rows = []
    for step in range(5):
        noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(step))
        rows.append(train_step(engine, tiny_batch(start=4 * step), noise, 4 * step))
    return {name: torch.stack([row[name].float() for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module", params=[0.0, 0.125], ids=["plain", "damsm"])
def exact(request: pytest.FixtureRequest) -> tuple[float, dict[str, Tensor]]:
    return request.param, losses("fp32", request.param)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_stay_within_the_band_that_is_stated(
    exact: tuple[float, dict[str, Tensor]], precision: str
) -> None:
    damsm, expected = exact
    found = losses(precision, damsm)
    assert found.keys() == expected.keys()
    apart = {
        name: float(((found[name] - value).abs() / value.abs().clamp(min=1)).max())
        for name, value in expected.items()
    }
    for name, difference in apart.items():
        allowed = 0.15 if "damsm" in name else 0.05 if damsm else 0.01
        assert difference <= allowed, (name, difference)
    assert max(apart.values()) > 1e-4, "nothing was computed in sixteen bits"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [("fp32", 0.0, 1e-6), ("tf32", 1e-5, 1e-3), ("bf16", 1e-4, 1e-2), ("fp16", 1e-5, 1e-3)],
)
def test_products_are_rounded_as_asked(
    precision: str, least: float, most: float, restored_flags: None
) -> None:
    """Errors of convolutions on a GPU with tensor cores, relative to the largest value."""
    images, weight = torch.randn(4, 64, 16, 16), torch.randn(64, 64, 3, 3)
    exact = torch.nn.functional.conv2d(images.double(), weight.double())
    with Precision(precision, torch.device("cuda")).autocast():
        found = torch.nn.functional.conv2d(images.cuda(), weight.cuda())
    error = float((found.double().cpu() - exact).abs().max() / exact.abs().max())
    assert least <= error <= most


AMPERE, VOLTA = (8, 0), (7, 0)


@pytest.mark.parametrize(
    ("name", "device", "capability", "found"),
    [
        ("auto", "cuda", AMPERE, "tf32"),
        ("auto", "cuda", VOLTA, "fp32"),
        ("auto", "cpu", AMPERE, "fp32"),
        ("fp32", "cuda", AMPERE, "fp32"),
        ("bf16", "cuda", AMPERE, "bf16"),
    ],
)
def test_auto_is_tf32_where_a_gpu_has_it(  # noqa: PLR0917
    name: str,
    device: str,
    capability: tuple[int, int],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    restored_flags: None,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    precision = Precision(name, torch.device(device))
    assert precision.name == found
    # In sixteen bits too: what autocast leaves in float32 is rounded, not slow.
    rounded = found != "fp32"
    assert torch.backends.cuda.matmul.allow_tf32 is rounded
    assert torch.backends.cudnn.allow_tf32 is rounded
    with precision.float32("fp32"):
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False
    with precision.float32("tf32"):
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is True
    with precision.float32(None):
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is rounded
    said = describe_arithmetic(EngineConfig(precision=name), torch.device(device))
    assert said == ("tf32 by engine.precision=auto" if (name, found) == ("auto", "tf32") else found)


def test_cudnn_times_its_algorithms_unless_runs_must_be_bit_identical(
    monkeypatch: pytest.MonkeyPatch, restored_flags: None
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn, gpu = torch.backends.cudnn, torch.device("cuda")
    Precision("fp32", gpu)
    assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
    assert not torch.are_deterministic_algorithms_enabled()
    Precision("fp32", gpu, deterministic=True)
    assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    torch.use_deterministic_algorithms(False)
    Precision("fp32", torch.device("cpu"), deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


class Types(TorchDispatchMode):
    """Collects the types of the results of operations whose names begin so."""

    def __init__(self, *names: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.seen = names, dict[str, set[torch.dtype]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in self.names:
            self.seen.setdefault(name, set()).add(result.dtype)
        return result


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_penaltys_power_and_the_softmax_over_words_stay_float32(precision: str) -> None:
    engine = ssa_gan(precision, 0.125)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    context = engine.begin(tiny_batch(), torch.randn(4, 100))
    names = ("convolution", "pow", "_softmax", "logsumexp", "_log_softmax")
    seen = {}
    for phase in engine.system.phases:
        with Types(*names) as types:
            loss, _ = engine.forward(phase, phase.loss, context)
            engine.backward(phase, loss)
        seen[phase.name] = types.seen
    assert seen["discriminator"]["convolution"] == {half}
    # The gradient of a gradient leaves float16's range.
    penalty = half if precision == "bf16" else torch.float32
    assert seen["penalty"]["convolution"] == {penalty}
    assert seen["penalty"]["pow"] == {torch.float32}
    assert half in seen["generator"]["convolution"]
    for name in ("_softmax", "logsumexp", "_log_softmax"):
        assert seen["generator"][name] == {torch.float32}


def half_engine(factor: float = 1.0) -> DDPStrategy:
    def spoil(loss: Tensor, batch: Batch, phase: str) -> Tensor:
        """Make phase b too large in its second step."""
        return loss * (factor if phase == "b" and int(batch.positions[0]) == 4 else 1.0)

    return DDPStrategy(Toy(spoil), CPU, EngineConfig(batch_size=4, precision="fp16"))


def run(strategy: DDPStrategy, first: int, last: int) -> dict[str, Tensor]:
    for step in range(first, last):
        train_step(strategy, *toy_batch(4, 4 * step), 4 * step)
    return {name: value.clone() for name, value in strategy.system.modules.state_dict().items()}


def scale(strategy: DDPStrategy, part: str) -> float:
    scaler = strategy.scalers[part,]
    assert scaler is not None
    return float(scaler.get_scale())


def test_an_overflow_skips_the_update_and_halves_the_scale() -> None:
    strategy = half_engine(factor=1e4)
    first = run(strategy, 0, 1)
    before = scale(strategy, "b")
    second = run(strategy, 1, 2)
    assert scale(strategy, "b") == before / 2
    assert scale(strategy, "a") == before
    for name in first:
        assert torch.equal(first[name], second[name]) == name.startswith("b."), name
    third = run(strategy, 2, 3)
    assert not torch.equal(second["b.common.weight"], third["b.common.weight"])
    # Norms are without the scale; of an overflow there is none, which is no reason to stop.
    assert strategy.nonfinite.gradient_norms(2).keys() == {"a/a"}
    plain = DDPStrategy(Toy(), CPU, EngineConfig(batch_size=4))
    plain.system.modules.load_state_dict(second)
    run(plain, 2, 3)
    expected = {"b/b": plain.nonfinite.gradient_norms(3)["b/b"]}  # phase a overflows there
    assert strategy.nonfinite.gradient_norms(3) == pytest.approx(expected, rel=1e-2)
    assert strategy.nonfinite.pop_first(10) is None


def test_the_scale_is_saved_and_a_resumed_training_is_equal_to_the_bit() -> None:
    whole, before, after = half_engine(1e4), half_engine(1e4), half_engine(1e4)
    expected = run(whole, 0, 6)
    after.system.modules.load_state_dict(run(before, 0, 3))
    moments = {name: value.clone() for name, value in before.read_moments().items()}
    assert {"scaler/a", "scaler/b"} <= moments.keys()
    after.write_moments(moments)
    assert scale(after, "b") == scale(before, "b") < 65536  # where scales begin
    found = run(after, 3, 6)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    ours, theirs = whole.read_moments(), after.read_moments()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_scale_that_falls_to_zero_stops_the_run() -> None:
    def never(loss: Tensor, batch: Batch, phase: str) -> Tensor:
        """Give a finite loss whose gradient is NaN."""
        return loss + (loss * 0).sqrt() if phase == "b" else unspoilt(loss, batch, phase)

    strategy = DDPStrategy(Toy(never), CPU, EngineConfig(batch_size=4, precision="fp16"))
    run(strategy, 0, 20)
    assert strategy.nonfinite.pop_first(21) is None
    run(strategy, 20, 170)
    found = strategy.nonfinite.pop_first(171)
    assert found is not None
    assert found.startswith("the loss scaled by 1 / 0 in phase b of step 1")


def test_float16_and_skip_are_refused_together() -> None:
    config = EngineConfig(precision="fp16", on_nonfinite="skip")
    with pytest.raises(ConfigurationError, match="skips updates that overflow by itself"):
        DDPStrategy(Toy(), CPU, config)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_captions_of_one_length_are_learnt_from_in_sixteen_bits(precision: str) -> None:
    """torch asks for an LSTM that oneDNN lacks: in float16, without AVX-512 in bfloat16 too."""
    config = EngineConfig(batch_size=4, precision=precision)
    strategy = DDPStrategy(tiny_system("joint", 0.125), CPU, config)
    batch = replace(tiny_batch(), lengths=torch.full((4,), 6))
    values = train_step(strategy, batch, torch.randn(4, 100))
    assert all(value.isfinite() for value in values.values())


def test_captions_of_one_length_are_encoded_in_bfloat16_without_avx512() -> None:
    program = (
        "import torch\n"
        "from t2i_hpc.models.text_encoder import LSTMTextEncoder\n"
        "with torch.autocast('cpu', torch.bfloat16):\n"
        "    LSTMTextEncoder(9, 8)(torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 3]))\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
