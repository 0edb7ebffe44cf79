"""From a reference implementation's state dict to our module, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from t2i_hpc.convert.entries import Sizes, check_sizes, entries, reference_sizes, sizes
from t2i_hpc.convert.layouts import Layout
from t2i_hpc.convert.parts import find_part
from t2i_hpc.convert.shapes import ConversionError, Shapes, count_blocks

_PREFIX = "module."
_COMPILED = re.compile(r"(^|\.)_orig_mod\.")
# Attributes without tensors that decide what a network computes, and that a state dict with the
# reference's names cannot say.
_SETTINGS = ("upsampling", "enlargement", "keeps_features", "masks_from_enlarged")


def import_reference(system: str, part: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our module from a state dict with the reference's names.

    Widths, vocabulary size and resolution are read off the shapes; DF-GAN's two layouts are
    told apart by their names. Tensors are copied, as float32 where they are real numbers. The
    discriminators' dead convolutions are checked and dropped.

    Args:
        system: ``ssa_gan``, ``df_gan``, ``attn_gan``, ``dm_gan`` or ``damsm``.
        part: ``generator`` (all GANs); ``discriminator`` (ssa_gan, df_gan), ``head`` (df_gan);
            ``discriminator64``, ``discriminator128``, ``discriminator256`` (attn_gan, dm_gan);
            ``text`` or ``image`` (damsm).
        state_dict: with or without the prefix ``module.``, with or without
            ``num_batches_tracked``.

    Returns:
        The module in evaluation mode: generator(noise, sentence) →
        :class:`~t2i_hpc.systems.base.Pictures`; discriminator(image, sentence) → logits (B,),
        and ``features(image)``; text(tokens, lengths) → words and sentence; image(images) →
        regions and code. Of DF-GAN's CVPR 2022 layout the discriminator gives features only,
        head(features, sentence) → logits (B,), and
        :class:`~t2i_hpc.models.df_networks.PairedDiscriminator` joins the two.
        AttnGAN's and DM-GAN's: generator(noise, sentence, words, padding_mask) →
        :class:`~t2i_hpc.models.staged_generator.StagedPictures`, with the words hidden that
        the mask names; set its ``reference_mask`` to hide them as the weights were trained
        with. discriminator(image, sentence) →
        :class:`~t2i_hpc.models.staged_discriminator.Judgement`.

    Raises:
        ConversionError: unknown system or part; missing, unexpected or mis-shaped tensors.
    """
    title = f"{system} {part}"
    layouts = find_part(system, part).layouts
    tensors = _without_prefix(_only_tensors(title, state_dict))
    layout = next((one for one in layouts if one.mark in tensors), layouts[-1])
    module = _build(title, layout, sizes(tensors))
    found = list(entries(layout, module))
    check_sizes(title, sizes(tensors), {entry.theirs: entry.shape for entry in found})
    return _filled(
        module, {e.ours: tensors[e.theirs] for e in found if e.ours and e.theirs in tensors}
    )


def import_own(system: str, part: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build our module from a state dict with our own names, in evaluation mode.

    Raises:
        ConversionError: as :func:`import_reference`.
    """
    title = f"{system} {part}"
    tensors = _only_tensors(title, state_dict)
    for layout in find_part(system, part).layouts:
        found = reference_sizes(layout, tensors)
        if layout.mark in found:
            module = _build(title, layout, found)
            check_sizes(title, sizes(tensors), sizes(module.state_dict()))
            return _filled(module, tensors)
    raise ConversionError(
        f"{title}: the file holds none of our names of this part; is it another part's, or does "
        "it hold the reference's names already?"
    )


def export_reference(system: str, part: str, module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors under the reference's names, in its order.

    Dead convolutions that the reference's discriminators carry are zeros: their values were
    dropped on import, and no output depends on them. The other tensors share the module's
    memory.

    Raises:
        ConversionError: the module is of another class, or is built unlike the reference (with
            fewer masks, or another modulation).
    """
    title = f"{system} {part}"
    layout = _layout_of(title, find_part(system, part).layouts, module)
    own = module.state_dict()
    twin = _build(title, layout, reference_sizes(layout, own))
    check_sizes(title, sizes(own), sizes(twin.state_dict()))
    _check_settings(title, module, twin)
    some = next(iter(own.values()))
    return {
        entry.theirs: own[entry.ours].contiguous() if entry.ours else some.new_zeros(entry.shape)
        for entry in entries(layout, module)
    }


def _layout_of(title: str, layouts: tuple[Layout, ...], module: nn.Module) -> Layout:
    for layout in layouts:
        if isinstance(module, layout.network):
            return layout
    known = " or ".join(layout.network.__name__ for layout in layouts)
    raise ConversionError(f"{title}: {type(module).__name__} is no {known}; give one of these")


def _check_settings(title: str, module: nn.Module, twin: nn.Module) -> None:
    for (name, ours), theirs in zip(module.named_modules(), twin.modules(), strict=True):
        for setting in _SETTINGS:
            given, expected = getattr(ours, setting, None), getattr(theirs, setting, None)
            if given != expected:
                raise ConversionError(
                    f"{title}: {name + '.' if name else ''}{setting} is {given}, the reference's "
                    f"is {expected}: its checkpoints cannot hold this network"
                )


def _only_tensors(title: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ConversionError(
                f"{title}: {name!r} is of type {type(value).__name__}, not a tensor; give the "
                "state dict of this part alone"
            )
    return state_dict


def _without_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take off what DataParallel puts before every name, and torch.compile into it."""
    tensors = {_COMPILED.sub(r"\1", name): value for name, value in tensors.items()}
    while tensors and all(name.startswith(_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    return tensors


def _build(title: str, layout: Layout, found: Sizes) -> nn.Module:
    """Make the module without memory for its tensors and without drawing random numbers."""
    with torch.device("meta"):
        return layout.build(Shapes(title, found, count_blocks(found, layout.blocks))).eval()


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
