"""Where the vocabulary of a build comes from: its captions, or files that others published.

A text encoder fits the words that it was trained with and their numbers, so all splits of a
folder share one vocabulary. The reference implementations number the words of training and
test captions together; made from the first split alone, a vocabulary lacks words of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources import SourceSample
from t2i_hpc.data.build.sources.captions_files import FORMS, read_rows
from t2i_hpc.data.build.sources.pickles import read_published
from t2i_hpc.data.build.sources.sample import Texts
from t2i_hpc.data.captions import ASCII, UNICODE, Vocabulary
from t2i_hpc.data.format.manifest import VOCABULARY
from t2i_hpc.data.sidecars import Rules


@dataclass(frozen=True)
class Choice:
    """The vocabulary of a split, and what the user should know of it."""

    vocabulary: Vocabulary
    remarks: tuple[str, ...]


def choose_vocabulary(config: ShardsConfig, samples: Sequence[SourceSample]) -> Choice:
    """Return the vocabulary of a split: named, published, that of the folder, or a new one.

    Raises:
        DataError: the folder has other words than those that are named, the captions are
            mostly of other words, or no caption has a word.
    """
    present = Path(config.output) / VOCABULARY
    kept = Vocabulary.load(present) if present.exists() else None
    named, name = _named(config)
    if kept and named and kept.sha256 != named.sha256:
        raise DataError(
            f"{present} has other words than {name}: splits of one folder share one vocabulary, "
            "so write to another output= or delete that file"
        )
    texts = [text for one in samples if one.unfit is None for text in one.captions]
    vocabulary = named or kept
    if vocabulary is None:
        vocabulary = Vocabulary.from_captions(texts, config.letters)
    elif config.letters == UNICODE and vocabulary.letters != UNICODE:
        raise DataError(
            f"{name or present} keeps the words of letters={vocabulary.letters}: write to another "
            f"output= with letters={UNICODE}"
        )
    else:
        _refuse_foreign(vocabulary, texts, name or str(present))
    return Choice(vocabulary, _remarks(vocabulary, texts))


def make_vocabulary(folder: Path, sources: Sequence[Path], letters: str = ASCII) -> Vocabulary:
    """Number the words of captions and save them as the vocabulary of a folder.

    Args:
        folder: that of the splits; it may not be there yet.
        sources: captions files of any form that is read, or folders of .txt files (CUB's), in
            the order in which their words are numbered.
        letters: which letters make words, see :mod:`t2i_hpc.data.captions`.

    Raises:
        DataError: the folder has a vocabulary, or captions cannot be read or have no words.
    """
    texts = [text for source in sources for text in _texts(source)]
    vocabulary = Vocabulary.from_captions(texts, letters)
    _remarks(vocabulary, texts)
    return _save(vocabulary, folder)


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
        texts = Texts(source, Rules()).all()
    else:
        texts = [text for row in read_rows(source) for text in row.captions]
    if not texts:
        raise DataError(f"{source} holds no captions: name {FORMS}, or a folder of .txt files")
    return texts


def _named(config: ShardsConfig) -> tuple[Vocabulary | None, str]:
    """Return the vocabulary that belongs to a build by its settings, and where it is from."""
    if config.vocabulary:
        name = f"vocabulary={config.vocabulary}"
        return Vocabulary.load(Path(config.vocabulary)), name
    if config.source == "pickles" and not Path(config.captions).is_dir():
        return Vocabulary(read_published(Path(config.captions)).words), config.captions
    return None, ""


def _refuse_foreign(vocabulary: Vocabulary, texts: Sequence[str], name: str) -> None:
    unknown = sum(len(vocabulary.unknown(text)) for text in texts)
    total = unknown + sum(len(vocabulary.encode(text)) for text in texts)
    if unknown > total / 2:
        raise DataError(
            f"{unknown:,} of the {total:,} words of the captions are not in {name}: it belongs to "
            "other captions, so name another vocabulary= or write to another output="
        )


def _remarks(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[str, ...]:
    """Say how many captions have no word, which a training would read as no text at all.

    Raises:
        DataError: none of them has one.
    """
    silent = [text for text in texts if not vocabulary.encode(text)]
    if not silent:
        return ()
    remedy = (
        f"; letters={UNICODE} keeps the letters of every language"
        if vocabulary.letters == ASCII
        else ""
    )
    shown = " ".join(silent[0].split())[:60]
    of = f"{len(silent):,} of {len(texts):,} captions have no word of the vocabulary"
    if len(silent) == len(texts):
        raise DataError(f"{of}, the first is {shown!r}: a training would read no text{remedy}")
    return (f"{of} and are read as empty text, the first is {shown!r}{remedy}",)
