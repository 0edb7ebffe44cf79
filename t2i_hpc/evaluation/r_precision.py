"""R-precision: how often the caption that an image was made of ranks first among others.

AttnGAN (Xu et al., CVPR 2018, §4) ranks each image's own caption and 99 captions of other images
by the cosine of DAMSM's codes. As its successors do, the others are of images of another class
(of any other image, where each has a class of its own); which ones comes from (seed, i). A tie
with the own caption counts as found. DM-GAN's released code, which made the published numbers,
cuts the images into 10 shuffled folds and states mean and standard deviation over them. Hits and
images of each fold are integers, so any number of shards gives the same counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file, sha256_of_json
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.data.captions import check_same_words
from t2i_hpc.data.split import Split
from t2i_hpc.evaluation.caption_codes import BLOCK, digest_of_tensors
from t2i_hpc.evaluation.collectors import FeatureBatch, Groups
from t2i_hpc.evaluation.protocol import OWN_ENCODERS
from t2i_hpc.models.image_encoder import TRUNKS, build_image_encoder, side_of
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.runs.checkpoint import read_tensors
from t2i_hpc.runs.partial_statistics import Arrays
from t2i_hpc.sampling.rules import GenerationRules
from t2i_hpc.sampling.trained_run import TrainedRun
from t2i_hpc.systems.base import TextToImageSystem
from t2i_hpc.systems.encoders import scale_images, vocabulary_of

COUNT, HITS = "fold_count", "fold_hits"
NAMES = (COUNT, HITS)
RanksFirst = Callable[[range, Tensor], npt.NDArray[np.bool_]]
_OWN_NAMES = ("text_encoder", "image_encoder")
Numbers = npt.NDArray[np.int64]


class RetrievalCounts:
    """Images and hits of each fold.

    Args:
        folds: the fold of each image, int64 (images,).
        count: number of folds.
        ranks_first: says of images, by number and pixels, whether their own caption ranks first:
            bool (n,).
    """

    def __init__(self, folds: Groups, count: int, ranks_first: RanksFirst) -> None:
        self._folds, self._ranks_first = folds, ranks_first
        self._count = np.zeros(count, dtype=np.int64)
        self._hits = np.zeros(count, dtype=np.int64)

    def add(self, batch: FeatureBatch) -> None:
        """Count the images of a batch."""
        folds = self._folds[batch.numbers.start : batch.numbers.stop]
        hits = self._ranks_first(batch.numbers, batch.images)
        self._count += np.bincount(folds, minlength=len(self._count))
        self._hits += np.bincount(folds[hits], minlength=len(self._hits))

    def arrays(self) -> Arrays:
        """Return the counts, int64 (folds,) each."""
        return {COUNT: self._count, HITS: self._hits}


def r_precision(counts: Arrays) -> tuple[float, float]:
    """Return the mean share of hits over folds and its standard deviation, both in [0, 1]."""
    shares = counts[HITS] / counts[COUNT]
    return float(shares.mean()), float(shares.std())


@dataclass(frozen=True)
class DAMSMEncoders:
    """Functions that bring captions and images into one space.

    Attributes:
        sentences: of n captions, float (n, D).
        codes: of uint8 images (n, 3, R, R), float (n, D).
        identity: of n captions, all that decides their sentences, as a hash.
    """

    sentences: Callable[[Sequence[str]], Tensor]
    codes: Callable[[Tensor], Tensor]
    identity: Callable[[Sequence[str]], str]


def encoders_identity(settings: EvaluationConfig) -> str:
    """Return what a protocol says of the encoders.

    Raises:
        EvaluationError: one file is named without the other, or is not there.
    """
    paths = [settings.text_encoder, settings.image_encoder]
    if not any(paths):
        return OWN_ENCODERS
    if not all(paths):
        raise EvaluationError(
            "evaluation.text_encoder and evaluation.image_encoder belong together: name both "
            "files, or neither to take the run's own"
        )
    for path in paths:
        if not Path(path).is_file():
            raise EvaluationError(f"there is no encoder {path}: name a .safetensors file")
    return sha256_of_json([sha256_of_file(Path(path)) for path in paths])


def damsm_encoders(
    settings: EvaluationConfig, trained: TrainedRun, rules: GenerationRules
) -> DAMSMEncoders:
    """Return the encoders that the settings name, on the run's device.

    They read the very tokens that images were generated from.

    Raises:
        EvaluationError: a file does not fit.
    """
    pair = _given(settings, trained) if settings.text_encoder else _own(trained.system)
    networks = [network.to(trained.device).eval() for network in pair]

    def read(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return trained.tokenize(captions, settings.seed, rules)

    def sentences(captions: Sequence[str]) -> Tensor:
        result: Tensor = networks[0](*read(captions)).sentence
        return result

    def identity(captions: Sequence[str]) -> str:
        tokens = (dict(zip("tl", read(block), strict=True)) for block in _blocks(captions))
        parts = [digest_of_tensors(networks[0].state_dict()), *map(digest_of_tensors, tokens)]
        return sha256_of_json([type(networks[0]).__name__, *parts])

    return DAMSMEncoders(sentences, _codes_by(networks[1], trained.device), identity)


def _blocks(captions: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield captions that are encoded together."""
    for start in range(0, len(captions), BLOCK):
        yield captions[start : start + BLOCK]


