"""Command: a reference implementation's checkpoint to safetensors with our names, and back."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import ConvertConfig


def run(config: ConvertConfig) -> None:
    """Convert one file and print what was written.

    Raises:
        ConversionError: a wrong file, system or part, or an output that exists.
    """
    from t2i_hpc.convert.files import read_tensors, write_pickle, write_safetensors
    from t2i_hpc.convert.parts import find_part
    from t2i_hpc.convert.reference import export_reference, import_own, import_reference

    system, part, output = config.reference, config.part, Path(config.output)
    find_part(system, part)
    _check_output(config)
    tensors = read_tensors(Path(config.input), system, part)
    if config.direction == "import":
        module = import_reference(system, part, tensors)
        notes = {"system": system, "part": part, "source": sha256_of_file(Path(config.input))}
        write_safetensors(output, module.state_dict(), notes)
    else:
        module = import_own(system, part, tensors)
        write_pickle(output, export_reference(system, part, module))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    say(
        f"{output}: {system} {part} ({type(module).__name__}), {parameters:,} parameters, "
        f"{output.stat().st_size:,} bytes\nsha256 {sha256_of_file(output)}"
    )


def _check_output(config: ConvertConfig) -> None:
    from t2i_hpc.convert.shapes import ConversionError

    suffix = ".safetensors" if config.direction == "import" else ".pth"
    if Path(config.output).suffix != suffix:
        raise ConversionError(
            f"output={config.output or '(empty)'}: direction={config.direction} writes a "
            f"{suffix} file; name one"
        )
    if Path(config.output).exists():
        raise ConversionError(
            f"output={config.output} exists already: remove it, or name another file"
        )


class _ConvertDoor(Command[ConvertConfig]):
    """Reads ``system=`` as a plain value: elsewhere it names a group of files in configs/."""

    def main(self, words: Sequence[str] | None = None) -> int:
        """Run the command with `words` (default: the process's) and return its exit code."""
        given = sys.argv[1:] if words is None else words
        return super().main([re.sub("^system=", "reference=", word) for word in given])


COMMAND = _ConvertDoor(
    task="convert",
    summary="Turns published checkpoints of SSA-GAN, DF-GAN, AttnGAN, DM-GAN and DAMSM into "
    "safetensors files\nthat system.*.weights load, and back. Names, shapes and widths are "
    "checked; no pickle is trusted.\nParts: ssa_gan generator, discriminator; df_gan generator, "
    "discriminator, head; attn_gan and dm_gan\ngenerator, discriminator64, discriminator128, "
    "discriminator256; damsm text, image.",
    config=ConvertConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.convert system=ssa_gan part=generator input=netG_600.pth "
        "output=generator.safetensors",
        "python -m t2i_hpc.convert system=damsm part=text input=text_encoder200.pth "
        "output=text_encoder.safetensors",
        "python -m t2i_hpc.convert system=ssa_gan part=generator direction=export "
        "input=generator.safetensors output=netG.pth",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
