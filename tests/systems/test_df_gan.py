"""DF-GAN's CVPR 2022 version as a system: its one update of the discriminator, its noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.systems import one_stage_gan
from t2i_hpc.systems.one_stage_gan import OneStageGAN, truncated
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch
from tests.systems.tiny import built

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def system_of(*overrides: str) -> OneStageGAN:
    torch.manual_seed(0)
    system = built("df_gan", *overrides)
    assert isinstance(system, OneStageGAN)
    with torch.no_grad():
        for parameter in system.modules.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return system


def double_images(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1.0


def test_one_update_of_all_losses_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the spec, written plainly: cyclic wrong pairs, one backward, one step of Adam."""
    monkeypatch.setattr(one_stage_gan, "scale_images", double_images)
    ours, plain = system_of(), system_of()
    ours.modules.double()
    plain.modules.double()
    batch, noise = tiny_batch(), torch.randn(4, 8, dtype=torch.float64)
    train_step(DDPStrategy(ours, CPU), batch, noise)

    with torch.no_grad():
        encoded = plain.text_encoder.eval()(batch.tokens, batch.lengths)
        fake = plain.generator(noise, encoded.sentence).images[-1]
    logits, features = plain.discriminator.logits, plain.discriminator.features
    leaves = [double_images(batch.images), encoded.sentence.clone()]
    image, sentence = (leaf.requires_grad_() for leaf in leaves)
    real = features(image)
    matching = logits(real, sentence)
    wrong = logits(real, sentence.roll(-1, 0))
    hinge = F.relu(1 - matching).mean() + 0.5 * F.relu(1 + wrong).mean()
    hinge = hinge + 0.5 * F.relu(1 + logits(features(fake), sentence)).mean()
    gradients = torch.autograd.grad(matching.sum(), [image, sentence], create_graph=True)
    norm = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
    adam = torch.optim.Adam(plain.discriminator.parameters(), 4e-4, (0.0, 0.9))
    (hinge + 2 * norm.pow(6).mean()).backward()
    adam.step()
    expected = plain.discriminator.state_dict()
    for name, value in ours.discriminator.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9, msg=name)


def test_noise_is_bent_into_the_cut_distribution() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    bent = truncated(noise)
    assert bent.abs().max() <= 2
    assert float(bent.std()) == pytest.approx(0.8796, abs=0.02)  # of N(0, 1) within ±2
    assert torch.equal(bent.argsort(), noise.argsort())
    assert truncated(torch.tensor([0.0, 40.0])).tolist() == pytest.approx([0.0, 2.0])


def test_generate_takes_the_scaled_and_cut_noise() -> None:
    batch, noise = tiny_batch(), 3 * torch.randn(4, 8)
    system, plain = system_of(), system_of("system.truncation=0")
    generated = system.generate(batch.tokens, batch.lengths, noise).images[-1]
    expected = plain.generate(batch.tokens, batch.lengths, 0.88 * truncated(noise)).images[-1]
    torch.testing.assert_close(generated, expected)
    other = plain.generate(batch.tokens, batch.lengths, noise).images[-1]
    assert not torch.allclose(generated, other, atol=1e-3)
