"""Door: turn images and captions into shards, and look at shards that are there.

python -m t2i_hpc.shards source=folder images=DIR output=shards/mine
python -m t2i_hpc.shards verify shards/mine

A first word that is no ``key=value`` is a command on shards that are there; without one a
split is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cli.command import Command, is_path
from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.common.terminal import say
from t2i_hpc.config.data import ShardsConfig

_Settings = dict[str, str]


def run(config: ShardsConfig) -> None:
    """Build one split, or a part of one, and say what it holds."""
    from t2i_hpc.data.build.split_writer import build_parts, build_splits

    output = Path(config.output)
    if not config.partition:
        for built in build_splits(config):
            say(built)
        return
    made = build_parts(config)
    shards = sum(map(len, made))
    target = output / config.split if len(made) == 1 else output
    say(
        f"{target}: part {config.partition} is made, {shards:,} shards; after all parts: "
        f"python -m t2i_hpc.shards merge {target}"
    )


def merge(folder: str, settings: _Settings) -> None:
    """Make a split of its parts, or all splits of a folder."""
    from t2i_hpc.data.build.split_writer import merge_split, splits_to_merge

    given = settings.get("max_rejected")
    fraction = None if given is None else _fraction(given)
    for target in splits_to_merge(Path(folder)):
        say(merge_split(target, fraction))


def vocabulary(folder: str, settings: _Settings) -> None:
    """Write the vocabulary of a folder of splits before they are built."""
    from t2i_hpc.data.build.choose_vocabulary import import_vocabulary, make_vocabulary

    if ("captions" in settings) == ("from" in settings):
        raise ConfigurationError("vocabulary takes either captions=FILE,FILE,… or from=PICKLE")
    if settings.get("letters", "ascii") not in ("ascii", "unicode") or {"from", "letters"} <= {
        *settings
    }:
        raise ConfigurationError("letters= is ascii or unicode, and belongs to captions=")
    if "from" in settings:
        words = import_vocabulary(Path(folder), Path(settings["from"]))
    else:
        sources = [Path(name) for name in settings["captions"].split(",") if name]
        if not sources:
            raise ConfigurationError("captions= names no file: write captions=FILE,FILE,…")
        words = make_vocabulary(Path(folder), sources, settings.get("letters", "ascii"))
    say(f"{Path(folder) / 'vocabulary.json'}: {words.size:,} words")


def verify(folder: str, _: _Settings) -> None:
    """Read every split again and say of each that it is all right."""
    from t2i_hpc.common.terminal import progress
    from t2i_hpc.data.inspection import splits_at, verify_split

    for manifest in splits_at(folder, check_tars=False):
        with progress(f"verify {manifest.folder}", manifest.sample_count, "samples") as advance:
            verify_split(manifest, advance)
        say(
            f"{manifest.folder}: {manifest.sample_count:,} samples in "
            f"{manifest.shard_count:,} shards: all right"
        )


def show(folder: str, settings: _Settings) -> None:
    """Print one sample and write its picture."""
    from t2i_hpc.data.inspection import (
        find_key,
        new_png,
        only_split,
        picture_name,
        place_of,
        splits_at,
        write_png,
    )

    if ("key" in settings) == ("number" in settings):
        raise ConfigurationError("show takes either key=NAME or number=N")
    if "key" in settings:
        manifest, number = find_key(splits_at(folder), settings["key"])
    else:
        number = _whole_number(settings["number"])
        manifest = only_split(splits_at(folder))
    place = place_of(manifest, number)
    output = new_png(settings.get("output") or picture_name(place.sample.key))
    write_png(output, place.image)
    height, width = place.image.shape[:2]
    say(f"key      {place.sample.key}\nnumber   {number} of {manifest.folder}")
    for caption in place.sample.captions:
        say(f"caption  {caption}")
    say(f"class    {place.sample.class_id}")
    say(f"size     {width} x {height} px, {place.sample.image_format}")
    say(f"bytes    {len(place.sample.image):,} at offset {place.offset:,} of {place.shard}")
    say(f"picture  {output}")


def sheet(folder: str, settings: _Settings) -> None:
    """Write a contact sheet of one split."""
    import numpy as np

    from t2i_hpc.data.inspection import contact_sheet, new_png, only_split, splits_at, write_png

    output = new_png(settings.get("output") or "sheet.png")
    write_png(output, np.asarray(contact_sheet(only_split(splits_at(folder)))))
    say(output)


@dataclass(frozen=True)
class _Command:
    usage: str
    summary: str
    keys: tuple[str, ...]
    run: Callable[[str, _Settings], None]


COMMANDS = {
    "merge": _Command(
        "merge DIR [max_rejected=0.05]",
        "make the split DIR (output/split) of its partitions, all built with partition=; or all\n"
        "      splits of the folder DIR",
        ("max_rejected",),
        merge,
    ),
    "vocabulary": _Command(
        "vocabulary DIR captions=FILE,FILE,…|from=PICKLE [letters=unicode]",
        "write DIR/vocabulary.json before the splits are built there: the words of captions in "
        "their order\n      (captions files of any form that a build reads, folders of .txt), or "
        "those of a published\n      captions.pickle; letters=unicode keeps those of every "
        "language",
        ("captions", "from", "letters"),
        vocabulary,
    ),
    "verify": _Command(
        "verify DIR",
        "read all of a split, or of a folder of splits, again: hashes, index, images",
        (),
        verify,
    ),
    "show": _Command(
        "show DIR key=NAME|number=N [output=PNG]",
        "print a sample and write its picture (./NAME.png)",
        ("key", "number", "output"),
        show,
    ),
    "sheet": _Command(
        "sheet DIR [output=sheet.png]",
        "draw 64 samples of a split, evenly spread, with their captions",
        ("output",),
        sheet,
    ),
}


class _ShardsDoor(Command[ShardsConfig]):
    """The door with its commands, whose words are split off before anything is composed."""

    def _open(self, words: list[str]) -> int:
        if not words or "=" in words[0] or words[0].startswith("-") or {"--help", "-h"} & {*words}:
            return super()._open(words)
        name, *rest = words
        if name not in COMMANDS:
            raise ConfigurationError(
                f"unknown command {name!r}: {nearest(name, COMMANDS)}; without a command, "
                "settings are written key=value"
            )
        folder, settings = _read_words(rest, COMMANDS[name])
        COMMANDS[name].run(folder, settings)
        return 0


def _read_words(words: Sequence[str], command: _Command) -> tuple[str, _Settings]:
    """Return the folder and the settings of a command; values are taken letter by letter.

    hydra's grammar is not asked here: it reads ``key=000042`` as the number 42.
    """
    folders = [word for word in words if is_path(word, command.keys)]
    settings = dict(word.split("=", 1) for word in words if word not in folders and "=" in word)
    if len(folders) != 1 or folders[0].startswith("-"):
        raise ConfigurationError(f"cannot read the words: write {command.usage}")
    for key in settings:
        if key not in command.keys:
            raise ConfigurationError(f"unknown key {key!r}: write {command.usage}")
    return folders[0], settings


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"number={text} is no whole number: count samples from 0")
    return int(text)


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ConfigurationError(f"max_rejected={text} is no fraction: write a number from 0 to 1")
    return fraction


COMMAND = _ShardsDoor(
    task="shards",
    summary="Convert one split of a data set to tar shards with a manifest and an index. A build "
    "that was\ninterrupted goes on where it stopped when the same command is given again.\n\n"
    "Commands (DIR of verify, show, sheet: a split or a folder of splits; or demo):\n"
    + "\n".join(f"  {command.usage}\n      {command.summary}" for command in COMMANDS.values()),
    config=ShardsConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.shards source=coco images=coco/train2014 "
        "captions=coco/annotations/captions_train2014.json output=shards/coco split=train",
        "python -m t2i_hpc.shards source=cub images=CUB_200_2011 captions=text "
        "output=shards/cub split=test",
        "python -m t2i_hpc.shards source=folder images=my_images output=shards/mine "
        "shard_samples=500 format=webp",
        "python -m t2i_hpc.shards source=folder images=faces/images captions=faces/text "
        "output=shards/faces test_fraction=0.1",
        "python -m t2i_hpc.shards source=webdataset images=my_tars output=shards/mine",
        "python -m t2i_hpc.shards source=pickles images=birds/CUB_200_2011/images "
        "captions=birds/captions.pickle output=shards/birds split=train",
        "python -m t2i_hpc.shards source=folder images=my_images output=shards/mine "
        "partition=$SLURM_ARRAY_TASK_ID/16  (array 1-16, then merge)",
        "python -m t2i_hpc.shards merge shards/mine/train",
        "python -m t2i_hpc.shards vocabulary shards/coco "
        "captions=captions_train2014.json,captions_val2014.json",
        "python -m t2i_hpc.shards vocabulary shards/cub from=birds/captions.pickle",
        "python -m t2i_hpc.shards verify shards/mine",
        "python -m t2i_hpc.shards show shards/mine/train number=7 output=seven.png",
        "python -m t2i_hpc.shards sheet shards/mine/train output=sheet.png",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
