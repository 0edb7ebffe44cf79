"""What a split holds, in figures: sizes, captions, words, formats, and how they are spread.

Counts and bytes are of all samples, from the manifest and the index. Captions and sides of images
are of some samples, evenly spread, whose descriptions and headers are read; nothing is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import atomic_writer, size_text
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import IMAGE_FORMATS, Manifest
from t2i_hpc.data.image_headers import dimensions
from t2i_hpc.data.inspection import reader_of, vocabulary_of
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_reader import Reader

SAMPLES = 10_000  # that are read unless another number is asked for
_BINS, _BAR = 12, 40
_SHOWN = 5  # unknown words


@dataclass
class SplitSummary:
    """Figures of a split.

    Attributes:
        manifest: of the split.
        words: of its vocabulary.
        bytes: of its images and descriptions.
        formats: number of images of each format.
        sides: width and height of each image that was read, px.
        captions: number of captions of each sample that was read.
        tokens: number of known words of each of its captions.
        unknown: words that the vocabulary does not have, and how often they stand there.
        classes: different classes.
    """

    manifest: Manifest
    words: int
    bytes: int
    formats: Counter[str]
    sides: list[tuple[int, int]] = field(default_factory=list)
    captions: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    classes: set[int] = field(default_factory=set)

    def histograms(self) -> dict[str, list[int]]:
        """Return what is worth a picture, by title."""
        return {
            "tokens of a caption": self.tokens,
            "shorter side of an image in px": [min(pair) for pair in self.sides],
        }

    def lines(self) -> Iterator[str]:
        """Yield the figures for people."""
        m, read = self.manifest, len(self.sides)
        formats = ", ".join(f"{count:,} {name}" for name, count in self.formats.most_common())
        yield (
            f"{shown(m.location) or m.folder}: {m.sample_count:,} samples in {m.shard_count:,} "
            f"shards, {size_text(self.bytes)} ({formats})"
        )
        yield f"stored as {m.stored}; vocabulary of {self.words:,} words"
        yield f"of {'all' if read == m.sample_count else f'{read:,}'} samples:"
        yield f"  captions of an image  {_spread(self.captions)}"
        yield f"  tokens of a caption   {_spread(self.tokens)}"
        yield f"  unknown words         {self._unknown()}"
        yield f"  shorter side          {_spread([min(pair) for pair in self.sides])} px"
        yield f"  classes               {self._classes()}"
        for title, values in self.histograms().items():
            yield ""
            yield title
            yield from histogram(values)

    def _unknown(self) -> str:
        count = self.unknown.total()
        share = count / max(1, count + sum(self.tokens))
        names = ", ".join(f"{word} {n:,}" for word, n in self.unknown.most_common(_SHOWN))
        return f"{share:.2%}{f' (most often: {names})' if names else ''}"

    def _classes(self) -> str:
        found = len(self.classes)
        return "none: each image is its own" if found == len(self.sides) else f"{found:,}"


def summarize(manifest: Manifest, most: int, advance: Callable[[int], None]) -> SplitSummary:
    """Read a split's figures.

    Args:
        manifest: of the split.
        most: samples to read, evenly spread.
        advance: called after each.

    Raises:
        DataError: a sample or the vocabulary is damaged.
    """
    vocabulary = vocabulary_of(manifest)
    rows = [manifest.rows(shard.number) for shard in manifest.shards()]
    formats = Counter[str]()
    for table in rows:
        for number, count in zip(
            *np.unique(table["image_format"], return_counts=True), strict=True
        ):
            formats[IMAGE_FORMATS[number]] += int(count)
    stored = sum(int(t["image_bytes"].sum() + t["json_bytes"].sum()) for t in rows)
    found = SplitSummary(manifest, vocabulary.size, stored, formats)
    reader, count = reader_of(manifest), min(most, manifest.sample_count)
    for place in range(count):
        _add(found, reader, place * manifest.sample_count // count, vocabulary)
        advance(1)
    return found


def _add(found: SplitSummary, reader: Reader, number: int, vocabulary: Vocabulary) -> None:
    sample = reader.read(number)
    try:
        _, width, height = dimensions(sample.image)
    except ValueError as error:
        raise DataError(f"{reader.name_of(number)} is damaged: {error}") from error
    found.sides.append((width, height))
    found.captions.append(len(sample.captions))
    found.classes.add(sample.class_id)
    for caption in sample.captions:
        found.tokens.append(len(vocabulary.encode(caption)))
        found.unknown.update(vocabulary.unknown(caption))


def _spread(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}, median {int(np.median(values)):,}"


def histogram(values: Sequence[int]) -> Iterator[str]:
    """Yield a line for each of at most 12 equal ranges of values."""
    ranges = list(_ranges(values))
    most = max(count for _, _, count in ranges)
    for low, high, count in ranges:
        bar = "█" * -(-count * _BAR // most)
        name = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        yield f"  {name:>14} {count:>9,} {bar}".rstrip()


def _ranges(values: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    low, array = min(values), np.asarray(values)
    width = -(-(int(array.max()) + 1 - low) // _BINS)
    for begin in range(low, int(array.max()) + 1, width):
        inside = (array >= begin) & (array < begin + width)
        yield begin, begin + width - 1, int(inside.sum())


def draw_histograms(summaries: Sequence[SplitSummary], path: Path) -> None:
    """Write a PNG with a row of histograms for each split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(summaries)), layout="constrained")
    grid = figure.subplots(len(summaries), 2, squeeze=False)
    for row, summary in zip(grid, summaries, strict=True):
        for axes, (title, values) in zip(row, summary.histograms().items(), strict=True):
            lows, highs, counts = zip(*_ranges(values), strict=True)
            wide = [high + 1 - low for low, high in zip(lows, highs, strict=True)]
            axes.bar(lows, counts, wide, align="edge", color="#2a6fdb", edgecolor="white")
            axes.set_title(f"{summary.manifest.folder.name}: {title}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
    with atomic_writer(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
