"""Files of tensors: the reference's .pth in, safetensors out, and back.

A .pth is a pickle, which can run code; torch's restricted reader takes tensors, plain values and
NumPy's numbers (which trainers save beside them), and that is all that is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from t2i_hpc.common.files import atomic_writer, sha256_of_file, write_bytes
from t2i_hpc.convert.networks import ConversionError, find_network
from t2i_hpc.convert.reference import export_reference, import_own, import_reference

Tensors = Mapping[str, Tensor]
_NUMBER_CODES = "?bBhHiIlLqQefdg"
_DEEPEST = 4  # mappings in mappings
# Names inside checkpoints that hold several networks, and whose they are.
SEVERAL = ("df_gan", "clip_gan")
NESTED = {"generator": "netG", "discriminator": "netD", "head": "netC"}
# What drives and repositories give in place of a large file.
_NO_CHECKPOINT = {
    b"<": "a web page: download the file in a browser",
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull where it is from",
}


def convert_file(source: Path, output: Path, system: str, network: str, direction: str) -> str:
    """Convert a file and return what was written, in two lines for people.

    Args:
        source: .pth of the reference, or .safetensors.
        output: .safetensors (direction ``import``) or .pth (``export``).
        system, network: of :func:`~t2i_hpc.convert.reference.import_reference`.
        direction: ``import`` from the reference's names to ours, or ``export``.

    Raises:
        ConversionError: a wrong file, system or network, or an output that exists.
    """
    find_network(system, network)
    _check_output(output, direction)
    tensors = read_tensors(source, system, network)
    if direction == "import":
        module = import_reference(system, network, tensors)
        notes = {"system": system, "network": network, "source": sha256_of_file(source)}
        write_safetensors(output, module.state_dict(), notes)
    else:
        module = import_own(system, network, tensors)
        write_pickle(output, export_reference(system, network, module))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return (
        f"{output}: {system} {network} ({type(module).__name__}), {parameters:,} parameters, "
        f"{output.stat().st_size:,} bytes\nsha256 {sha256_of_file(output)}"
    )


def _check_output(path: Path, direction: str) -> None:
    suffix = ".safetensors" if direction == "import" else ".pth"
    if path.suffix != suffix:
        named = path if path.name else "(empty)"
        raise ConversionError(
            f"output={named}: direction={direction} writes a {suffix} file; name one"
        )
    if path.exists():
        raise ConversionError(f"output={path} exists already: remove it, or name another file")


def read_tensors(path: Path, system: str, network: str, key: str = "input") -> Tensors:
    """Read a state dict from .safetensors or .pth; from a checkpoint of several networks, one.

    Args:
        path: the file.
        system, network: of :func:`~t2i_hpc.convert.reference.import_reference`.
        key: the setting that names the file, for messages.

    Raises:
        ConversionError: no such file, a damaged one, or one that holds more than tensors.
    """
    title = f"{key}={path}"
    if path.suffix == ".safetensors":
        return _read_safetensors(_there(path, title), title)
    nested = NESTED[network] if system in SEVERAL else ""
    return _network_of(_read_pickle(_there(path, title), title), title, nested)


def entries_of(path: Path, key: str = "input") -> tuple[str, ...]:
    """Return what a .pth of more than one network's tensors holds, at its top and below ``model``.

    A network that is there alone is the one that is read, and is not named.

    Raises:
        ConversionError: no such file, or a damaged one.
    """
    title = f"{key}={path}"
    if path.suffix == ".safetensors":
        return ()
    loaded = _read_pickle(_there(path, title), title)
    if not isinstance(loaded, Mapping) or _is_network(loaded):
        return ()
    inner = loaded.get("model")
    below = inner if isinstance(inner, Mapping) and not _is_network(inner) else {}
    there = {str(name): value for name, value in (*loaded.items(), *below.items())}
    networks = [
        name for name, value in there.items() if isinstance(value, Mapping) and _is_network(value)
    ]
    alone = networks if len(networks) == 1 and networks[0] not in NESTED.values() else []
    return tuple(name for name in there if name not in alone)


def other_networks(path: Path, key: str = "input") -> tuple[str, ...]:
    """Return which of generator, discriminator and head a file of several networks holds.

    Raises:
        ConversionError: no such file, or a damaged one.
    """
    there = entries_of(path, key)
    return tuple(name for name, nested in NESTED.items() if nested in there)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], notes: dict[str, str]) -> None:
    """Write tensors atomically, with notes in the file's head."""
    write_bytes(path, save(dict(tensors), metadata={"format": "pt", **notes}))


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically as the reference implementations read them."""
    with atomic_writer(path) as stream:
        torch.save(dict(tensors), stream)


def _there(path: Path, title: str) -> Path:
    if not path.is_file():
        raise ConversionError(
            f"{title}: there is no such file here; name the one that was published (docs/how-to/"
            "reproduce.md says where each is), or leave the setting out"
        )
    return path


def _read_safetensors(path: Path, title: str) -> Tensors:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{title} is no whole safetensors file: {error}") from error


def _read_pickle(path: Path, title: str) -> Any:
    """Unpickle a file; the same one is read once, since it may hold several networks."""
    state = path.stat()
    _refuse_other_files(path, title)
    try:
        return _unpickled(path, state.st_size, state.st_mtime_ns)
    except UnpicklingError as error:
        raise ConversionError(
            f"{title} is damaged or holds more than tensors, and is not unpickled because "
            "that could run code: save the state dict alone"
        ) from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise ConversionError(
            f"{title} is no whole file of torch.save ({type(error).__name__}); "
            "download or copy it again"
        ) from error


def _refuse_other_files(path: Path, title: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(64).lstrip()
    for start, what in _NO_CHECKPOINT.items():
        if head.startswith(start):
            raise ConversionError(f"{title} is no checkpoint but {what}")


@lru_cache(maxsize=1)
def _unpickled(path: Path, _size: int, _changed: int) -> Any:
    with torch.serialization.safe_globals(_numpy_numbers()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_numbers() -> list[Any]:
    """Return what rebuilds a NumPy number and does nothing else, by its names in NumPy 1 and 2."""
    scalar, kinds = np.float64(0).__reduce__()[0], [np.dtype(code) for code in _NUMBER_CODES]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *{type(kind) for kind in kinds}]


def _network_of(loaded: Any, title: str, nested: str) -> Tensors:
    """Take a network out of what a trainer wrapped it in, or the whole where it is one.

    Known are {model: {netG: …}} and a mapping, such as {state_dict: …, epoch: …}, that holds the
    network by its name, or one network alone.
    """
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping) or _is_network(loaded):
            break
        inner = {str(k): value for k, value in loaded.items() if isinstance(value, Mapping)}
        several = any(name.startswith("net") for name in inner)
        alone = [name for name, value in inner.items() if _is_network(value) and not several]
        known = [name for name in (nested, "model") if name in inner]
        if not known and len(alone) != 1:
            break
        loaded = inner[(known or alone)[0]]
    if not isinstance(loaded, Mapping):
        raise ConversionError(
            f"{title} holds a {type(loaded).__name__}, not tensors by name; "
            "save the network's state dict"
        )
    if any(isinstance(value, Mapping) for value in loaded.values()):
        raise ConversionError(
            f"{title} holds {', '.join(map(str, loaded))}, but not "
            f"{nested or 'this network'}: save the state dict of the network that is meant alone"
        )
    return loaded


def _is_network(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())