def _codes_by(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    def codes(images: Tensor) -> Tensor:
        result: Tensor = network(scale_images(images.to(device))).code
        return result

    return codes


def check_own_encoders(settings: EvaluationConfig, networks: AbstractSet[str]) -> None:
    """Refuse R-precision by a run's own encoders where it has none.

    Args:
        settings: of the evaluation.
        networks: names of the run's networks.

    Raises:
        EvaluationError: R-precision is asked for and there is nothing to rank captions with.
    """
    if "r_precision" not in settings.metrics or settings.text_encoder:
        return
    if not set(_OWN_NAMES) <= networks:
        raise EvaluationError(
            "the run has no image encoder of its own for R-precision: name pre-trained "
            "ones with evaluation.text_encoder= and evaluation.image_encoder=, or leave "
            "r_precision out of evaluation.metrics"
        )


def _own(system: TextToImageSystem) -> tuple[nn.Module, nn.Module]:
    text, image = (system.modules[name] for name in _OWN_NAMES)
    return text, image


def _given(settings: EvaluationConfig, trained: TrainedRun) -> tuple[nn.Module, nn.Module]:
    vocabulary, path = trained.vocabulary, Path(settings.text_encoder)
    text = _text_encoder(path, vocabulary.size)
    key = "evaluation.text_encoder"
    check_same_words(
        f"{key}={path}",
        vocabulary_of(path, key),
        vocabulary.sha256,
        "name the encoder that was pre-trained on the run's data",
    )
    return text, _image_encoder(Path(settings.image_encoder), text.width)


def _text_encoder(path: Path, vocabulary_size: int) -> LSTMTextEncoder:
    tensors = read_tensors(path)
    try:
        words, embedding_width = tensors["embedding.weight"].shape
        width = 2 * tensors["lstm.weight_hh_l0"].shape[1]
        encoder = LSTMTextEncoder(words, width, embedding_width)
        encoder.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise _no_encoder(path, "text") from error
    if words != vocabulary_size:
        raise EvaluationError(
            f"evaluation.text_encoder={path} knows {words} words and the vocabulary of the data "
            f"has {vocabulary_size}: it was pre-trained on another data set"
        )
    return encoder


def _image_encoder(path: Path, width: int) -> nn.Module:
    tensors = read_tensors(path)
    try:
        encoder = build_image_encoder(_trunk_of(tensors), width, side=side_of(tensors))
        encoder.load_state_dict(tensors)
    except (KeyError, StopIteration, RuntimeError, ValueError) as error:
        raise _no_encoder(path, "image") from error
    return encoder


def _trunk_of(tensors: Mapping[str, Tensor]) -> str:
    pooled = tensors["heads.code.weight"].shape[1]
    return next(name for name, trunk in TRUNKS.items() if trunk.pooled_width == pooled)


def _no_encoder(path: Path, kind: str) -> EvaluationError:
    return EvaluationError(
        f"{path} holds no DAMSM {kind} encoder of the right widths: name the file that "
        f"t2i_hpc.pretrain writes as {kind}_encoder.safetensors"
    )


@dataclass(frozen=True)
class CaptionTable:
    """All captions of a split.

    Attributes:
        texts: M captions, those of one sample after those of another.
        first: int64 (N + 1,), place of each sample's first caption, and M.
        classes: int64 (N,).
    """

    texts: Sequence[str]
    first: Numbers
    classes: Numbers

    @classmethod
    def of(cls, split: Split) -> CaptionTable:
        """Read the captions of a split.

        Raises:
            EvaluationError: all samples are of one class, so no caption is another's.
        """
        texts: list[str] = []
        first, classes = [0], []
        for number in range(split.count):
            sample = split.sample(number)
            texts += sample.captions
            first.append(len(texts))
            classes.append(sample.class_id)
        table = cls(texts, np.array(first), np.array(classes))
        table.check(split.manifest.split)
        return table

    def check(self, split: str) -> None:
        """Refuse captions among which none is another class's.

        Raises:
            EvaluationError: all samples of the split are of one class.
        """
        if len(np.unique(self.classes)) < 2:
            raise EvaluationError(
                f"all images of the split {split!r} are of one class: R-precision needs captions "
                "of other classes"
            )

    def candidates(self, number: int, count: int, seed: int, rules: GenerationRules) -> Numbers:
        """Return the places of the captions that image `number` chooses among, its own first."""
        sample = rules.sample_of(number, len(self.classes))
        place = rules.caption_of(
            number, len(self.classes), int(self.first[sample + 1] - self.first[sample]), seed
        )
        rng = generator(seed, "mismatching captions", number)
        others: list[int] = []
        while len(others) < count - 1:
            drawn = rng.integers(len(self.classes), size=count)
            others += drawn[self.classes[drawn] != self.classes[sample]].tolist()
        chosen = np.array(others[: count - 1])
        begin, end = self.first[chosen], self.first[chosen + 1]
        wrong = begin + (rng.random(len(chosen)) * (end - begin)).astype(np.int64)
        return np.concatenate([[self.first[sample] + place], wrong])


class CaptionRanker:
    """Ranks captions by how well they fit a generated image.

    Args:
        table: the captions that they were made of, and the others.
        encode_captions: gives sentences, float (n, D), of n captions.
        encode_images: gives codes, float (n, D), of uint8 images (n, 3, R, R).
        candidates: captions that an image chooses among.
        seed, rules: by which the images' captions were chosen.
        kept: gives what its argument makes, which may be in a file.
    """

    def __init__(
        self,
        table: CaptionTable,
        encode_captions: Callable[[Sequence[str]], Tensor],
        encode_images: Callable[[Tensor], Tensor],
        *,
        candidates: int,
        seed: int,
        rules: GenerationRules,
        kept: Callable[[Callable[[], Tensor]], Tensor] = lambda make: make(),
    ) -> None:
        self._kept = kept
        self._table, self._candidates, self._seed, self._rules = table, candidates, seed, rules
        self._encode_captions, self._encode_images = encode_captions, encode_images

    def __call__(self, numbers: range, images: Tensor) -> npt.NDArray[np.bool_]:
        """Return whether each image's own caption ranks first: bool (n,)."""
        choice = np.stack(
            [
                self._table.candidates(number, self._candidates, self._seed, self._rules)
                for number in numbers
            ]
        )
        with torch.inference_mode():
            codes = F.normalize(self._encode_images(images).float(), dim=1)
            sentences = self._sentences[torch.from_numpy(choice).to(self._sentences.device)]
            cosines = (sentences * codes[:, None].to(sentences.device)).sum(dim=2)
            found = cosines[:, 0] >= cosines[:, 1:].amax(dim=1)
        hits: npt.NDArray[np.bool_] = found.cpu().numpy()
        return hits

    @cached_property
    def _sentences(self) -> Tensor:
        """All captions' sentences of length 1, float32 (M, D)."""
        return F.normalize(self._kept(self._encode_all), dim=1)

    def _encode_all(self) -> Tensor:
        with torch.inference_mode():
            blocks = [self._encode_captions(texts).float() for texts in _blocks(self._table.texts)]
        return torch.cat(blocks)
