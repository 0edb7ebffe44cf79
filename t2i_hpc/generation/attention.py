"""Where the words of held-out captions look in their images, as encoders learn it.

After AttnGAN's Fig. 4, which shows the five most attended words of a caption. A word's map sums
to 1 over the regions of the picture, so a word that is attended to evenly says nothing; the most
attended words are those with the highest peaks.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from t2i_hpc.common.step import Matcher
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.generation.captions import encode_captions, spelt
from t2i_hpc.reporting.attention import WordMap, attention_grid
from t2i_hpc.reporting.grids import save_picture

_WORDS = 5


class AttentionPictures:
    """Writes ``attention/<images>.png`` into a run.

    A row is a held-out image with its caption, then its most attended words over the image.
    Images and captions are the same each time.
    """

    def __init__(self, run: Path, config: TrainConfig, split: Split, system: Matcher) -> None:
        self.run, self.system = run, system
        rows = min(config.engine.sample_rows, split.count)
        numbers = [row * split.count // rows for row in range(rows)]
        self.captions = [split.caption(number, config.seed)[1] for number in numbers]
        self.images = split.evaluation_images(numbers, system.resolution)
        self.tokens, self.lengths = encode_captions(
            self.captions, split.vocabulary, config.data.words, config.seed
        )
        self.words = spelt(self.tokens, self.lengths, split.vocabulary)

    def __call__(self, images_seen: int) -> None:
        """Write the maps of the system as it is now."""
        device = next(self.system.modules.parameters()).device
        inputs = (value.to(device) for value in (self.images, self.tokens, self.lengths))
        maps = self.system.attend(*inputs).float().cpu()
        rows = [most_attended(*row) for row in zip(self.words, maps, strict=True)]
        grid = attention_grid(self.images, rows, self.captions)
        save_picture(grid, self.run / "attention" / f"{images_seen:010d}.png")


def most_attended(words: list[str], maps: Tensor, most: int = _WORDS) -> list[WordMap]:
    """Return the words with the highest peaks, highest first; a repeated word counts once.

    Args:
        words: n words.
        maps: (T, r, r) with T ≥ n.
        most: how many words to return, where there are so many.
    """
    ranked = sorted(
        (WordMap(word, own) for word, own in zip(words, maps, strict=False)),
        key=lambda word_map: -word_map.peak,
    )
    first = {word_map.word: word_map for word_map in reversed(ranked)}
    return sorted(first.values(), key=lambda word_map: -word_map.peak)[:most]
