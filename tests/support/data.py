"""Synthetic data for tests: drawn images with matching captions, in every layout that is read.

All of it is made on the fly and is the same each time.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file, write_json
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources import SOURCES, SourceSample
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.tables import Shard, save_tables, sha256_of_rows
from t2i_hpc.data.format.tars import SampleFiles, index_tar, write_tar
from t2i_hpc.data.images import decode

COLOURS = ("red", "green", "blue", "yellow", "black", "purple", "orange")
SHAPES = ("circle", "square", "triangle")
SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "024.Red_faced_Cormorant")


def draw_image(number: int, width: int = 40, height: int = 40) -> Image.Image:
    """Draw image `number`: one colored shape on a tinted ground."""
    ground = (200 + number * 7 % 56, 200 + number * 13 % 56, 200 + number * 29 % 56)
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    left, top = width // 5 + number % 3, height // 5 + number % 5
    right, bottom = width - width // 5, height - height // 5
    color = COLOURS[number % len(COLOURS)]
    shape = SHAPES[number % len(SHAPES)]
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=color)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=color)
    else:
        draw.polygon([(left, bottom), (right, bottom), (width // 2, top)], fill=color)
    return image


def captions_of(number: int) -> list[str]:
    """Return three captions that are true of :func:`draw_image`."""
    color, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
    return [
        f"a {color} {shape}",
        f"A picture of one {shape}, colored {color}, on a light ground.",
        f"the {shape} in the middle is {color}",
    ]


def image_bytes(number: int, form: str = "PNG", width: int = 40, height: int = 40) -> bytes:
    """Return image `number` as a file of the format that Pillow calls `form`."""
    stream = io.BytesIO()
    draw_image(number, width, height).save(stream, form)
    return stream.getvalue()


def make_image_folder(
    folder: Path, numbers: range, size: int = 40, *, metadata: bool = True
) -> Path:
    """Write images ``0007.png`` … with metadata.jsonl or one .txt each; returns the folder."""
    folder.mkdir(parents=True)
    rows = []
    for number in numbers:
        name = f"{number:04d}"
        (folder / f"{name}.png").write_bytes(image_bytes(number, "PNG", size + 8, size))
        if not metadata:
            (folder / f"{name}.txt").write_text("\n".join(captions_of(number)) + "\n")
        shape = number % len(SHAPES)
        rows.append({"file_name": f"{name}.png", "captions": captions_of(number), "class": shape})
    if metadata:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_coco(folder: Path, count: int = 6, width: int = 60, height: int = 48) -> tuple[Path, Path]:
    """Write COCO's layout; returns the folder of images and the captions file."""
    images = folder / "val2017"
    images.mkdir(parents=True)
    listed, notes = [], []
    for number in range(count):
        name = f"{1000 + number:012d}.jpg"
        (images / name).write_bytes(image_bytes(number, "JPEG", width, height))
        listed.append({"id": 1000 + number, "file_name": name, "width": width, "height": height})
        notes += [{"image_id": 1000 + number, "caption": text} for text in captions_of(number)]
    notes = [{"id": place, **note} for place, note in enumerate(reversed(notes))]
    captions = folder / "captions_val2017.json"
    write_json(captions, {"info": {}, "images": listed, "annotations": notes})
    return images, captions


