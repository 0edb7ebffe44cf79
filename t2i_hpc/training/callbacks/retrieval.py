"""How well DAMSM's encoders match held-out images and captions, as they are pre-trained.

The score is :func:`top_1`; the pictures are after AttnGAN's Fig. 4, which shows the five most
attended tokens of a caption over its image.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor

from t2i_hpc.common.files import append_json_line, read_json_lines, sha256_of_json, write_bytes
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.encoder_settings import TextEncoderConfig
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.captions import VOCABULARY_NOTE
from t2i_hpc.data.split import Split
from t2i_hpc.sampling.grids import save_picture
from t2i_hpc.sampling.request import encode_captions, token_texts
from t2i_hpc.sampling.stages import WordMap, attention_grid
from t2i_hpc.systems.base import RetrievalSystem
from t2i_hpc.systems.encoders import notes_of
from t2i_hpc.training.progress import ProgressLine
from t2i_hpc.training.world import World

Batches = Callable[[int], Iterator[Batch]]
_IMAGES, _CAPTIONS = 256, 5
_TOKENS = 5  # of a caption that are shown
_METRIC = "top-1 retrieval"
RETRIEVAL_NOTE, CHANCE_NOTE = "retrieval", "retrieval_by_chance"  # in the encoders' files
_NEAR_CHANCE = 10.0  # times chance; 3,072 flowers reach 9 after an epoch, 19 after four
_RULE = (
    "the nearest of all captions is one of the image's own; captions of other images of its "
    "class do not count"
)


class RetrievalReport:
    """Writes a row of ``scores.jsonl``, attention maps and the encoders' files at each call.

    The score is :func:`top_1` of held-out images. ``text_encoder.safetensors`` and
    ``image_encoder.safetensors`` of the run are what systems load as ``…_encoder.weights``; with
    ``engine.patience`` they are those of the best score.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        split: Split,
        system: RetrievalSystem,
        line: ProgressLine,
    ) -> None:
        self.run, self.system, self.line = run, system, line
        self.pairs = HeldOut.of(split, system.resolution, config.seed)
        self.tokens, self.lengths = encode_captions(
            self.pairs.captions, split.vocabulary, config.data.max_tokens, config.seed
        )
        self.attention = AttentionPictures(run, config, split, system)
        self.patience = config.engine.patience
        self.scores = _recorded(run)
        self.notes = {"format": "pt", "run": run.name, VOCABULARY_NOTE: split.vocabulary.sha256}
        self.protocol = {
            "data": split.manifest.digest,
            "images": len(self.pairs.images),
            "captions": len(self.pairs.captions),
            "resolution": system.resolution,
            "seed": config.seed,
            "rule": _RULE,
        }

    def __call__(self, images_seen: int) -> Mapping[str, float]:
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
        if self.patience is None or self._best(images_seen) == images_seen:
            notes = {**self.notes, RETRIEVAL_NOTE: f"{value:.6f}", CHANCE_NOTE: f"{chance:.6f}"}
            for name in ("text_encoder", "image_encoder"):
                self._write(name, notes)
        if self.finished(images_seen):
            self.line.say(
                f"the share has not risen for {self.patience} scores (engine.patience): "
                f"the encoders' files are those after {self._best(images_seen):,} images"
            )
        return {"top_1_retrieval": value}

    def finished(self, images_seen: int) -> bool:
        """Whether the score has not risen for ``engine.patience`` scores.

        A function of the scores up to `images_seen`, so a resumed run ends where it would have.
        """
        if self.patience is None or images_seen not in self.scores:
            return False
        best = self._best(images_seen)
        return sum(best < images <= images_seen for images in self.scores) >= self.patience

    def _best(self, images_seen: int) -> int:
        """Return the images of the best score so far, the first of equal ones."""
        before = [images for images in sorted(self.scores) if images <= images_seen]
        return max(before, key=self.scores.__getitem__)

    def _record(self, images_seen: int, value: float) -> None:
        self.scores[images_seen] = value
        path = self.run / "scores.jsonl"
        if any(row.get("images") == images_seen for row in read_json_lines(path)):
            return
        append_json_line(
            path,
            {
                "images": images_seen,
                "metric": _METRIC,
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

    def _write(self, name: str, notes: dict[str, str]) -> None:
        weights = self.system.modules[name].state_dict()
        whole = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        write_bytes(self.run / f"{name}.safetensors", save(whole, notes))


def _recorded(run: Path) -> dict[int, float]:
    """Return the scores that earlier sessions of a run have written, by images seen."""
    rows = read_json_lines(run / "scores.jsonl")
    return {row["images"]: row["value"] for row in rows if row.get("metric") == _METRIC}


def warning_of_weak_text(config: SystemConfig) -> str:
    """Return a warning where a GAN's text encoder was recorded as near chance, else "".

    A file that says nothing of it, as published ones, is taken as it is.
    """
    text = getattr(config, "text_encoder", None)
    if not isinstance(text, TextEncoderConfig) or not Path(text.weights).is_file():
        return ""
    notes = notes_of(Path(text.weights), "system.text_encoder.weights")
    value, chance = (float(notes.get(name, "nan")) for name in (RETRIEVAL_NOTE, CHANCE_NOTE))
    if not value < _NEAR_CHANCE * chance:
        return ""
    return (
        f"warning: system.text_encoder.weights={text.weights} is near chance ({value:.1%} of "
        f"held-out images found their captions, chance {chance:.1%}), so words will hardly steer "
        "the images: pre-train with engine.patience=5 instead of a number of images, with a larger "
        "engine.batch_size, or on more data"
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


def top_1(similarities: Tensor, pairs: HeldOut) -> float:
    """Return the share of images that are nearer to a caption of their own than to any other.

    A caption with the text of one of an image's own is right as well. Captions of other images
    of the same class may be as true as its own: like DAMSM's losses, the score leaves them out.
    A tie between right and wrong counts as wrong, so encoders that tell nothing apart score 0.

    Args:
        similarities: (N, M).
        pairs: N images and M captions.
    """
    right, wrong = _right_and_wrong(pairs)
    lowest = torch.full_like(similarities, float("-inf"))
    best_right = torch.where(right, similarities, lowest).amax(1)
    best_wrong = torch.where(wrong, similarities, lowest).amax(1)
    return float((best_right > best_wrong).float().mean())


def top_1_by_chance(pairs: HeldOut) -> float:
    """Return the :func:`top_1` to be expected of random similarities."""
    right, wrong = (matches.sum(1).float() for matches in _right_and_wrong(pairs))
    return float((right / (right + wrong)).mean())


def _right_and_wrong(pairs: HeldOut) -> tuple[Tensor, Tensor]:
    """Return which captions are right for which images, and which are wrong: bool (N, M)."""
    images = torch.arange(len(pairs.images))
    own: list[set[str]] = [set() for _ in images]
    for owner, caption in zip(pairs.owners.tolist(), pairs.captions, strict=True):
        own[owner].add(caption)
    right = torch.tensor([[caption in texts for caption in pairs.captions] for texts in own])
    same_class = pairs.classes[:, None] == pairs.classes[pairs.owners][None, :]
    return right, ~right & ~same_class


class AttentionPictures:
    """Writes ``attention/<images>.png`` into a run.

    A row is a held-out image with its caption, then its most attended words over the image.
    Images and captions are the same each time.
    """

    def __init__(
        self, run: Path, config: TrainConfig, split: Split, system: RetrievalSystem
    ) -> None:
        self.run, self.system = run, system
        rows = min(config.engine.sample_rows, split.count)
        numbers = [row * split.count // rows for row in range(rows)]
        self.captions = [split.caption(number, config.seed)[1] for number in numbers]
        self.images = split.evaluation_images(numbers, system.resolution)
        self.tokens, self.lengths = encode_captions(
            self.captions, split.vocabulary, config.data.max_tokens, config.seed
        )
        self.words = token_texts(self.tokens, self.lengths, split.vocabulary)

    def __call__(self, images_seen: int) -> None:
        """Write the maps of the system as it is now."""
        device = next(self.system.modules.parameters()).device
        inputs = (value.to(device) for value in (self.images, self.tokens, self.lengths))
        maps = self.system.attend(*inputs).float().cpu()
        rows = [most_attended(*row) for row in zip(self.words, maps, strict=True)]
        grid = attention_grid(self.images, rows, self.captions)
        save_picture(grid, self.run / "attention" / f"{images_seen:010d}.png")


def most_attended(words: list[str], maps: Tensor, most: int = _TOKENS) -> list[WordMap]:
    """Return the words with the highest peaks, highest first; a repeated word counts once.

    A word's map sums to 1 over the regions, so one that is attended to evenly has no peak.

    Args:
        words: n words, as the tokens spell them.
        maps: (T, r, r) with T ≥ n.
        most: how many words to return, where there are so many.
    """
    ranked = sorted(
        (WordMap(word, own) for word, own in zip(words, maps, strict=False)),
        key=lambda word_map: -word_map.peak,
    )
    first = {word_map.word: word_map for word_map in reversed(ranked)}
    return sorted(first.values(), key=lambda word_map: -word_map.peak)[:most]


def warning_of_one_class(batches: Batches, world: World, say: Callable[[str], None]) -> Batches:
    """Return the same batches; warn where the first of a session is of one class.

    DAMSM hides captions of the same class from each other, so its losses are then those of a
    single choice: 0, whatever the encoders do.

    Args:
        batches: of this rank, from a number of samples on.
        world: its ranks compare their slices.
        say: prints a line.
    """

    def checked(images_seen: int) -> Generator[Batch, None, None]:
        rest = batches(images_seen)
        try:
            yield from _checked(rest, world, say)
        finally:  # its loader processes end with it
            if isinstance(rest, Generator):
                rest.close()

    return checked


def _checked(batches: Iterator[Batch], world: World, say: Callable[[str], None]) -> Iterator[Batch]:
    first = next(batches, None)
    if first is None:
        return
    if (only := _only_class(first, world)) is not None:
        say(
            f"all {len(first.images) * world.size} images of the first batch are of class {only}: "
            "DAMSM compares an image with captions of other classes only, so there is nothing to "
            "learn where all images have one class; leave the class out of the metadata to give "
            "each image one of its own"
        )
    yield first
    yield from batches


def _only_class(batch: Batch, world: World) -> int | None:
    """Return the class of all images of a global batch, None where there are several."""
    classes = batch.classes.cpu()
    ends = torch.stack([classes.max(), -classes.min()])
    if world.control is not None:
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=world.control)
    largest, smallest = int(ends[0]), -int(ends[1])
    alone = len(batch.images) * world.size == 1
    return largest if largest == smallest and not alone else None
