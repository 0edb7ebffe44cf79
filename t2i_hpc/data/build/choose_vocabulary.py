"""Where the vocabulary of a build comes from: its captions, or files that others published.

A text encoder fits the words that it was trained with and their numbers, so all splits of a
folder share one vocabulary. The reference implementations number the words of training and
test captions together; made from the first split alone, a vocabulary lacks words of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources import SourceSample
from t2i_hpc.data.build.sources.captions_files import read_rows
from t2i_hpc.data.build.sources.captions_rows import FORMS
from t2i_hpc.data.build.sources.indexed_split import SplitSamples
from t2i_hpc.data.build.sources.mds import captions_of_mds, is_mds
from t2i_hpc.data.build.sources.parquet_images import captions_of_parquet
from t2i_hpc.data.build.sources.pickles import read_published
from t2i_hpc.data.build.sources.sample import AddressedSamples, Texts
from t2i_hpc.data.build.sources.webdataset_tars import captions_of_tar
from t2i_hpc.data.captions import ASCII, UNICODE, Vocabulary
from t2i_hpc.data.format.manifest import VOCABULARY
from t2i_hpc.data.sidecars import Rules, files_below

_LOOKED_AT = 1 << 20  # captions, by which it is told whether a vocabulary fits them


@dataclass(frozen=True)
class Choice:
    """The vocabulary of a split, and what the user should know of it."""

    vocabulary: Vocabulary
    remarks: tuple[str, ...]


def choose_vocabulary(config: ShardsConfig, samples: Sequence[SourceSample], own: range) -> Choice:
    """Return the vocabulary of a split: named, published, that of the folder, or a new one.

    Args:
        config: of the build.
        samples: of the source.
        own: which of them the partition makes: of addressed ones it reads no others' captions.

    Raises:
        DataError: the folder has other words than those that are named, the captions are
            mostly of other words, or no caption has a word.
    """
    texts = _TextsOf(samples, own)
    vocabulary, name = present_vocabulary(config)
    if isinstance(samples, SplitSamples):
        if vocabulary is None and (config.min_count, config.max_words) == (1, 0):
            return Choice(samples.vocabulary, ())
        if vocabulary is not None and vocabulary.sha256 == samples.vocabulary.sha256:
            return Choice(vocabulary, ())
    if vocabulary is None:
        if isinstance(samples, AddressedSamples):
            check_vocabulary_is_there(config)
        vocabulary = new_vocabulary(config, texts)
    else:
        refuse_foreign(vocabulary, texts, name)
    return Choice(vocabulary, remarks_on(vocabulary, texts))


def check_vocabulary_is_there(config: ShardsConfig) -> None:
    """Refuse a partition that would number words of its own captions alone.

    Raises:
        DataError: the folder of splits has no vocabulary, and none is named.
    """
    if config.partition and present_vocabulary(config)[0] is None:
        raise DataError(
            f"{config.output} has no vocabulary, and a partition reads no captions but its "
            f"own: write it first, shards vocabulary {config.output} captions={config.images}"
        )


class _TextsOf:
    """The captions of samples, which are not copied."""

    def __init__(self, samples: Sequence[SourceSample], own: range) -> None:
        self._samples, self._own = samples, own

    def __iter__(self) -> Iterator[str]:
        if isinstance(self._samples, AddressedSamples):
            return self._samples.texts(self._own)
        return (text for one in self._samples if one.unfit is None for text in one.captions)


def new_vocabulary(config: ShardsConfig, texts: Iterable[str]) -> Vocabulary:
    """Number the words of captions as a configuration wants it.

    Raises:
        DataError: no word is frequent enough.
    """
    made = Vocabulary.from_captions(texts, config.letters, config.min_count, config.max_words)
    return _with_words(made, config.min_count)


def vocabulary_of_counts(
    counts: Mapping[str, int], letters: str, min_count: int, max_words: int
) -> Vocabulary:
    """Number words that were counted, in their order.

    Raises:
        DataError: no word is frequent enough.
    """
    return _with_words(Vocabulary.from_counts(counts, letters, min_count, max_words), min_count)


def _with_words(made: Vocabulary, min_count: int) -> Vocabulary:
    if made.size == 1 and min_count > 1:
        raise DataError(f"no word of the captions is there min_count={min_count} times: lower it")
    return made


def present_vocabulary(config: ShardsConfig) -> tuple[Vocabulary | None, str]:
    """Return the vocabulary that a split has before its captions are read, and where it is from.

    Raises:
        DataError: the folder has other words than those that are named, or bounds are given
            for words that are numbered already.
    """
    present = Path(config.output) / VOCABULARY
    kept = Vocabulary.load(present) if present.exists() else None
    named, name = _named(config)
    if kept and named and kept.sha256 != named.sha256:
        raise DataError(
            f"{present} has other words than {name}: splits of one folder share one vocabulary, "
            "so write to another output= or delete that file"
        )
    vocabulary = named or kept
    if vocabulary is None:
        return None, ""
    if config.letters == UNICODE and vocabulary.letters != UNICODE:
        raise DataError(
            f"{name or present} keeps the words of letters={vocabulary.letters}: write to another "
            f"output= with letters={UNICODE}"
        )
    if config.max_words and vocabulary.size - 1 > config.max_words:
        raise DataError(
            f"max_words={config.max_words} is for a new vocabulary, and {name or present} has "
            f"{vocabulary.size - 1:,} words: leave it out, or write to another output="
        )
    return vocabulary, name or str(present)


def make_vocabulary(
    folder: Path,
    sources: Sequence[Path],
    letters: str = ASCII,
    min_count: int = 1,
    max_words: int = 0,
) -> Vocabulary:
    """Number the words of captions and save them as the vocabulary of a folder.

    Args:
        folder: that of the splits; it may not be there yet.
        sources: captions files of any form that is read, or folders of .txt files (CUB's), in
            the order in which their words are numbered.
        letters: which letters make words, see :mod:`t2i_hpc.data.captions`.
        min_count: leave out words that stand there less often.
        max_words: take the most frequent words alone; 0: all.

    Raises:
        DataError: the folder has a vocabulary, or captions cannot be read or have no words.
    """
    texts = _TextsIn(sources)
    vocabulary = Vocabulary.from_captions(texts, letters, min_count, max_words)
    remarks_on(vocabulary, texts)
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


class _TextsIn:
    """The captions of several sources, one source in memory at a time."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self._sources = sources

    def __iter__(self) -> Iterator[str]:
        for source in self._sources:
            found = self._texts(source)
            first = next(found, None)
            if first is None:
                raise DataError(
                    f"{source} holds no captions: name {FORMS}, or a folder of .txt files, tars or "
                    "MDS shards"
                )
            yield first
            yield from found

    def _texts(self, source: Path) -> Iterator[str]:
        if not source.is_dir():
            yield from (text for row in read_rows(source) for text in row.captions)
            return
        if is_mds(source):
            yield from captions_of_mds(source)
            return
        paths, readers = (
            files_below(source),
            {".tar": captions_of_tar, ".parquet": captions_of_parquet},
        )
        packed = [
            path for path in paths if path.suffix.lower() in readers and not _is_table_beside(path)
        ]
        for path in packed:
            yield from readers[path.suffix.lower()](path)
        if not packed:
            yield from Texts(source, Rules()).all()


def _is_table_beside(path: Path) -> bool:
    """Whether a file is img2dataset's table of a tar or a folder, whose captions it repeats."""
    whole = path.with_suffix(".tar"), path.with_suffix("")
    return path.suffix.lower() == ".parquet" and (whole[0].is_file() or whole[1].is_dir())


def _named(config: ShardsConfig) -> tuple[Vocabulary | None, str]:
    """Return the vocabulary that belongs to a build by its settings, and where it is from."""
    if config.vocabulary:
        name = f"vocabulary={config.vocabulary}"
        return Vocabulary.load(Path(config.vocabulary)), name
    if config.source == "pickles" and not Path(config.captions).is_dir():
        return Vocabulary(read_published(Path(config.captions)).words), config.captions
    return None, ""


def refuse_foreign(vocabulary: Vocabulary, texts: Iterable[str], name: str) -> None:
    """Refuse captions most of whose words are not in a vocabulary.

    Raises:
        DataError: they are of other words; `name` says where the vocabulary is from.
    """
    texts = [*islice(texts, _LOOKED_AT)]
    unknown = sum(len(vocabulary.unknown(text)) for text in texts)
    _refuse_unknown(unknown, unknown + sum(len(vocabulary.encode(text)) for text in texts), name)


def refuse_foreign_words(vocabulary: Vocabulary, counts: Mapping[str, int], name: str) -> None:
    """Refuse captions by the counts of their words, as :func:`refuse_foreign` does.

    Raises:
        DataError: most of them are not in the vocabulary.
    """
    known = {*vocabulary.words[1:]}
    unknown = sum(count for word, count in counts.items() if word not in known)
    _refuse_unknown(unknown, sum(counts.values()), name)


def _refuse_unknown(unknown: int, total: int, name: str) -> None:
    if unknown > total / 2:
        raise DataError(
            f"{unknown:,} of the {total:,} words of the captions are not in {name}: it belongs to "
            "other captions, so name another vocabulary= or write to another output="
        )


def remarks_on(vocabulary: Vocabulary, texts: Iterable[str]) -> tuple[str, ...]:
    """Say how many captions have no word, which a training would read as no text at all.

    Raises:
        DataError: none of them has one.
    """
    count, silent, example = 0, 0, ""
    for text in islice(texts, _LOOKED_AT):
        count += 1
        if not vocabulary.encode(text):
            silent, example = silent + 1, example or text
    return remarks_on_silent(vocabulary.letters, count, silent, example)


def remarks_on_silent(letters: str, count: int, silent: int, example: str) -> tuple[str, ...]:
    """Say how many captions have no word, as :func:`remarks_on` does.

    Args:
        letters: which make words in the vocabulary.
        count: of captions.
        silent: of those that have no word.
        example: the first of these.

    Raises:
        DataError: none of them has one.
    """
    if not silent:
        return ()
    remedy = f"; letters={UNICODE} keeps the letters of every language" if letters == ASCII else ""
    shown = " ".join(example.split())[:60]
    of = f"{silent:,} of {count:,} captions have no word of the vocabulary"
    if silent == count:
        raise DataError(f"{of}, the first is {shown!r}: a training would read no text{remedy}")
    return (f"{of} and are read as empty text, the first is {shown!r}{remedy}",)
