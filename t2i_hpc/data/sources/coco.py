"""COCO's own layout: a folder of images and one captions JSON.

The captions file decides which images are taken, in its order; files that it does not name
are left alone, so that a part of the captions can be used with the whole folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.sources.sample import (
    SourceSample,
    folder_at,
    non_empty,
    read_json,
    refuse,
    refuse_missing_images,
)


def read_coco(config: ShardsConfig) -> Sequence[SourceSample]:
    """Read ``captions_<split>.json`` and find its images; every image is its own class.

    Raises:
        DataError: missing or unreadable files, or captions and images that do not match.
    """
    folder = folder_at(config.images, "images", "COCO's folder of images, e.g. train2014")
    if not config.captions:
        raise DataError("captions= is missing: name COCO's captions_train2014.json or the like")
    path = Path(config.captions)
    names, captions = _parse(read_json(path, "COCO's captions file"), path)
    refuse_missing_images({name: folder / name for name in names.values()}, str(folder))
    silent = [name for number, name in names.items() if not captions[number]]
    refuse(silent, f"images of {path} have no caption", "add captions or take the images out")
    return [
        SourceSample(Path(name).stem, folder / name, tuple(captions[number]), place)
        for place, (number, name) in enumerate(names.items())
    ]


def read_coco_captions(path: Path) -> list[str]:
    """Return all captions of a captions file, image by image.

    Raises:
        DataError: a missing or unreadable file.
    """
    _, captions = _parse(read_json(path, "COCO's captions file"), path)
    return [text for texts in captions.values() for text in texts]


def _parse(content: object, path: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Return file name and captions by COCO's image number."""
    try:
        if not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        names = {int(image["id"]): _plain(image["file_name"]) for image in content["images"]}
        pairs = [(int(note["image_id"]), str(note["caption"])) for note in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no captions file of COCO ({type(error).__name__}: {error}): it must hold "
            "the lists 'images' (id, file_name) and 'annotations' (image_id, caption)"
        ) from error
    if not names:
        raise DataError(f"{path} lists no images: fetch the captions file again")
    strangers = [str(number) for number, _ in pairs if number not in names]
    refuse(
        strangers, f"captions of {path} belong to no listed image", "fetch the captions file again"
    )
    captions: dict[int, list[str]] = {number: [] for number in names}
    for number, text in pairs:
        captions[number].extend(non_empty([text]))
    return names, captions


def _plain(name: object) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"the file name {name!r} is not a plain name")
    return name
