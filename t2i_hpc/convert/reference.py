"""From a reference implementation's state dict to our module, and back.

Which names belong together stands in :mod:`t2i_hpc.convert.names`; widths are read off the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.convert.names import CARRIED, DEAD, OURS, THEIRS, Patterns, reference_names
from t2i_hpc.convert.networks import (
    ConversionError,
    ReferenceNetwork,
    Shape,
    Shapes,
    find_network,
)

_PREFIX = "module."
_COMPILED = re.compile(r"(^|\.)_orig_mod\.")
_COUNTER = "num_batches_tracked"
# Attributes without tensors that decide what a network computes, and that a state dict with the
# reference's names cannot say.
_SETTINGS = ("upsampling", "enlargement", "keeps_features", "masks_from_enlarged")
_SHOWN = 6  # names of tensors in a message


def import_reference(system: str, network: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our module from a state dict with the reference's names.

    Widths, vocabulary size and resolution are read off the shapes; DF-GAN's two versions are
    told apart by their names. Tensors are copied, as float32 where they are real numbers. The
    discriminators' dead convolutions are checked and dropped.

    Args:
        system: ``ssa_gan``, ``df_gan``, ``rat_gan``, ``clip_gan``, ``attn_gan``, ``dm_gan`` or
            ``damsm``.
        network: ``generator`` (all GANs); ``discriminator`` (ssa_gan, df_gan), ``head`` (df_gan);
            ``discriminator64``, ``discriminator128``, ``discriminator256`` (attn_gan, dm_gan);
            ``text`` or ``image`` (damsm).
        state_dict: with or without the prefix ``module.``, with or without
            ``num_batches_tracked``.

    Returns:
        The module in evaluation mode: generator(noise, sentence) →
        :class:`~t2i_hpc.models.GeneratedImages`; discriminator(image, sentence) →
        logits (B,), and ``features(image)``; text(tokens, lengths) → words and sentence;
        image(images) → regions and code. Of DF-GAN's CVPR 2022 version the discriminator gives
        features only, head(features, sentence) → logits (B,), and
        :class:`~t2i_hpc.models.discriminator.PairedDiscriminator` joins the two.
        AttnGAN's and DM-GAN's: generator(noise, sentence, words, padding_mask) →
        :class:`~t2i_hpc.models.staged_generator.StagedImages`, with the words hidden that
        the mask names; set its ``reference_mask`` to hide them as the weights were trained
        with. discriminator(image, sentence) →
        :class:`~t2i_hpc.models.staged_discriminator.Logits`.

    Raises:
        ConversionError: unknown system or network; missing, unexpected or mis-shaped tensors.
    """
    title = f"{system} {network}"
    tensors = _without_prefix(_only_tensors(title, state_dict))
    reference = _closest(find_network(system, network), tensors, THEIRS)
    if reference.beside:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(reference.beside)}
    module = _build(title, reference, shapes_of(tensors))
    own = with_dead_convolutions(reference.patterns, module.state_dict())
    found = reference_names(reference.patterns, own)
    expected = {theirs: own[ours] for theirs, ours in found.items()}
    _check_shapes(title, shapes_of(tensors), shapes_of(expected))
    return _filled(module, {found[theirs]: tensor for theirs, tensor in tensors.items()})