def make_cub(folder: Path, each: int = 2) -> tuple[Path, Path]:
    """Write CUB's layout with `each` images of three species, of which the second and third
    are training species; returns CUB_200_2011 and the folder of captions."""
    root, texts = folder / "CUB_200_2011", folder / "text"
    tables: dict[str, list[str]] = {"images": [], "bounding_boxes": [], "image_class_labels": []}
    for number in range(each * len(SPECIES)):
        species = SPECIES[number // each]
        name = f"{species}/{species[4:]}_{number:04d}"
        for place, content in (
            (root / "images" / f"{name}.jpg", image_bytes(number, "JPEG", 80, 60)),
            (texts / f"{name}.txt", "\n".join(captions_of(number)).encode()),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        tables["images"].append(f"{number + 1} {name}.jpg")
        tables["bounding_boxes"].append(f"{number + 1} 20.0 15.0 30.0 24.0")
        tables["image_class_labels"].append(f"{number + 1} {int(species[:3])}")
    for table, lines in tables.items():
        (root / f"{table}.txt").write_text("\n".join(lines) + "\n")
    return root, texts


def make_shards(folder: Path, count: int = 24, size: int = 40, shard_samples: int = 5) -> Path:
    """Build shards with `count` training and `count` // 2 (at least 2) test samples.

    Returns:
        The folder, with train/, test/ and vocabulary.json, for ``DataConfig.path``.
    """
    held_out = max(2, count // 2)
    numbers = {"train": range(count), "test": range(count, count + held_out)}
    texts = [text for number in range(count + held_out) for text in captions_of(number)]
    output = folder / "shards"
    Vocabulary.from_captions(texts).save(output / "vocabulary.json")
    for split, chosen in numbers.items():
        images = make_image_folder(folder / f"images-{split}", chosen, size)
        build_split(
            ShardsConfig(
                source="folder",
                images=str(images),
                output=str(output),
                split=split,
                size=size,
                format="png",
                shard_samples=shard_samples,
            )
        )
    return output


def read_source(
    source: str, images: Path, captions: Path | str = "", split: str = "train"
) -> list[SourceSample]:
    """Read a layout."""
    config = ShardsConfig(source=source, images=str(images), captions=str(captions), split=split)
    return list(SOURCES[source](config).samples)


def problems(source: str, images: Path, captions: Path | str = "", split: str = "train") -> str:
    """Return why a layout is refused, or which of its samples cannot be used and why."""
    try:
        samples = read_source(source, images, captions, split)
    except DataError as error:
        return str(error)
    unfit = [sample.unfit for sample in samples if sample.unfit is not None]
    return "\n".join(f"{len(unfit)} {one.kind}: {one.reason}" for one in unfit)


def random_bytes(count: int, seed: int = 0) -> bytes:
    """Return bytes that are no image."""
    return np.random.default_rng(seed).bytes(count)


def vouch(split: Path) -> Manifest:
    """Write manifest and tables anew for a split's tars as they are now, damaged or not."""
    return _vouch_for(Manifest.load(split))


def write_split(folder: Path, images: Sequence[bytes]) -> Path:
    """Write a training split of JPEG files as they are; returns the folder for ``path``."""
    texts = [captions_of(number) for number in range(len(images))]
    output = folder / "split"
    Vocabulary.from_captions(itertools.chain(*texts)).save(output / "vocabulary.json")
    split = output / "train"
    split.mkdir()
    records = [
        SampleFiles(f"{n:04d}", image, "jpeg", {"key": f"{n}", "captions": texts[n], "class": n})
        for n, image in enumerate(images)
    ]
    write_tar(split / "000000.tar", records)
    sides = [min(decode(image).shape[:2]) for image in images]
    sizes = max(sides), min(sides)
    _vouch_for(Manifest(split, "made", "train", *sizes, "jpeg", len(images), 1, 1, ""))
    return output


def _vouch_for(manifest: Manifest) -> Manifest:
    split = manifest.folder
    paths = sorted(split.glob("*.tar"))
    rows = [index_tar(path) for path in paths]
    shards = [
        Shard(n, len(part), path.stat().st_size, sha256_of_file(path), sha256_of_rows(part))
        for n, (path, part) in enumerate(zip(paths, rows, strict=True))
    ]
    total = sum(shard.bytes for shard in shards)
    replace(manifest, bytes=total, shards_sha256=save_tables(split, shards, rows)).save()
    return Manifest.load(split)


def make_flowers(folder: Path, classes: range = range(1, 7)) -> tuple[Path, Path]:
    """Write Oxford-102's layout with two images of each class; returns jpg and text_c10."""
    images, texts = folder / "jpg", folder / "text_c10"
    for class_id, half in itertools.product(classes, (0, 1)):
        number = 2 * len(classes) * (1 - half) + class_id  # numbers do not follow the classes
        for place, content in (
            (images / f"image_{number:05d}.jpg", image_bytes(number, "JPEG", 80, 60)),
            (
                texts / f"class_{class_id:05d}" / f"image_{number:05d}.txt",
                "\n".join(captions_of(number)).encode(),
            ),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    return images, texts
