"""Codes of captions, made once by an encoder and kept in files that evaluations share.

Checkpoints, shards and runs score with the same captions and the same text encoder. A file is named
by the hash of all that decides its content: the encoder's weights, the captions as it reads them,
the kind of device. So nothing in it is ever out of date; the files that were not read for longest
are deleted where all together are more than the limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.common.files import atomic_writer, sha256_of_json
from t2i_hpc.evaluation.compute import file_lock

BLOCK = 512  # captions encoded together; always the same ones, so bits depend on no shard
_LOG = logging.getLogger("t2i_hpc")
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)


@dataclass(frozen=True)
class CaptionCache:
    """A folder of captions' codes.

    Attributes:
        folder: of the files; made when there is something to keep.
        limit: bytes of all files together, at most; 0: nothing is kept.
    """

    folder: Path
    limit: int

    def codes(
        self, identity: Sequence[str], device: torch.device, make: Callable[[], Tensor]
    ) -> Tensor:
        """Return codes, float32 (n, D) on a device, out of their file or made and kept.

        Processes that want the same codes wait for the one that makes them. A folder that cannot be
        written to costs time and nothing else.

        Args:
            identity: what decides them beside the kind of device: encoder and captions.
            device: that they are made on.
            make: makes them.
        """
        if not self.limit:
            return make().float()
        path = self.folder / f"{sha256_of_json([*identity, device.type])}.npz"
        found = self._read(path)
        if found is None:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(file_lock(path))
                except OSError as error:
                    _LOG.warning(
                        "%s cannot be written to (%s): captions' codes are not kept",
                        self.folder,
                        error,
                    )
                    return make().float()
                found = self._read(path)
                if found is None:
                    found = make().float().cpu()
                    self._keep(path, found)
        return found.to(device)

    def _read(self, path: Path) -> Tensor | None:
        """Return the codes in a file; None where it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as content:
                codes, recorded = content["codes"], str(content["sha256"])
            if _digest(codes) != recorded:
                return None
            os.utime(path)  # read now, so it is deleted last
        except _UNREADABLE:
            return None
        return torch.from_numpy(codes)

    def _keep(self, path: Path, codes: Tensor) -> None:
        values = codes.numpy()
        try:
            self._make_room(values.nbytes)
            if values.nbytes <= self.limit:
                with atomic_writer(path) as stream:
                    np.savez(stream, codes=values, sha256=np.array(_digest(values)))
        except OSError as error:
            _LOG.warning("%s could not be written (%s)", path, error)

    def _make_room(self, wanted: int) -> None:
        """Delete the files that were not read for longest until `wanted` bytes are free."""
        files = []
        for path in self.folder.glob("*.npz"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = wanted + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
            total -= size


NOTHING_KEPT = CaptionCache(Path(), 0)


@dataclass
class CodesByNumber:
    """Codes of the captions that images were made of, in blocks by the images' numbers.

    Attributes:
        images: number of images.
        caption_of: gives the caption of an image by its number.
        encode: gives codes, float (n, D), of n captions.
        cache: keeps them.
        encoder: what decides the codes of a caption.
        device: of the codes.
    """

    images: int
    caption_of: Callable[[int], str]
    encode: Callable[[Sequence[str]], Tensor]
    cache: CaptionCache
    encoder: str
    device: torch.device
    _last: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, numbers: range) -> Tensor:
        """Return the codes of the captions of images, float32 (n, D)."""
        wanted = range(numbers.start // BLOCK, -(-numbers.stop // BLOCK))
        # A batch may lie in two blocks; the next one begins in the last of them.
        self._last = {block: self._block(block) for block in wanted}
        begin = wanted.start * BLOCK
        rows = torch.cat(list(self._last.values()))
        return rows[numbers.start - begin : numbers.stop - begin]

    def _block(self, block: int) -> Tensor:
        if block in self._last:
            return self._last[block]
        numbers = range(block * BLOCK, min((block + 1) * BLOCK, self.images))
        captions = [self.caption_of(number) for number in numbers]
        several = list(dict.fromkeys(captions))  # images of one caption may follow each other
        identity = [self.encoder, *several]
        codes = self.cache.codes(identity, self.device, lambda: self.encode(several))
        place = {caption: row for row, caption in enumerate(several)}
        return codes[[place[caption] for caption in captions]]


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(codes: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(codes).data).hexdigest()
