"""Make the demo shards from Microsoft's Fluent emoji: ``python -m shards.demo.build``.

The pictures come from the npm package @lobehub/fluent-emoji-3d, their names and tags from
emojibase-data; captions are composed from templates. Every step is a function of the two
packages alone, so the same versions of the libraries give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.demo.captions import captions, choose_tags, common_tags
from shards.demo.colors import dominant_colors
from shards.demo.emoji import Emoji, read_emoji
from shards.demo.packages import NAMES, PICTURES, unpacked
from shards.demo.phrases import Words
from t2i_hpc.common.errors import USER_ERROR, UserError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.captions import Vocabulary

SPLITS = ("train", "test")
_SIDE = 80  # pixels: 64 and some room for a random crop
_QUALITY = 92
_SHARD_SAMPLES = 256


def build(pictures: Path, names: Path, output: Path) -> dict[str, int]:
    """Write the shards of both splits and their vocabulary; return the samples a split.

    Args:
        pictures: unpacked package with the pictures (``assets/*.webp``).
        names: unpacked package with labels, tags and groups.
        output: folder to write into.
    """
    with tempfile.TemporaryDirectory() as workspace:
        folders = write_folders(read_emoji(pictures, names), Path(workspace))
        vocabulary = Path(workspace) / "vocabulary.json"
        Vocabulary.from_captions(all_captions(folders)).save(vocabulary)
        configs = [shards_config(split, folders[split], vocabulary, output) for split in folders]
        return {config.split: build_split(config).manifest.sample_count for config in configs}


def shards_config(split: str, folder: Path, vocabulary: Path, output: Path) -> ShardsConfig:
    """Return how the project's own writer turns one split's folder into shards."""
    return ShardsConfig(
        name="demo",
        source="folder",
        images=str(folder),
        captions=str(folder / "metadata.jsonl"),
        output=str(output),
        split=split,
        size=_SIDE,
        format="jpeg",
        quality=_QUALITY,
        shard_samples=_SHARD_SAMPLES,
        vocabulary=str(vocabulary),
    )


def write_folders(emoji: Sequence[Emoji], workspace: Path) -> dict[str, Path]:
    """Write PNG pictures on white and ``metadata.jsonl``, one folder a split."""
    words = Words.shipped()
    counts = common_tags((one.tags for one in emoji), words.no_topics)
    folders = {split: workspace / split for split in SPLITS}
    for split, folder in folders.items():
        folder.mkdir()
        rows = [_write_one(one, folder, words, counts) for one in emoji if one.split == split]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folders


def _write_one(one: Emoji, folder: Path, words: Words, counts: dict[str, int]) -> dict[str, Any]:
    with Image.open(one.picture) as opened:
        picture = opened.convert("RGBA")
    name = f"{one.code}.png"
    on_white(picture).save(folder / name)
    thing, kind = words.thing(one.label), words.kind(one.label, one.subgroup)
    colors = dominant_colors(np.asarray(picture))
    tags = choose_tags(one.tags, counts, f"{thing} {kind}")
    return {
        "file_name": name,
        "captions": captions(thing, kind, colors, tags),
        "class": one.class_id,
    }


def on_white(picture: Image.Image) -> Image.Image:
    """Lay an RGBA picture in the middle of a white square of its longer side."""
    side = max(picture.size)
    paper = Image.new("RGBA", (side, side), "white")
    paper.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return paper.convert("RGB")


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder's ``metadata.jsonl``."""
    lines = (folder / "metadata.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def all_captions(folders: dict[str, Path]) -> list[str]:
    """Return the captions of all splits, in the order of SPLITS."""
    rows = [row for split in SPLITS for row in read_metadata(folders[split])]
    return [caption for row in rows for caption in row["captions"]]


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line, build, and say what was written; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shards.demo.build", description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--packages", type=Path, help="folder with the two .tgz archives of npm")
    parser.add_argument("--output", type=Path, default=here, help="folder to write into")
    options = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as workspace:
            pictures = unpacked(PICTURES, options.packages, Path(workspace))
            names = unpacked(NAMES, options.packages, Path(workspace))
            samples = build(pictures, names, options.output)
    except UserError as error:
        sys.stderr.write(f"shards.demo.build: {error}\n")
        return USER_ERROR
    counts = ", ".join(f"{count:,} in {split}" for split, count in samples.items())
    sys.stdout.write(f"{options.output}: {sum(samples.values()):,} emoji, {counts}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
