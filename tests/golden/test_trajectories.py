"""Three whole training steps of SSA-GAN, frozen and fine-tuned, against the released code.

System and engine run as in training; only the conversion of pixels is left out, since the
reference's images are not whole numbers. Rounding in float32 is part of what is compared: Adam
with β₁ = 0 turns a gradient near zero into a whole step, so after two updates images agree to
1e-3, and single numbers to 2e-5 (ours in float64 are no nearer).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.convert import import_reference
from t2i_hpc.data.batches import Batch
from t2i_hpc.systems import one_stage_gan
from t2i_hpc.systems.one_stage_gan import OneStageGAN, OneStageStep
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.golden import fill
from tests.golden.case import NORM, Case, case, names

# Batch norm takes these biases' gradients away; what is left is rounding (17 of 201 tensors).
_BEFORE_BATCH_NORM = ("c1.bias", "c2.bias", "c_sc.bias")
_STEPS = 3


def reference(golden: Case, system: str, part: str, shapes: dict[str, list[int]]) -> nn.Module:
    gain = golden.facts["gan_gain"] if system == "ssa_gan" else 1.0
    return import_reference(system, part, fill.state_dict(shapes, golden.seed, gain))


def build(golden: Case, training: str, folder: Path) -> OneStageGAN:
    networks, encoders = case("ssagan_ngf4").facts, case("damsm").facts
    for part in ("text", "image"):
        encoder = reference(golden, "damsm", part, encoders[part])
        save_file(encoder.state_dict(), folder / f"{part}.safetensors")
    config = SSAGANConfig(generator_width=4, discriminator_width=4)
    config.damsm.weight = golden.facts["damsm_weight"]
    config.text_encoder.dropout = 0.0
    config.text_encoder.training = training
    config.text_encoder.weights = str(folder / "text.safetensors")
    config.image_encoder.weights = str(folder / "image.safetensors")
    system = OneStageGAN(config, golden.facts["ntoken"])
    for part, key in (("generator", "G"), ("discriminator", "D")):
        module = reference(golden, "ssa_gan", part, networks[key])
        system.modules[part].load_state_dict(module.state_dict())
    return system


def summed(values: Mapping[str, Tensor], start: str, weight: float) -> float:
    return weight * sum(value.item() for name, value in values.items() if name.startswith(start))


def as_recorded(values: Mapping[str, Tensor], golden: Case) -> dict[str, float]:
    """Name the losses of a step as the reference's record does."""
    return {
        "d_real": values["discriminator/real"].item(),
        "d_mismatch": values["discriminator/mismatch"].item(),
        "d_fake": values["discriminator/fake"].item(),
        "magp": 2 * values["penalty/gradient"].item(),
        "g_adv": values["generator/adversarial"].item(),
        "damsm_g": summed(values, "generator/damsm_", golden.facts["damsm_weight"]),
        "damsm_real": summed(values, "encoders/", 1.0),
    }


def check_norms(golden: Case, key: str, module: nn.Module, system: str, part: str) -> None:
    own = dict(module.named_parameters())
    rows = [row for row in names(system, part, module) if row[1] is None or row[1] in own]
    for (theirs, ours), stored in zip(rows, golden.values[f"final_l2.{key}"], strict=True):
        if ours and not (key == "G" and theirs.endswith(_BEFORE_BATCH_NORM)):
            norm = own[ours].detach().double().norm().item()
            assert norm == pytest.approx(float(stored), rel=NORM, abs=2e-5), theirs


@pytest.mark.parametrize(("name", "training"), [("fixed", "frozen"), ("damsm", "damsm")])
def test_losses_weights_and_image(
    name: str, training: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = case(f"steps_{name}")
    system = build(golden, training, tmp_path)
    monkeypatch.setattr(one_stage_gan, "scale_images", lambda images: images)
    steps: list[OneStageStep] = []
    begin = system.begin

    def remember(batch: Batch, noise: Tensor) -> OneStageStep:
        steps.append(begin(batch, noise))
        return steps[-1]

    monkeypatch.setattr(system, "begin", remember)
    strategy = DDPStrategy(system, World(0, 1, 0, 1, torch.device("cpu")))
    positions = torch.arange(golden.batch)
    for step in range(_STEPS):
        captions, lengths = golden.array(f"captions{step}"), golden.array(f"lengths{step}")
        batch = Batch(golden.images(f"x{step}"), captions, lengths, positions, positions)
        values = train_step(strategy, batch, golden.input(f"z{step}", 100))
        for key, value in as_recorded(values, golden).items():
            if golden.values[key].size:
                stored = float(golden.values[key][step])
                assert value == pytest.approx(stored, rel=NORM, abs=2e-5), (step, key)
    check_norms(golden, "G", system.generator, "ssa_gan", "generator")
    check_norms(golden, "D", system.discriminator, "ssa_gan", "discriminator")
    check_norms(golden, "T", system.text_encoder, "damsm", "text")
    # The image recorded last is the third step's, generated before its generator update.
    final = steps[-1].fake.detach()[..., ::16, ::16]
    torch.testing.assert_close(final, golden.array("final.image.sub"), rtol=0, atol=1e-3)
