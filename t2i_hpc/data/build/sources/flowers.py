"""Oxford-102: 8,189 photographs of 102 species of flowers, with Reed's ten captions of each.

The layouts are those of the downloads: ``jpg/image_00001.jpg`` of the images' authors, and
``text_c10/class_00077/image_00001.txt`` of the captions'. The folder of a caption file is the
image's class, so ``imagelabels.mat`` is not read.

The split is by class, as in all text-to-image work, so that a generator is tried on flowers it has
never seen: ``trainvalclasses.txt`` and ``testclasses.txt`` beside ``text_c10`` say which classes.
Without them every fifth class is held out. The authors' own lists of images are the splits
``trnid``, ``valid`` and ``tstid`` of ``setid.mat``; they train classifiers on 1,020 images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.captions_files import ALL
from t2i_hpc.data.build.sources.sample import (
    SourceData,
    SourceSample,
    Texts,
    folder_at,
    located,
    read_text,
)
from t2i_hpc.data.sidecars import Rules, files_below, lines_of

CLASS_LISTS = {"train": "trainvalclasses.txt", "test": "testclasses.txt"}
IMAGE_LISTS = ("trnid", "valid", "tstid")
_HELD_OUT = 5  # 20 of 102 classes, as many as in the literature's split
_NAME = re.compile(r"class_(\d{5})/image_(\d{5})")


def read_flowers(config: ShardsConfig) -> SourceData:
    """Read the caption files of a split and find their images.

    Raises:
        DataError: missing or unreadable files, or a split that is not there.
    """
    images = folder_at(config.images, "images", "Oxford-102's folder jpg, or the one that holds it")
    texts = folder_at(config.captions, "captions", "the folder text_c10")
    folder = images / "jpg" if (images / "jpg").is_dir() else images
    names = list(_names(texts))
    if not names:
        raise DataError(
            f"{texts} has no class_00001/image_00001.txt or the like: captions= must name the "
            "folder text_c10"
        )
    chosen, remark = _of_split(names, config.split, images, texts)
    captions, samples = Texts(texts, Rules()), []
    for stem, class_id, number in chosen:
        given, silent = captions.of(stem)
        path, missing = located(f"image_{number:05d}.jpg", folder, str(texts / f"{stem}.txt"))
        samples.append(
            SourceSample(path.stem, path, given.captions, class_id, unfit=missing or silent)
        )
    return SourceData(samples, remarks=(remark,) if remark else ())


Name = tuple[str, int, int]  # path of the captions without suffix, class, number of the image


def _names(texts: Path) -> Iterator[Name]:
    for path in files_below(texts):
        stem = path.relative_to(texts).with_suffix("").as_posix()
        if path.suffix == ".txt" and (match := _NAME.fullmatch(stem)):
            yield stem, int(match[1]), int(match[2])


def _of_split(names: list[Name], split: str, images: Path, texts: Path) -> tuple[list[Name], str]:
    """Return what a split holds, and what to say of the rule that chose it.

    Raises:
        DataError: there is no such split, or its list names nothing that is there.
    """
    if split == ALL:
        return names, ""
    if split in IMAGE_LISTS:
        numbers = _image_list(images, split)
        chosen, remark = [name for name in names if name[2] in numbers], ""
    elif split in CLASS_LISTS:
        classes, remark = _classes(names, split, texts)
        chosen = [name for name in names if name[1] in classes]
    else:
        offered = ", ".join([*CLASS_LISTS, *IMAGE_LISTS])
        raise DataError(
            f"split={split} is none of Oxford-102's: {offered}, or {ALL} for all images"
        )
    if not chosen:
        raise DataError(f"the split {split} holds none of the {len(names):,} images of {texts}")
    return chosen, remark


def _classes(names: list[Name], split: str, texts: Path) -> tuple[set[int], str]:
    """Return the classes of a split, by the literature's list or without it by rule."""
    lists = [folder / CLASS_LISTS[split] for folder in (texts, texts.parent)]
    for path in (path for path in lists if path.is_file()):
        return {_class(line, path) for line in lines_of(read_text(path, "a list")) if line}, ""
    held_out = {name[1] for name in names if name[1] % _HELD_OUT == 0}
    classes = held_out if split == "test" else {name[1] for name in names} - held_out
    return classes, (
        f"there is no {lists[1]}, the literature's split: classes whose number {_HELD_OUT} divides "
        "are held out, so scores compare with no paper's"
    )


def _class(line: str, path: Path) -> int:
    match = re.fullmatch(r"class_(\d{5})", line.strip())
    if match is None:
        raise DataError(f"{path} has the line {line!r} instead of a class such as class_00001")
    return int(match[1])


def _image_list(images: Path, name: str) -> set[int]:
    """Return the numbers of the images that the authors list under `name`.

    Raises:
        DataError: setid.mat is missing or damaged, or nothing is here to read it with.
    """
    found = [folder / "setid.mat" for folder in (images, images.parent)]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise DataError(f"split={name} is a list of setid.mat, which is not in {images}")
    if find_spec("scipy") is None:
        raise DataError(f"{path} needs an extra: pip install 't2i-hpc[flowers]'")
    from scipy.io import loadmat

    try:
        return set(loadmat(path)[name].ravel().tolist())
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise DataError(f"{path} has no list {name} ({error}): fetch it again") from error
