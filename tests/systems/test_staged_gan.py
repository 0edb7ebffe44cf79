"""GANs that generate in stages: the step against the plain one, conditions, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.losses.adversarial import entropy_real
from t2i_hpc.models.augmentation import KINDS, augment
from t2i_hpc.systems import build_system, staged_gan
from t2i_hpc.systems import staged_gan as staged_gan_networks
from t2i_hpc.systems.staged_gan import StagedGAN, shrunk
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.networks import parameter_count
from tests.support.training import tiny_batch
from tests.systems.plain_staged_step import PlainStagedStep
from tests.systems.tiny import built

CPU = World(0, 1, 0, 1, torch.device("cpu"))
NO_DAMSM = "system.damsm.weight=0"


def system_of(name: str, *overrides: str) -> StagedGAN:
    torch.manual_seed(0)
    system = built(name, *overrides)
    assert isinstance(system, StagedGAN)
    return system


def noise_of(system: StagedGAN, seed: int = 1) -> Tensor:
    return torch.randn(4, system.noise_width, generator=torch.Generator().manual_seed(seed))


def double_images(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1.0


@pytest.mark.parametrize("name", ["attn_gan", "attn_dcgan", "dm_gan"])
def test_two_steps_equal_the_plain_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_gan, "scale_images", double_images)
    ours = system_of(name, NO_DAMSM)
    ours.modules.double()
    theirs = copy.deepcopy(ours)  # its losses are not entered: they belong to `ours`
    strategy, plain = DDPStrategy(ours, CPU), PlainStagedStep(theirs)
    for step in range(2):
        batch, noise = tiny_batch(start=4 * step), noise_of(ours, step).double()
        values = train_step(strategy, batch, noise, 4 * step)
        images = double_images(batch.images)
        expected = plain.run(images, batch.tokens, batch.lengths, noise)
        for phase, loss in expected.items():
            found = weighted_sum(phase, values, ours.config.unconditional)
            torch.testing.assert_close(found, loss, rtol=1e-9, atol=0, msg=phase)
    state = theirs.modules.state_dict()
    for key, value in ours.modules.state_dict().items():
        if not key.startswith("generator_ema."):
            torch.testing.assert_close(value, state[key], rtol=0, atol=1e-9, msg=key)


def weighted_sum(phase: str, values: dict[str, Tensor], both_heads: bool) -> Tensor:
    """Put a phase's loss together from the terms that are reported."""
    high, low = (1 / 2, 1 / 3) if both_heads else (1.0, 1 / 2)
    weights = {"real": high, "real_alone": high, "fake": low, "fake_alone": low, "mismatch": low}
    terms = {k.split("/")[1]: v for k, v in values.items() if k.startswith(f"{phase}/")}
    return torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()


def test_all_that_discriminators_see_is_augmented_alike_and_the_largest_images_adapt_it() -> None:
    system = system_of("attndm_gan")
    step = system.begin(tiny_batch(), noise_of(system))
    system.modules.eval()  # spectral norms move with each forward
    small, large = (system.discriminator_losses(side, step) for side in (16, 64))
    assert not {"real_sign", "augmented"} & {*small}
    assert large["augmented"].value == 0.5
    found = system.generator_losses(step)["adversarial64"].value
    network, noise = system.discriminators[64], step.noise
    changed = augment(step.fake[64], noise, KINDS, 0.5)
    assert not changed.equal(step.fake[64])
    expected = entropy_real(network(changed, step.text.sentence).conditional)
    torch.testing.assert_close(found, expected)
    real = network(augment(step.real[64], noise, KINDS, 0.5), step.text.sentence)
    torch.testing.assert_close(large["real"].value, entropy_real(real.conditional))
    with pytest.raises(ConfigurationError, match="without system"):
        built("attn_gan", "system.augmentation_target=0.5")


def test_what_a_step_reports() -> None:
    values = train_step(DDPStrategy(system_of("attn_gan"), CPU), tiny_batch(), torch.randn(4, 13))
    pairs = {"real", "fake", "mismatch", "real_alone", "fake_alone"}
    expected = {f"discriminator{side}/{term}" for side in (16, 32, 64) for term in pairs}
    expected |= {
        f"generator/adversarial{side}{end}" for side in (16, 32, 64) for end in ("", "_alone")
    }
    texts = ("image_to_words", "words_to_image", "image_to_sentence", "sentence_to_image")
    expected |= {"generator/divergence", *(f"generator/damsm_{text}" for text in texts)}
    assert set(values) == expected
    assert all(bool(value.isfinite()) for value in values.values())