def import_any(system: str, network: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our module from a state dict with the reference's names or our own.

    Raises:
        ConversionError: as :func:`import_reference`.
    """
    versions = find_network(system, network)
    theirs, ours = (_named(versions, _without_prefix(state_dict), side) for side in (THEIRS, OURS))
    return (import_own if ours > theirs else import_reference)(system, network, state_dict)


def sizes_of(system: str, network: str, module: nn.Module) -> dict[str, Any]:
    """Return what our module's class was made with: widths, resolution, and the like.

    Raises:
        ConversionError: as :func:`export_reference`.
    """
    title = f"{system} {network}"
    reference = next(one for one in find_network(system, network) if type(module) is one.kind)
    return reference.sizes(Shapes(title, shapes_of(export_reference(system, network, module))))


def _named(versions: tuple[ReferenceNetwork, ...], tensors: Mapping[str, Tensor], side: int) -> int:
    return max(len(reference_names(one.patterns, tensors, side)) for one in versions)


def import_own(system: str, network: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our module from a state dict with our own names, in evaluation mode.

    Raises:
        ConversionError: as :func:`import_reference`.
    """
    title = f"{system} {network}"
    tensors = _only_tensors(title, state_dict)
    reference = _closest(find_network(system, network), tensors, OURS)
    found = reference_names(reference.patterns, tensors)
    if not found:
        raise ConversionError(
            f"{title}: the file holds none of our names of this network; is it another "
            "network's, or does it hold the reference's names already?"
        )
    shapes = shapes_of({theirs: tensors[ours] for theirs, ours in found.items()})
    module = _build(title, reference, shapes)
    _check_shapes(title, shapes_of(tensors), shapes_of(module.state_dict()))
    return _filled(module, tensors)


def export_reference(system: str, network: str, module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors under the reference's names, in its order.

    Dead convolutions that the reference's discriminators carry are zeros: their values were
    dropped on import, and no output depends on them. The other tensors share the module's
    memory.

    Raises:
        ConversionError: the module is of another class, or is built unlike the reference (with
            fewer masks, or another modulation).
    """
    title, offered = f"{system} {network}", find_network(system, network)
    reference = next((one for one in offered if isinstance(module, one.kind)), None)
    if reference is None:
        known = " or ".join(one.kind.__name__ for one in offered)
        raise ConversionError(f"{title}: {type(module).__name__} is no {known}; give one of these")
    state = module.state_dict()
    own = with_dead_convolutions(reference.patterns, state)
    found = reference_names(reference.patterns, own)
    exported = {theirs: own[ours].contiguous() for theirs, ours in found.items()}
    twin = _build(title, reference, shapes_of(exported))
    _check_shapes(title, shapes_of(state), shapes_of(twin.state_dict()))
    _check_settings(title, module, twin)
    return exported


def with_dead_convolutions(patterns: Patterns, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict with what the reference carries beside: zeros where it is dead."""
    dead = _carried(own) if any(CARRIED in ours for _, ours in patterns) else {}
    if any(theirs.endswith(DEAD) for theirs, _ in patterns):
        for name, weight in own.items():
            block = name.removesuffix(".conv1.weight")
            if block != name and f"{block}.shortcut.weight" not in own:
                channels = len(weight)
                dead[f"{block}.shortcut.weight"] = weight.new_zeros(channels, channels, 1, 1)
                dead[f"{block}.shortcut.bias"] = weight.new_zeros(channels)
    return {**own, **dead}


def _carried(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what each block of RAT-GAN's carries: the one recurrence, and layers without use."""
    again = {name: value for name, value in own.items() if name.startswith("recurrence.")}
    carried: dict[str, Tensor] = {}
    for name, weight in own.items():
        block = name.removesuffix(".conv1.weight")
        if block != name:
            new, width = weight.new_zeros, len(own["recurrence.input"])
            carried |= {f"{block}.{CARRIED}.{key}": value for key, value in again.items()}
            for place, channels in (("fusion1", weight.shape[1]), ("fusion2", weight.shape[0])):
                for part in ("gamma", "beta"):
                    layer = f"{block}.{CARRIED}.{place}.{part}"
                    carried |= _zero_linear(f"{layer}.hidden", width, width, new)
                    carried |= _zero_linear(f"{layer}.output", width, channels, new)
                side = "before" if place == "fusion1" else "after"
                carried |= _zero_linear(f"{block}.{CARRIED}.{side}", channels, width, new)
    return carried


def _zero_linear(
    name: str, before: int, after: int, new: Callable[..., Tensor]
) -> dict[str, Tensor]:
    return {f"{name}.weight": new(after, before), f"{name}.bias": new(after)}


def _closest(
    versions: tuple[ReferenceNetwork, ...], tensors: Mapping[str, Tensor], side: int
) -> ReferenceNetwork:
    """Return the version whose patterns name the most of these tensors, the first where equal."""
    return max(versions, key=lambda one: len(reference_names(one.patterns, tensors, side)))


def _only_tensors(title: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ConversionError(
                f"{title}: {name!r} is of type {type(value).__name__}, not a tensor; give the "
                "state dict of this network alone"
            )
    return state_dict


def _without_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take off what DataParallel puts before every name, and torch.compile into it."""
    tensors = {_COMPILED.sub(r"\1", name): value for name, value in tensors.items()}
    while tensors and all(name.startswith(_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    return tensors


def _build(title: str, reference: ReferenceNetwork, shapes: Mapping[str, Shape]) -> nn.Module:
    """Make the module without memory for its tensors and without drawing random numbers."""
    with torch.device("meta"):
        return reference.build(Shapes(title, shapes)).eval()


def _filled(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a module without memory copies of the tensors; counters not given are 0."""
    values = {
        name: tensors[name].detach().to(empty.dtype, copy=True).contiguous()
        if name in tensors
        else torch.zeros(empty.shape, dtype=empty.dtype)
        for name, empty in module.state_dict().items()
    }
    module.load_state_dict(values, assign=True)
    return module


def shapes_of(tensors: Mapping[str, Tensor] | nn.Module) -> dict[str, Shape]:
    """Return the shapes of tensors, or of a module's, by name."""
    named = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def _check_shapes(title: str, given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    reason = describe_misfit(given, expected)
    if reason:
        raise ConversionError(
            f"{title}: the tensors do not fit ({reason}); is this checkpoint whole, and of this "
            "system and network?"
        )


def describe_misfit(given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    """Name what is missing, unexpected or of another shape; "" where all fits.

    Counters of batches may be missing.
    """
    missing = [n for n in expected if n not in given and not n.endswith(_COUNTER)]
    unexpected = [name for name in given if name not in expected]
    other = [
        f"{name} {given[name]} instead of {expected[name]}"
        for name in expected
        if name in given and given[name] != expected[name]
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    return "; ".join(f"{len(found)} {kind}: {_some(found)}" for kind, found in kinds if found)


def _some(found: list[str]) -> str:
    rest = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _check_settings(title: str, module: nn.Module, twin: nn.Module) -> None:
    for (name, ours), theirs in zip(module.named_modules(), twin.modules(), strict=True):
        for setting in _SETTINGS:
            given, expected = getattr(ours, setting, None), getattr(theirs, setting, None)
            if given != expected:
                raise ConversionError(
                    f"{title}: {name + '.' if name else ''}{setting} is {given}, the reference's "
                    f"is {expected}: its checkpoints cannot hold this network"
                )
