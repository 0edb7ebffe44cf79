"""The one model in memory: requests become images, their masks and their attention.

Image n of a caption is that of ``t2i_hpc.generate`` with the same seed in column n, so whatever a
page shows can be made again by a command.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.sampling.chosen_weights import choose_weights
from t2i_hpc.sampling.request import ReadRow, expand, read_rows
from t2i_hpc.sampling.trained_run import CaptionImages, TrainedRun
from t2i_hpc.systems.base import generating_networks

MOST_CHARACTERS = 1000
_LARGEST_SEED = 2**32 - 1
_KEYS = {"captions", "seed", "columns", "checkpoints"}


@dataclass(frozen=True)
class ImageRequest:
    """What a browser asks for.

    Attributes:
        captions: with words to swap in braces.
        seed: of the noise.
        columns: images of each caption.
        checkpoints: numbers of images seen, or ``latest``.
    """

    captions: Sequence[str]
    seed: int = 1
    columns: int = 4
    checkpoints: Sequence[str] = ("latest",)

    @classmethod
    def parse(cls, body: object) -> ImageRequest:
        """Read a request that came as JSON.

        Raises:
            ConfigurationError: a key or value that is none of a request's.
        """
        if not isinstance(body, dict) or not body.keys() <= _KEYS:
            raise ConfigurationError(f"a request is a JSON object of {', '.join(sorted(_KEYS))}")
        captions, checkpoints = body.get("captions"), body.get("checkpoints", ["latest"])
        if not _are_texts(captions) or sum(len(each) for each in captions) > MOST_CHARACTERS:
            raise ConfigurationError(
                f"captions= is a list of texts of {MOST_CHARACTERS:,} characters in all at most"
            )
        # Numbers alone: on the command line a file could be named, too.
        if not _are_texts(checkpoints) or not all(map(_is_checkpoint, checkpoints)):
            raise ConfigurationError('checkpoints= is a list like ["latest"] or ["8000","16000"]')
        seed = _whole(body, "seed", 1, 0, _LARGEST_SEED)
        return cls(captions, seed, _whole(body, "columns", 4, 1, 64), checkpoints)


class ServedRun:
    """A trained run whose requests one thread answers.

    Args:
        trained: the run, its networks on their device.
        most_images: that a request may ask for.
    """

    def __init__(self, trained: TrainedRun, most_images: int) -> None:
        self._trained, self._most_images = trained, most_images

    def about(self) -> dict[str, Any]:
        """Return what a page needs to know of the run; checkpoints may have come or gone."""
        trained = self._trained
        return {
            "run": trained.run.name,
            "system": trained.config.system.name,
            "vocabulary": trained.vocabulary.size,
            "checkpoints": [str(images) for images in list_checkpoints(trained.run)],
            "checkpoint": str(trained.images_seen),
            "most_images": self._most_images,
            "most_characters": MOST_CHARACTERS,
        }

    def answer(self, request: ImageRequest) -> dict[str, Any]:
        """Generate the images of a request; return a record that JSON can hold.

        Raises:
            UserError: wrong braces, no known word, too many images, no such checkpoint.
        """
        asked = expand(request.captions)
        count = len(asked) * request.columns * len(request.checkpoints)
        if count > self._most_images:
            raise ConfigurationError(
                f"this asks for {count:,} images, and {self._most_images} are allowed at once "
                "(most_images=): take fewer images, swaps or checkpoints"
            )
        longest = self._trained.config.data.max_tokens
        rows = read_rows(asked, self._trained.vocabulary, longest, request.seed)
        answered: list[dict[str, Any]] = []
        for checkpoint in request.checkpoints:
            self._load(checkpoint)
            answered += [self._row(row, request) for row in rows]
        return {
            "run": self._trained.run.name,
            "seed": request.seed,
            "columns": request.columns,
            "commands": [self._command(request, each) for each in request.checkpoints],
            "rows": answered,
        }

    def _load(self, checkpoint: str) -> None:
        """Put a checkpoint's weights into the networks, unless they are there."""
        weights = choose_weights(self._trained.run, checkpoint)
        if weights.sha256 != self._trained.checkpoint_sha256:
            system = self._trained.system
            weights.load(system.modules, generating_networks(system))
            self._trained = dataclasses.replace(self._trained, weights=weights)

    def _row(self, row: ReadRow, request: ImageRequest) -> dict[str, Any]:
        trained = self._trained
        made = trained.generate(row.caption, seed=request.seed, images_per_caption=request.columns)
        about = {
            "caption": row.caption,
            "seed": str(request.seed),
            "run": trained.run.name,
            "images_seen": str(trained.images_seen),
            "checkpoint_sha256": trained.checkpoint_sha256,
        }
        return {
            **asdict(row),
            "notes": row.notes,
            "checkpoint": str(trained.images_seen),
            "checkpoint_sha256": trained.checkpoint_sha256,
            "images": list(_pictures(made, row.words, about)),
        }

    def _command(self, request: ImageRequest, checkpoint: str) -> str:
        captions = ",".join('"' + each.replace('"', '\\"') + '"' for each in request.captions)
        parts = [f"run={self._trained.run}", f"checkpoint={checkpoint}", f"captions=[{captions}]"]
        parts += [f"columns={request.columns}", f"seed={request.seed}"]
        return shlex.join(["python", "-m", "t2i_hpc.generate", *parts])


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _is_checkpoint(name: str) -> bool:
    return name == "latest" or name.isdecimal()


def _whole(body: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = body.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigurationError(f"{key}= is a whole number from {low} to {high}")
    return value


def _pictures(
    made: CaptionImages, words: Sequence[str], about: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield each image with its masks, first block first, and where each word is attended to."""
    for number, picture in enumerate(made.pictures()):
        maps: Iterable[Tensor] = made.attention[-1][number, : len(words)] if made.attention else ()
        yield {
            "noise": number,
            "sha256": hashlib.sha256(picture.tobytes()).hexdigest(),
            "png": _png(picture, {**about, "noise": str(number)}),
            "masks": [_png(_light(mask[number, 0], 1.0)) for mask in made.masks],
            "attention": [_png(_light(each)) for each in maps],
        }


def _light(values: Tensor, whitest: float | None = None) -> Image.Image:
    """Turn (h, w) into grey, white at `whitest` or at the largest value."""
    scale = float(values.max().clamp(min=1e-12)) if whitest is None else whitest
    levels = (values / scale).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.numpy())


def _png(picture: Image.Image, about: Mapping[str, str] | None = None) -> str:
    """Return a PNG as base64, with texts that say what it was made of."""
    notes = PngImagePlugin.PngInfo()
    for key, value in (about or {}).items():
        notes.add_itxt(key, value)
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=notes)
    return base64.b64encode(stream.getvalue()).decode()
