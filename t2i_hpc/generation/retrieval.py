"""How well encoders in pre-training match held-out images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from t2i_hpc.common.files import append_json_line, read_json_lines, sha256_of_json, write_bytes
from t2i_hpc.common.seeds import generator
from t2i_hpc.common.step import Matcher
from t2i_hpc.common.word_numbers import VOCABULARY_NOTE
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.engine.progress import ProgressLine
from t2i_hpc.generation.attention import AttentionPictures
from t2i_hpc.generation.captions import encode_captions

_IMAGES, _CAPTIONS = 256, 5
_RULE = (
    "the nearest of all captions is one of the image's own; captions of other images of its "
    "class do not count"
)


@dataclass(frozen=True)
class HeldOut:
    """Images and captions of a split that are to find each other.

    Attributes:
        images: uint8 (N, 3, R, R).
        classes: (N,), one a species where there are any.
        captions: M texts, those of one image after those of another.
        owners: (M,), the image of each caption.
    """

    images: Tensor
    classes: Tensor
    captions: Sequence[str]
    owners: Tensor

    @classmethod
    def of(cls, split: Split, resolution: int, seed: int) -> HeldOut:
        """Take images evenly from the whole split, and up to five seeded captions of each."""
        count = min(split.count, _IMAGES)
        numbers = [place * split.count // count for place in range(count)]
        samples = [split.sample(number) for number in numbers]
        captions: list[str] = []
        owners: list[int] = []
        for place, sample in enumerate(samples):
            rng = generator(seed, "captions to be retrieved", numbers[place])
            chosen = sorted(rng.permutation(len(sample.captions))[:_CAPTIONS].tolist())
            captions += [sample.captions[caption] for caption in chosen]
            owners += [place] * len(chosen)
        return cls(
            split.evaluation_images(numbers, resolution),
            torch.tensor([sample.class_id for sample in samples]),
            captions,
            torch.tensor(owners),
        )


class RetrievalReport:
    """Writes a row of ``scores.jsonl``, attention maps and the encoders' files at each call.

    The score is :func:`top_1` of held-out images. ``text_encoder.safetensors`` and
    ``image_encoder.safetensors`` of the run are what systems load as ``…_encoder.weights``.
    """

    def __init__(
        self, run: Path, config: TrainConfig, split: Split, system: Matcher, line: ProgressLine
    ) -> None:
        self.run, self.system, self.line = run, system, line
        self.pairs = HeldOut.of(split, system.resolution, config.seed)
        self.tokens, self.lengths = encode_captions(
            self.pairs.captions, split.vocabulary, config.data.words, config.seed
        )
        self.attention = AttentionPictures(run, config, split, system)
        self.notes = {"format": "pt", "run": run.name, VOCABULARY_NOTE: split.vocabulary.sha256}
        self.protocol = {
            "data": split.manifest.digest,
            "images": len(self.pairs.images),
            "captions": len(self.pairs.captions),
            "resolution": system.resolution,
            "seed": config.seed,
            "rule": _RULE,
        }

    def __call__(self, images_seen: int) -> None:
        """Score the encoders as they are now and write them."""
        device = next(self.system.modules.parameters()).device
        pairs = self.pairs
        inputs = (value.to(device) for value in (pairs.images, self.tokens, self.lengths))
        similarities = self.system.match(*inputs).cpu()
        value, chance = top_1(similarities, pairs), top_1_by_chance(pairs)
        count, captions = similarities.shape
        self.line.say(
            f"after {images_seen:,} images: {value:.1%} of {count} held-out images find one of "
            f"their captions among {captions:,} (top-1; chance {chance:.1%})"
        )
        self._record(images_seen, value)
        self.attention(images_seen)
        for name in ("text_encoder", "image_encoder"):
            self._write(name)

    def _record(self, images_seen: int, value: float) -> None:
        path = self.run / "scores.jsonl"
        if any(row.get("images") == images_seen for row in read_json_lines(path)):
            return
        append_json_line(
            path,
            {
                "images": images_seen,
                "metric": "top-1 retrieval",
                "value": value,
                "n": self.protocol["images"],
                "n_real": self.protocol["captions"],
                "protocol": sha256_of_json(self.protocol)[:12],
                "protocol_text": self.protocol,
                "checkpoint": "",
                "better": "higher",
                "detector_label": "the encoders themselves, on the test split",
            },
        )

    def _write(self, name: str) -> None:
        weights = self.system.modules[name].state_dict()
        whole = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        write_bytes(self.run / f"{name}.safetensors", save(whole, self.notes))


def top_1(similarities: Tensor, pairs: HeldOut) -> float:
    """Return the share of images that are nearer to a caption of their own than to any other.

    A caption with the words of one of an image's own is right as well. Captions of other images
    of the same class may be as true as its own: like DAMSM's losses, the score leaves them out.
    A tie between right and wrong is lost, so encoders that tell nothing apart score nothing.

    Args:
        similarities: (N, M).
        pairs: N images and M captions.
    """
    right, wrong = _judged(pairs)
    lowest = torch.full_like(similarities, float("-inf"))
    best_right = torch.where(right, similarities, lowest).amax(1)
    best_wrong = torch.where(wrong, similarities, lowest).amax(1)
    return float((best_right > best_wrong).float().mean())


def top_1_by_chance(pairs: HeldOut) -> float:
    """Return the :func:`top_1` to be expected of random similarities."""
    right, wrong = (judged.sum(1).float() for judged in _judged(pairs))
    return float((right / (right + wrong)).mean())


def _judged(pairs: HeldOut) -> tuple[Tensor, Tensor]:
    """Return which captions are right for which images, and which are wrong: bool (N, M)."""
    images = torch.arange(len(pairs.images))
    own: list[set[str]] = [set() for _ in images]
    for owner, caption in zip(pairs.owners.tolist(), pairs.captions, strict=True):
        own[owner].add(caption)
    right = torch.tensor([[caption in texts for caption in pairs.captions] for texts in own])
    same_class = pairs.classes[:, None] == pairs.classes[pairs.owners][None, :]
    return right, ~right & ~same_class
