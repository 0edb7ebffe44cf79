"""Where vocabularies come from: the captions of data sets, or files that others published.

A text encoder fits the words that it was trained with and their numbers, so all splits of a
folder share one vocabulary. The reference implementations number the words of training and
test captions together; made from the first split alone, a vocabulary lacks words of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.manifest import VOCABULARY
from t2i_hpc.data.sources import SourceSample
from t2i_hpc.data.sources.coco import read_coco_captions
from t2i_hpc.data.sources.folder import read_metadata_captions
from t2i_hpc.data.sources.pickles import read_published
from t2i_hpc.data.sources.sample import read_captions_folder


def choose_vocabulary(config: ShardsConfig, samples: Sequence[SourceSample]) -> Vocabulary:
    """Return the vocabulary of a split: named, published, that of the folder, or a new one.

    Raises:
        DataError: the folder has other words than those that are named, or the captions are
            mostly of other words.
    """
    present = Path(config.output) / VOCABULARY
    kept = Vocabulary.load(present) if present.exists() else None
    named, name = _named(config)
    if kept and named and kept.sha256 != named.sha256:
        raise DataError(
            f"{present} has other words than {name}: splits of one folder share one vocabulary, "
            "so write to another output= or delete that file"
        )
    texts = [text for sample in samples for text in sample.captions]
    vocabulary = named or kept
    if vocabulary is None:
        return Vocabulary.from_captions(texts)
    _refuse_foreign(vocabulary, texts, name or str(present))
    return vocabulary


def make_vocabulary(folder: Path, sources: Sequence[Path]) -> Vocabulary:
    """Number the words of captions and save them as the vocabulary of a folder.

    Args:
        folder: that of the splits; it may not be there yet.
        sources: captions files of COCO (.json), a folder's metadata.jsonl, or folders of .txt
            files (CUB's), in the order in which their words are numbered.

    Raises:
        DataError: the folder has a vocabulary, or captions cannot be read.
    """
    texts = [text for source in sources for text in _texts(source)]
    return _save(Vocabulary.from_captions(texts), folder)


def import_vocabulary(folder: Path, published: Path) -> Vocabulary:
    """Save the words of a captions.pickle as the vocabulary of a folder.

    Raises:
        DataError: the folder has a vocabulary, or the pickle is none of this literature.
    """
    return _save(Vocabulary(read_published(published).words), folder)


def _save(vocabulary: Vocabulary, folder: Path) -> Vocabulary:
    place = folder / VOCABULARY
    if place.exists():
        raise DataError(f"{place} is there already: delete it, if no split uses it")
    try:
        vocabulary.save(place)
    except OSError as error:
        raise DataError(f"cannot write {place}: {error.strerror}") from error
    return vocabulary


def _texts(source: Path) -> list[str]:
    if source.is_dir():
        return read_captions_folder(source)
    if source.suffix == ".jsonl":
        return read_metadata_captions(source)
    if source.suffix == ".json":
        return read_coco_captions(source)
    raise DataError(
        f"{source} holds no captions that are known: name COCO's .json, a metadata.jsonl or a "
        "folder of .txt files"
    )


def _named(config: ShardsConfig) -> tuple[Vocabulary | None, str]:
    """Return the vocabulary that belongs to a build by its settings, and where it is from."""
    if config.vocabulary:
        name = f"vocabulary={config.vocabulary}"
        return Vocabulary.load(Path(config.vocabulary)), name
    if config.source == "pickles":
        return Vocabulary(read_published(Path(config.captions)).words), config.captions
    return None, ""


def _refuse_foreign(vocabulary: Vocabulary, texts: Sequence[str], name: str) -> None:
    unknown = sum(len(vocabulary.unknown(text)) for text in texts)
    words = unknown + sum(len(vocabulary.encode(text)) for text in texts)
    if unknown > words / 2:
        raise DataError(
            f"{unknown:,} of the {words:,} words of the captions are not in {name}: it belongs to "
            "other captions, so name another vocabulary= or write to another output="
        )
