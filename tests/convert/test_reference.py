"""Import and export: names, shapes and order of the published networks; what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import UserError
from t2i_hpc.convert import ConversionError, export_reference, import_reference
from t2i_hpc.convert.reference import import_own
from t2i_hpc.models.df_generator import DFGenerator, EarlyDFGenerator
from t2i_hpc.models.discriminator import DFDiscriminator, DFHead, MatchingDiscriminator
from t2i_hpc.models.rat_generator import RATGenerator
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.models.staged_generator import SingleImageGenerator, StagedGenerator
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from tests.golden.case import case, published
from tests.support.networks import parameter_count

PUBLISHED = {
    "ssa_G": ("ssa_gan", "generator", 29_494_273),
    "ssa_D": ("ssa_gan", "discriminator", 78_280_326),
    "dfold_G": ("df_gan", "generator", 12_240_010),
    "dfold_D": ("df_gan", "discriminator", 20_170_566 - 2 * (512 * 512 + 512)),
    "dfnew_G": ("df_gan", "generator", 9_744_131),
    "dfnew_D": ("df_gan", "discriminator", 6_619_206 - 3 * (256 * 256 + 256)),
    "dfnew_C": ("df_gan", "head", 295_936),
    "rat_G": ("rat_gan", "generator", 32_057_098),
    "attn_G": ("attn_gan", "generator", 7_084_592),
    "attn_D0": ("attn_gan", "discriminator64", 6_313_730),
    "attn_D1": ("attn_gan", "discriminator128", 19_424_002),
    "attn_D2": ("attn_gan", "discriminator256", 71_858_946),
    "dm_G": ("dm_gan", "generator", 21_449_042),
    "dm_D0": ("dm_gan", "discriminator64", 1_878_242),
    "dm_D1": ("dm_gan", "discriminator128", 5_155_810),
    "dm_D2": ("dm_gan", "discriminator256", 18_264_546),
    "rnn": ("damsm", "text", 8_629_420),
    "cnn": ("damsm", "image", 22_506_720),
}
GOLDEN = {
    "ssagan_ngf4 G": ("ssa_gan", "generator"),
    "ssagan_ngf4 D": ("ssa_gan", "discriminator"),
    "dfgan G": ("df_gan", "generator"),
    "dfgan D": ("df_gan", "discriminator"),
    "dfgan C": ("df_gan", "head"),
    "galip D": ("clip_gan", "discriminator"),
    "galip C": ("clip_gan", "head"),
    "attngan G": ("attn_gan", "generator"),
    "attngan D 1": ("attn_gan", "discriminator128"),
    "dmgan G": ("dm_gan", "generator"),
    "dmgan D 2": ("dm_gan", "discriminator256"),
    "damsm text": ("damsm", "text"),
    "damsm image": ("damsm", "image"),
}


def attention_generator(
    stages: int, kind: type[StagedGenerator] = StagedGenerator, residuals: int = 0
) -> StagedGenerator:
    kinds = ["initial", *["attention"] * (stages - 1)]
    return kind(kinds, 32 << stages, width=2, noise_width=7, sentence_width=6, residuals=residuals)


def golden_weights(name: str) -> dict[str, Tensor]:
    file, *place = name.split()
    return case(file).weights(*place)


def generator_weights() -> dict[str, Tensor]:
    return golden_weights("ssagan_ngf4 G")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_shapes_and_order(name: str) -> None:
    """On torch's meta device: the networks have their full size, and no memory."""
    system, network, parameters = PUBLISHED[name]
    shapes = published(name)
    whole = {
        key: torch.empty(
            shape,
            device="meta",
            dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float32,
        )
        for key, shape in shapes.items()
    }
    module = import_reference(system, network, whole)
    assert parameter_count(module) == parameters
    assert not module.training
    exported = export_reference(system, network, module)
    assert [(key, tuple(value.shape)) for key, value in exported.items()] == list(shapes.items())
    assert [value.dtype for value in exported.values()] == [v.dtype for v in whole.values()]


@pytest.mark.parametrize("name", GOLDEN)
def test_export_gives_back_what_was_imported(name: str) -> None:
    system, network = GOLDEN[name]
    weights = golden_weights(name)
    module = import_reference(system, network, weights)
    exported = export_reference(system, network, module)
    assert list(exported) == list(weights)
    used = {value.data_ptr() for value in module.state_dict().values()}
    dead = [key for key, value in exported.items() if value.data_ptr() not in used]
    for key, value in exported.items():
        expected = torch.zeros_like(value) if key in dead else weights[key]
        assert torch.equal(value, expected), key
    assert {key.rpartition(".")[0] for key in dead} == {
        "ssagan_ngf4 D": {"block4.conv_s", "block5.conv_s"},
        "dfgan D": {"DBlocks.3.conv_s", "DBlocks.4.conv_s", "DBlocks.5.conv_s"},
        "galip D": {"DBlocks.0.conv_s", "DBlocks.1.conv_s"},
    }.get(name, set())


@pytest.mark.parametrize("name", GOLDEN)
def test_tensors_with_our_own_names(name: str) -> None:
    system, network = GOLDEN[name]
    module = import_reference(system, network, golden_weights(name))
    again = import_own(system, network, module.state_dict())
    assert type(again) is type(module)
    for key, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("resolution", [64, 128])
