"""Captions that lie beside images, a text file each: in the same folder or in another one.

``a.jpg`` has its captions in ``a.txt``, one a line, or in ``a.json`` as img2dataset writes it.
With a folder of texts apart, ``species/a.jpg`` has them in ``TEXTS/species/a.txt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.data.build.sources.sample import (
    IMAGE_SUFFIXES,
    MISSING_IMAGE,
    NO_CAPTION,
    NO_CLASS,
    NO_IMAGE,
    SourceSample,
    Unfit,
    files_below,
    is_about,
)
from t2i_hpc.data.build.sources.webdataset_tars import Description, Rules, UnfitSample, described

_TEXTS = (".txt", ".json", ".cls")
_NOTHING = Description((), NO_CLASS, "", 0)
Files = dict[str, dict[str, Path]]  # by path without suffix, then by suffix in lower case


class Texts:
    """The text files of a folder, found by the name of the image that they belong to."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self.folder, self._rules = folder, rules
        self._files = by_stem(files_below(folder), folder, _TEXTS)

    def of(self, stem: str) -> tuple[Description, Unfit | None]:
        """Return what is said of the image `stem`, and why it cannot be used, if so."""
        files = self._files.get(stem, {})
        if not {".txt", ".json"} & files.keys():
            expected = self.folder / f"{stem}.txt"
            return _NOTHING, Unfit(NO_CAPTION, f"there is no caption file {expected}")
        try:
            content = {suffix[1:]: path.read_bytes() for suffix, path in files.items()}
            return described(content, self._rules, content), None
        except UnfitSample as error:
            names = ", ".join(str(path) for path in files.values())
            return _NOTHING, Unfit(error.kind, f"{names}: {error.reason}")
        except OSError as error:
            reason = f"cannot read {error.filename}: {error.strerror}"
            return _NOTHING, Unfit(NO_CAPTION, reason)

    def all(self) -> list[str]:
        """Return the captions of all files, by path; files without any are passed over."""
        return [text for stem in self._files for text in self.of(stem)[0].captions]

    def without_image(self, stems: set[str]) -> list[SourceSample]:
        """Return caption files that belong to no image; JSON alone may be anything else."""
        return [
            SourceSample(
                f"{stem}.txt",
                files[".txt"],
                unfit=Unfit(NO_IMAGE, f"there is no image for the captions {files['.txt']}"),
            )
            for stem, files in self._files.items()
            if ".txt" in files and stem not in stems and not is_about(stem)
        ]


def by_stem(files: Sequence[Path], folder: Path, suffixes: Sequence[str]) -> Files:
    """Sort files of some kinds by what images and texts have in common: their path less suffix."""
    found: Files = {}
    for path in files:
        if path.suffix.lower() in suffixes:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            found.setdefault(stem, {})[path.suffix.lower()] = path
    return found


def read_beside(images: Path, texts: Texts) -> list[SourceSample]:
    """Give all images of a folder, sorted by path, and the captions that have none.

    The key of an image is its path.
    """
    paths = [path for path in files_below(images) if path.suffix.lower() in IMAGE_SUFFIXES]
    samples, stems = list[SourceSample](), set[str]()
    for path in paths:
        name = path.relative_to(images)
        stem = name.with_suffix("").as_posix()
        stems.add(stem)
        told, unfit = texts.of(stem)
        samples.append(_sample(name.as_posix(), path, told, unfit))
    return samples + texts.without_image(stems)


def read_listed(images: Path, texts: Texts, keys: Sequence[str]) -> list[SourceSample]:
    """Give the images of a list of names without suffixes, in its order."""
    there = by_stem(files_below(images), images, IMAGE_SUFFIXES)
    samples = []
    for key in keys:
        path = next(iter(there.get(key, {}).values()), None)
        told, unfit = texts.of(key)
        if path is None:
            reason = f"there is no image {images / key}.jpg (or {', '.join(IMAGE_SUFFIXES)})"
            path, unfit = images / f"{key}.jpg", Unfit(MISSING_IMAGE, reason)
        samples.append(_sample(key, path, told, unfit))
    return samples


def _sample(key: str, path: Path, told: Description, unfit: Unfit | None) -> SourceSample:
    return SourceSample(
        key, path, told.captions, told.class_id, orientation=told.orientation, unfit=unfit
    )
