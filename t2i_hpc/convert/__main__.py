"""Turns a reference implementation's checkpoint into safetensors with our names, and back."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import ConvertConfig


def run(config: ConvertConfig) -> None:
    """Convert one file and print what was written.

    Raises:
        ConversionError: a wrong file, system or network, or an output that exists.
    """
    from t2i_hpc.convert.checkpoint_files import convert_file

    names = config.reference, config.network
    say(convert_file(Path(config.input), Path(config.output), *names, config.direction))


class _ConvertCommand(Command[ConvertConfig]):
    """Reads ``system=`` as a plain value: elsewhere it names a group of files in configs/."""

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command with `arguments` (default: the process's) and return its exit code."""
        given = sys.argv[1:] if arguments is None else arguments
        return super().main([re.sub("^system=", "reference=", argument) for argument in given])


COMMAND = _ConvertCommand(
    task="convert",
    summary="Turns published checkpoints of SSA-GAN, DF-GAN, AttnGAN, DM-GAN and DAMSM into "
    "safetensors files\nthat system.*.weights load, and back. Names, shapes and widths are "
    "checked; no pickle is trusted.\nNetworks: ssa_gan generator, discriminator; df_gan generator, "
    "discriminator, head; attn_gan and dm_gan\ngenerator, discriminator64, discriminator128, "
    "discriminator256; damsm text, image.",
    config=ConvertConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.convert system=ssa_gan network=generator input=netG_600.pth "
        "output=generator.safetensors",
        "python -m t2i_hpc.convert system=damsm network=text input=text_encoder200.pth "
        "output=text_encoder.safetensors",
        "python -m t2i_hpc.convert system=ssa_gan network=generator direction=export "
        "input=generator.safetensors output=netG.pth",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