@pytest.mark.parametrize(
    ("system", "network", "build"),
    [
        ("ssa_gan", "generator", lambda r: SSAGenerator(r, width=3, noise_width=7, mask_width=5)),
        ("ssa_gan", "discriminator", lambda r: MatchingDiscriminator(r, 3, 12)),
        ("df_gan", "discriminator", lambda r: MatchingDiscriminator(r, 3, 12)),
        ("df_gan", "discriminator", lambda r: DFDiscriminator(r, 3)),
        ("df_gan", "head", lambda _: DFHead(3, 12)),
        ("df_gan", "generator", lambda r: DFGenerator(r, width=3, noise_width=7)),
        ("df_gan", "generator", lambda r: EarlyDFGenerator(r, width=3, sentence_width=12)),
        ("rat_gan", "generator", lambda r: RATGenerator(r, width=3, sentence_width=12)),
        ("attn_gan", "generator", lambda _: attention_generator(1, residuals=2)),
        ("attn_gan", "generator", lambda _: attention_generator(2, residuals=3)),
        ("attn_gan", "generator", lambda _: attention_generator(3, SingleImageGenerator)),
        ("attn_gan", "discriminator128", lambda _: StagedDiscriminator(128, 3, 12)),
        (
            "attn_gan",
            "discriminator256",
            lambda _: StagedDiscriminator(256, 2, 12, unconditional=False),
        ),
        ("dm_gan", "discriminator64", lambda _: StagedDiscriminator(64, 3, 12, norm="spectral")),
        ("damsm", "text", lambda _: LSTMTextEncoder(9, 6, 5)),
    ],
)
def test_sizes_are_read_off_the_shapes(
    system: str, network: str, build: Callable[[int], nn.Module], resolution: int
) -> None:
    module = build(resolution)
    again = import_reference(system, network, export_reference(system, network, module))
    assert type(again) is type(module)
    assert again.state_dict().keys() == module.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_prefix_and_counters_may_differ() -> None:
    weights = generator_weights()
    expected = import_reference("ssa_gan", "generator", weights).state_dict()
    bare = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert len(bare) == len(weights) - 22
    for variant in ({f"module.{k}": v for k, v in weights.items()}, bare):
        found = import_reference("ssa_gan", "generator", variant).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_tensors_are_copied_as_float32(given: torch.dtype) -> None:
    weights = {key: value.to(given) for key, value in golden_weights("damsm text").items()}
    encoder = import_reference("damsm", "text", weights)
    before = weights["encoder.weight"].float().clone()
    weights["encoder.weight"].zero_()
    assert encoder.get_parameter("embedding.weight").dtype == torch.float32
    assert torch.equal(encoder.get_parameter("embedding.weight"), before)


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(5)
    import_reference("damsm", "text", golden_weights("damsm text"))
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))


def test_every_parameter_can_be_trained_but_inceptions() -> None:
    encoder = import_reference("damsm", "image", golden_weights("damsm image"))
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"heads.regions.weight", "heads.code.weight", "heads.code.bias"}
    generator = import_reference("ssa_gan", "generator", generator_weights())
    assert all(parameter.requires_grad for parameter in generator.parameters())


def refused(system: str, network: str, weights: Mapping[str, Any]) -> str:
    with pytest.raises(ConversionError) as refusal:
        import_reference(system, network, weights)
    assert isinstance(refusal.value, UserError)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_every_missing_tensor_is_named() -> None:
    weights = generator_weights()
    for name in weights:
        if not name.endswith("num_batches_tracked"):
            rest = {key: value for key, value in weights.items() if key != name}
            assert name in refused("ssa_gan", "generator", rest)


def test_unexpected_and_misshapen_tensors_are_named() -> None:
    weights = generator_weights()
    error = refused("ssa_gan", "generator", {**weights, "block9.sheep": torch.zeros(1)})
    assert "1 unexpected: block9.sheep" in error
    turned = {**weights, "block4.c1.weight": weights["block4.c1.weight"].transpose(0, 1)}
    error = refused("ssa_gan", "generator", turned)
    assert "block4.c1.weight (32, 16, 3, 3) instead of (16, 32, 3, 3)" in error
    assert "conv_img.2.weight" in refused(
        "ssa_gan", "generator", {**weights, "conv_img.2.weight": torch.zeros(3)}
    )


def test_a_dead_convolution_must_be_there_and_fit() -> None:
    weights = golden_weights("ssagan_ngf4 D")
    rest = {key: value for key, value in weights.items() if key != "block5.conv_s.bias"}
    assert "block5.conv_s.bias" in refused("ssa_gan", "discriminator", rest)


def test_another_network_or_system() -> None:
    refused("ssa_gan", "discriminator", generator_weights())
    refused("ssa_gan", "generator", golden_weights("dfgan G"))
    refused("df_gan", "head", golden_weights("dfgan D"))
    refused("damsm", "text", {})
    assert "unexpected: h_net2.A" in refused("attn_gan", "generator", golden_weights("dmgan G"))
    refused("dm_gan", "discriminator64", golden_weights("dmgan D 1"))
    refused("attn_gan", "discriminator128", golden_weights("attngan D 0"))
    refused("dm_gan", "discriminator128", golden_weights("attngan D 1"))
    assert "did you mean 'ssa_gan'" in refused("ssagan", "generator", {})
    assert "offered: discriminator, generator" in refused("ssa_gan", "head", {})


def test_what_is_no_tensor() -> None:
    weights = {**generator_weights(), "epoch": 600}
    assert "'epoch' is of type int" in refused("ssa_gan", "generator", weights)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (SSAGenerator(64, width=2, masks=3), "conv_mask.0.weight"),
        (SSAGenerator(64, width=2, modulation="paper"), "keeps_features is False"),
        (SSAGenerator(64, width=2, mask_source="paper"), "masks_from_enlarged is True"),
        (SSAGenerator(128, width=2, blocks=4), "upsampling"),
        (LSTMTextEncoder(9, 6, 5), "LSTMTextEncoder is no SSAGenerator"),
    ],
)
def test_networks_that_the_reference_cannot_hold(module: nn.Module, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        export_reference("ssa_gan", "generator", module)