@pytest.mark.parametrize("name", ["attn_gan", "dm_gan"])
def test_all_parts_move_and_encoders_stay(name: str) -> None:
    system = system_of(name)
    before = copy.deepcopy(system.modules.state_dict())
    train_step(DDPStrategy(system, CPU), tiny_batch(), noise_of(system))
    state = system.modules.state_dict().items()
    moved = {key.split(".")[0] for key, value in state if not torch.equal(value, before[key])}
    sides = {f"discriminator{side}" for side in (16, 32, 64)}
    assert moved == {"generator", "generator_ema", *sides}


def test_bf16_stays_near_fp32() -> None:
    found = []
    for precision in ("fp32", "bf16"):
        system = system_of("dm_gan")
        strategy = DDPStrategy(system, CPU, EngineConfig(precision=precision))
        found.append(train_step(strategy, tiny_batch(), noise_of(system)))
    for name, exact in found[0].items():
        assert abs(float(found[1][name]) - float(exact)) < 0.05 * max(1.0, abs(float(exact))), name


@pytest.mark.parametrize("sampled", [True, False])
def test_the_condition_comes_from_the_noise_or_is_its_mean(sampled: bool) -> None:
    system = system_of("attn_gan", f"system.sample_condition={str(sampled).lower()}")
    assert system.noise_width == 8 + 5
    batch, noise = tiny_batch(), noise_of(system)
    first = system.generate(batch.tokens, batch.lengths, noise).images
    noise[:, -5:] += 1
    second = system.generate(batch.tokens, batch.lengths, noise).images
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [not sampled] * 3


def test_drawing_ignores_neighbors_and_has_a_map_a_word() -> None:
    system = system_of("dm_gan")
    batch, noise = tiny_batch(), noise_of(system)
    whole = system.generate(batch.tokens, batch.lengths, noise)
    one = system.generate(batch.tokens[2:3], batch.lengths[2:3], noise[2:3])
    torch.testing.assert_close(whole.images[-1][2:3], one.images[-1], atol=1e-5, rtol=0)
    assert [maps.shape for maps in whole.attention] == [(4, 6, 16, 16), (4, 6, 32, 32)]
    again = system.generate(batch.tokens, batch.lengths, noise)
    assert torch.equal(again.images[-1], whole.images[-1])


def test_images_shrink_as_pillow_shrinks_them() -> None:
    from PIL import Image

    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    small = picture.resize((16, 16), Image.Resampling.BILINEAR)
    expected = torch.tensor(list(small.tobytes())).view(16, 16, 3).permute(2, 0, 1)
    found = shrunk(pixels[None].float(), 16)[0]
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("system.stages=[attention,initial]", r"system\.stages=\[attention,initial\]: stages must"),
        ("system.stages=[initial,attention,memory,memory]", "8 px at 64 px"),
        ("system.stages=[initial,sheep]", "is not offered"),
        ("system.text_encoder.training=damsm", "has no effect on attn_gan"),
        ("system.name=ssa_gan", "is not offered"),
    ],
)
def test_what_does_not_fit_is_refused(override: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        built("attn_gan", override)


@pytest.mark.parametrize(
    ("experiment", "generator", "discriminators"),
    [
        ("cub_attngan2", 7_084_592, [6_313_730, 19_424_002, 71_858_946]),
        ("cub_attndcgan2", 6_638_960, [71_850_753]),
        ("cub_dmgan", 21_449_042, [1_878_242, 5_155_810, 18_264_546]),
        ("coco_dmgan", 22_335_314, [1_878_242, 5_155_810, 18_264_546]),
        ("cub_attndmgan", 21_407_249, [1_878_242, 5_155_810, 18_264_546]),
        ("cub_dmattngan", 21_407_249, [1_878_242, 5_155_810, 18_264_546]),
    ],
)
def test_experiments_have_the_published_sizes(
    experiment: str,
    generator: int,
    discriminators: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On torch's meta device, which holds no weights to initialize."""
    monkeypatch.setattr(staged_gan_networks, "initialize", lambda network: None)
    overrides = [f"experiment={experiment}", NO_DAMSM]
    config = compose_config("train", overrides, TrainConfig).system
    with torch.device("meta"):
        system = build_system(config, 9)
    assert isinstance(system, StagedGAN)
    assert parameter_count(system.generator) == generator
    assert [parameter_count(d) for d in system.discriminators.values()] == discriminators
