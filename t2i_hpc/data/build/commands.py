"""What ``t2i_hpc.shards`` does: build splits, and its subcommands on shards that are there.

What a subcommand needs is imported when it runs, so ``--help`` and a misspelt key answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.common.terminal import say
from t2i_hpc.config.data import ShardsConfig

if TYPE_CHECKING:
    from t2i_hpc.data.format.manifest import Manifest
    from t2i_hpc.data.storage.object_stores import Bucket

Settings = dict[str, str]


def build(config: ShardsConfig) -> None:
    """Build one split, or a partition of one, and print what it holds."""
    from t2i_hpc.data.build.split_writer import (
        build_index,
        build_index_partition,
        build_partition,
        build_splits,
    )
    from t2i_hpc.data.storage.object_stores import use_access

    use_access(config)
    if "://" in config.output:
        _build_into_bucket(config)
        return
    if config.index and not config.partition:
        say(build_index(config))
        return
    if config.index:
        tars, target = build_index_partition(config), Path(config.index) / config.split
        say(
            f"{target}: partition {config.partition} is indexed, {len(tars):,} tars; after all of "
            f"them: python -m t2i_hpc.shards merge {target}"
        )
        return
    output = Path(config.output)
    if not config.partition:
        for built in build_splits(config):
            say(built)
        return
    made = build_partition(config)
    shards = sum(map(len, made))
    target = output / config.split if len(made) == 1 else output
    say(
        f"{target}: partition {config.partition} is made, {shards:,} shards; after all of them: "
        f"python -m t2i_hpc.shards merge {target}"
    )


def _build_into_bucket(config: ShardsConfig) -> None:
    """Build splits in a folder here and copy them; a split that is there is only copied."""
    from t2i_hpc.data.build.split_writer import HELD_OUT, build_splits
    from t2i_hpc.data.format.manifest import MANIFEST, Manifest
    from t2i_hpc.data.storage.object_stores import Bucket

    bucket = Bucket(config.output, setting="output")
    if not config.staging or config.partition:
        raise ConfigurationError(
            "output= is an address: add staging=DIR, a folder here for the shards until they are "
            "all in the bucket; partitions are built with output=DIR, merged, and copied by "
            "shards upload DIR to=…"
        )
    names = [config.split, HELD_OUT] if config.test_fraction else [config.split]
    folders = [Path(config.staging) / name for name in names]
    if not all((folder / MANIFEST).is_file() for folder in folders):
        for built in build_splits(replace(config, output=config.staging)):
            say(built)
    for folder in folders:
        _upload(Manifest.load(folder), bucket)


def merge(folder: str, settings: Settings) -> None:
    """Make a split of its partitions, or all splits of a folder."""
    from t2i_hpc.data.build.split_writer import merge_split, splits_to_merge

    given = settings.get("max_rejected")
    fraction = None if given is None else _fraction(given)
    for target in splits_to_merge(Path(folder)):
        say(merge_split(target, fraction))


def vocabulary(folder: str, settings: Settings) -> None:
    """Write the vocabulary of a folder of splits before they are built."""
    from t2i_hpc.data.build.choose_vocabulary import import_vocabulary, make_vocabulary

    if ("captions" in settings) == ("from" in settings):
        raise ConfigurationError("vocabulary takes either captions=FILE,FILE,… or from=PICKLE")
    if settings.get("letters", "ascii") not in ("ascii", "unicode") or {"from", "letters"} <= {
        *settings
    }:
        raise ConfigurationError("letters= is ascii or unicode, and belongs to captions=")
    if "from" in settings and {"min_count", "max_words"} & {*settings}:
        raise ConfigurationError("min_count= and max_words= belong to captions=")
    if "from" in settings:
        made = import_vocabulary(Path(folder), Path(settings["from"]))
    else:
        sources = [Path(name) for name in settings["captions"].split(",") if name]
        if not sources:
            raise ConfigurationError("captions= names no file: write captions=FILE,FILE,…")
        bounds = (
            _whole_number(settings.get("min_count", "1"), "min_count"),
            _whole_number(settings.get("max_words", "0"), "max_words"),
        )
        made = make_vocabulary(Path(folder), sources, settings.get("letters", "ascii"), *bounds)
    say(f"{Path(folder) / 'vocabulary.json'}: {made.size:,} words")


def upload(folder: str, settings: Settings) -> None:
    """Copy splits into a bucket and print where they are."""
    from t2i_hpc.data.inspection import splits_at
    from t2i_hpc.data.storage.object_stores import Bucket

    if "to" not in settings:
        raise ConfigurationError("upload takes to=s3://BUCKET/FOLDER")
    bucket = Bucket(settings["to"])
    for manifest in splits_at(folder):
        _upload(manifest, bucket)


def _upload(manifest: Manifest, bucket: Bucket) -> None:
    from t2i_hpc.common.terminal import progress
    from t2i_hpc.data.storage.object_stores import upload_split
    from t2i_hpc.data.storage.retry import shown

    if manifest.location:
        raise ConfigurationError("upload takes a folder here, not an address")
    total = sum(path.stat().st_size for path in manifest.folder.iterdir())
    with progress(f"upload {manifest.folder}", total, "bytes") as advance:
        upload_split(manifest, bucket, advance)
    there = f"{shown(bucket.address)}/{manifest.split}"
    say(f"{there}: {manifest.sample_count:,} samples; the copy {manifest.folder} may go")


def verify(folder: str, settings: Settings) -> None:
    """Read every split again and print that it is all right."""
    from t2i_hpc.common.terminal import progress
    from t2i_hpc.data.inspection import splits_at
    from t2i_hpc.data.storage.retry import shown
    from t2i_hpc.data.verification import verify_split

    workers = _whole_number(settings.get("workers", "0"), "workers")
    log = Path(settings["log"]) if "log" in settings else None
    for manifest in splits_at(folder, check_tars=False):
        name = shown(manifest.location) or manifest.folder
        with progress(f"verify {name}", manifest.sample_count, "samples") as advance:
            verify_split(manifest, advance, workers, log)
        say(
            f"{name}: {manifest.sample_count:,} samples in "
            f"{manifest.shard_count:,} shards: all right"
        )


def info(folder: str, settings: Settings) -> None:
    """Print what every split holds, and draw it where a picture is asked for."""
    from t2i_hpc.common.terminal import progress
    from t2i_hpc.data.inspection import new_png, splits_at
    from t2i_hpc.data.split_summary import SAMPLES, draw_histograms, summarize

    output = new_png(settings["output"]) if "output" in settings else None
    given = settings.get("samples", str(SAMPLES))
    summaries = []
    for manifest in splits_at(folder):
        most = manifest.sample_count if given == "all" else _whole_number(given, "samples")
        read = min(most, manifest.sample_count)
        with progress(f"read {manifest.location or manifest.folder}", read, "samples") as advance:
            summaries.append(summarize(manifest, most, advance))
    for number, summary in enumerate(summaries):
        say("\n".join([""] * bool(number) + list(summary.lines())))
    if output:
        draw_histograms(summaries, output)
        say(f"\n{output}")


def show(folder: str, settings: Settings) -> None:
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
        number = _whole_number(settings["number"], "number")
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
    say(f"bytes    {len(place.sample.image):,} at offset {place.offset:,} of {place.name}")
    say(f"picture  {output}")


def sheet(folder: str, settings: Settings) -> None:
    """Write a contact sheet of one split."""
    import numpy as np

    from t2i_hpc.data.inspection import contact_sheet, new_png, only_split, splits_at, write_png

    output = new_png(settings.get("output") or "sheet.png")
    write_png(output, np.asarray(contact_sheet(only_split(splits_at(folder)))))
    say(output)


@dataclass(frozen=True)
class Subcommand:
    """How a subcommand is written, what it does, its keys, and the function that does it."""

    usage: str
    summary: str
    keys: tuple[str, ...]
    run: Callable[[str, Settings], None]


SUBCOMMANDS = {
    "merge": Subcommand(
        "merge DIR [max_rejected=0.05]",
        "make the split DIR (output/split) of its partitions, all built with partition=; or all\n"
        "      splits of the folder DIR",
        ("max_rejected",),
        merge,
    ),
    "vocabulary": Subcommand(
        "vocabulary DIR captions=FILE,FILE,…|from=PICKLE [letters=unicode] [min_count=5] "
        "[max_words=30000]",
        "write DIR/vocabulary.json before the splits are built there: the words of captions in "
        "their order\n      (captions files of any form that a build reads, folders of .txt, tars) "
        "or those of a published\n      captions.pickle; letters=unicode keeps those of every "
        "language",
        ("captions", "from", "letters", "min_count", "max_words"),
        vocabulary,
    ),
    "upload": Subcommand(
        "upload DIR to=s3://BUCKET/FOLDER",
        "copy a split, or a folder of splits, into a bucket, several files at once; the manifest "
        "comes last,\n      and the same command resumes",
        ("to",),
        upload,
    ),
    "verify": Subcommand(
        "verify DIR [workers=4] [log=FILE]",
        "read all of a split, or of a folder of splits, again: hashes, index, images; DIR may be\n"
        "      an address; log= notes what is whole, and the same command resumes there",
        ("workers", "log"),
        verify,
    ),
    "info": Subcommand(
        "info DIR [samples=10000|all] [output=PNG]",
        "print what a split, or each of a folder, holds: counts, bytes, formats, sides, lengths of "
        "captions,\n      unknown words, with histograms; output= draws these",
        ("samples", "output"),
        info,
    ),
    "show": Subcommand(
        "show DIR key=NAME|number=N [output=PNG]",
        "print a sample and write its picture (./NAME.png)",
        ("key", "number", "output"),
        show,
    ),
    "sheet": Subcommand(
        "sheet DIR [output=sheet.png]",
        "draw 64 samples of a split, evenly spread, with their captions",
        ("output",),
        sheet,
    ),
}


def keys_of(name: str) -> tuple[str, ...]:
    """Return the keys of a subcommand.

    Raises:
        ConfigurationError: there is no such subcommand.
    """
    if name not in SUBCOMMANDS:
        raise ConfigurationError(
            f"unknown command {name!r}: {nearest(name, SUBCOMMANDS)}; without a command, "
            "settings are written key=value"
        )
    return SUBCOMMANDS[name].keys


def run_subcommand(name: str, folders: Sequence[str], others: Sequence[str]) -> None:
    """Run a subcommand with its arguments, of which one is a folder and the others settings.

    Values are taken letter by letter; hydra's grammar is not asked: it reads ``key=000042`` as the
    number 42.

    Raises:
        UserError: the arguments cannot be read, or the subcommand fails.
    """
    subcommand = SUBCOMMANDS[name]
    if len(folders) != 1 or folders[0].startswith("-"):
        raise ConfigurationError(f"cannot read the arguments: write {subcommand.usage}")
    settings = dict(one.split("=", 1) for one in others if "=" in one)
    for key in settings:
        if key not in subcommand.keys:
            raise ConfigurationError(f"unknown key {key!r}: write {subcommand.usage}")
    subcommand.run(folders[0], settings)


def _whole_number(text: str, key: str) -> int:
    advice = {"number": "count samples from 0", "samples": "write how many to read, or all"}
    advice["workers"] = "write how many processes read"
    advice |= dict.fromkeys(("min_count", "max_words"), "write how often, or how many")
    if not text.isdecimal() or (key == "samples" and int(text) == 0):
        raise ConfigurationError(f"{key}={text} is no whole number: {advice[key]}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ConfigurationError(f"max_rejected={text} is no fraction: write a number from 0 to 1")
    return fraction
