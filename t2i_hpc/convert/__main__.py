"""Turns published checkpoints into a run directory, or one of them into safetensors and back."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from t2i_hpc.cli.command import Command, split_options
from t2i_hpc.common.terminal import say
from t2i_hpc.config.compose import compose_config, to_yaml
from t2i_hpc.config.tasks import ConvertConfig, TrainConfig

_OF_FILES = ("network", "direction", "input", "output", "reference")


def run(config: ConvertConfig) -> None:
    """Convert one file and print what was written.

    Raises:
        ConversionError: a wrong file, system or network, or an output that exists.
    """
    from t2i_hpc.convert.checkpoint_files import convert_file

    names = config.reference, config.network
    say(convert_file(Path(config.input), Path(config.output), *names, config.direction))


def make_run(arguments: Sequence[str]) -> int:
    """Write a run directory, print what it is made of, and its path last.

    Args:
        arguments: settings of `convert`, and those of the training that the files are of.

    Raises:
        UserError: an unknown setting, a file that does not fit, or a folder that exists.
    """
    from t2i_hpc.convert.networks import ConversionError
    from t2i_hpc.convert.published_run import read_published_run

    options, overrides = split_options(arguments)
    own = [each for each in overrides if each.partition("=")[0] in _RUN_KEYS]
    config = compose_config("convert", own, ConvertConfig)
    others = [each for each in overrides if each not in own]
    if not any(each.startswith(("experiment=", "system=")) for each in others):
        raise ConversionError(
            "experiment= is missing: name the one that the files belong to, e.g. "
            "experiment=cub_ssagan (docs/how-to/reproduce.md has a list)"
        )
    training = compose_config("train", others, TrainConfig, options.folder)
    if options.print_config:
        say(to_yaml(training).rstrip("\n"))
        return 0
    published = read_published_run(config, training)
    if not options.print_run:
        published.write()
        say("\n".join(published.lines()))
    say(published.folder)
    return 0


_RUN_KEYS = {each.name for each in fields(ConvertConfig)} - {*_OF_FILES} | {"output"}


class _ConvertCommand(Command[ConvertConfig]):
    """Reads ``system=`` as a plain value where files are converted: see `make_run` for the rest."""

    def _dispatch(self, arguments: list[str]) -> int:
        keys = {argument.partition("=")[0] for argument in arguments}
        if keys & (_RUN_KEYS - {"output"} | {"experiment"}) and not {"--help", "-h"} & keys:
            return make_run(arguments)
        return super()._dispatch([re.sub("^system=", "reference=", each) for each in arguments])


COMMAND = _ConvertCommand(
    task="convert",
    summary="Turns published checkpoints of SSA-GAN, DF-GAN, AttnGAN, DM-GAN and DAMSM into a run "
    "directory, which\ngenerate, evaluate, report and train start_from= take; the settings of "
    "train say which experiment\nthey belong to. Names, shapes, widths and words are checked; no "
    "pickle is trusted. With network=\none file becomes a safetensors file that system.*.weights "
    "load, or comes back from one.\nNetworks: ssa_gan generator, discriminator; df_gan generator, "
    "discriminator, head; attn_gan and dm_gan\ngenerator, discriminator64, discriminator128, "
    "discriminator256; damsm text, image.",
    config=ConvertConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.convert experiment=cub_ssagan generator=netG_550.pth "
        "text_encoder=text_encoder200.pth vocabulary=captions.pickle",
        "python -m t2i_hpc.convert experiment=coco_dfgan generator=state_epoch_290.pth "
        "text_encoder=text_encoder100.pth vocabulary=captions.pickle",
        "python -m t2i_hpc.convert system=damsm network=text input=text_encoder200.pth "
        "output=text_encoder.safetensors",
        "python -m t2i_hpc.convert system=ssa_gan network=generator direction=export "
        "input=generator.safetensors output=netG.pth",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
