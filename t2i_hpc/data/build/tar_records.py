"""One tar that others made, read once from its first byte to its last: an index of its samples.

For each sample that can be used there is a row (where its image is, a checksum of image and
description) and the description that our own shards have as ``<key>.json``: key, captions, class,
size, what the source says of the image. Nothing is copied but that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.build.conversion import UNDECODABLE, refuse_strip
from t2i_hpc.data.build.sample_filter import SampleFilter
from t2i_hpc.data.build.sources.webdataset_tars import (
    DAMAGED_TAR,
    TWICE,
    UNFIT_MEMBER,
    refuse_outsized,
)
from t2i_hpc.data.build.word_counts import WordCounts
from t2i_hpc.data.captions import ASCII
from t2i_hpc.data.format.manifest import IMAGE_FORMATS
from t2i_hpc.data.format.sums import SHA256
from t2i_hpc.data.format.tables import ROW, Index
from t2i_hpc.data.format.tar_headers import Member
from t2i_hpc.data.format.tar_stream import Advance, TarStream, open_tar
from t2i_hpc.data.format.tars import LARGEST_IMAGE, LARGEST_TEXT, Scan, members_in_order
from t2i_hpc.data.image_headers import check_any_image, has_notes, other_format
from t2i_hpc.data.images import IMAGE_FORMATS_OF_SUFFIX, Notes, decode, notes_of
from t2i_hpc.data.sidecars import (
    NO_CLASS,
    Rules,
    UnfitSample,
    described,
    image_of,
    is_sample,
    split_name,
    texts_of,
)
from t2i_hpc.data.storage.fetching import Server
from t2i_hpc.data.storage.retry import shown

Rejection = dict[str, str]
_JPEG = b"\xff\xd8"
_NO_NOTES = Notes()
# Descriptions are flat, so no circle has to be looked for.
_AS_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, check_circular=False).encode
TURNED = range(5, 9)  # orientations by which width and height change places


@dataclass(frozen=True)
class Place:
    """A tar as it was found.

    Attributes:
        tar: path or address.
        name: what the keys of its samples begin with.
        bytes: its size.
        stamp: time of its last change in nanoseconds, or what a server names its version by.
    """

    tar: str
    name: str
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Choice:
    """Which samples of a tar are taken, and what is kept of it.

    Attributes:
        rules: for members.
        filter: what samples have to say.
        decodes: whether images are decoded.
        checksum: which hash of the tar is kept, see :mod:`t2i_hpc.data.format.sums`.
        letters: which make words, see :mod:`t2i_hpc.data.captions`.
    """

    rules: Rules
    filter: SampleFilter | None = None
    decodes: bool = False
    checksum: str = SHA256
    letters: str = ASCII


@dataclass
class TarRecord:
    """What is known of a tar that is indexed.

    Attributes:
        identity: what it follows from.
        tar, bytes, stamp, sha256: of the tar; the last is another hash where one was chosen.
        count: samples.
        text_bytes: of their descriptions.
        word_bytes: of the counts of their words.
        smallest, largest: extremes of the shorter sides in pixels.
        formats: how often each image format occurs.
        filtered: samples that the filter left out.
        said: names of what the source says of samples.
        ended: whether the tar has an end mark.
        rejected: what was left out and why.
    """

    identity: str
    tar: str
    bytes: int
    stamp: str
    sha256: str = ""
    count: int = 0
    text_bytes: int = 0
    word_bytes: int = 0
    smallest: int = 0
    largest: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    filtered: int = 0
    said: list[str] = field(default_factory=list)
    ended: bool = True
    rejected: list[Rejection] = field(default_factory=list)


@dataclass(frozen=True)
class Indexed:
    """The index of a tar: rows with offsets into `texts`, those descriptions, counts of words."""

    record: TarRecord
    rows: Index
    texts: bytes
    words: bytes


def index_place(
    place: Place, identity: str, choice: Choice, server: Server, advance: Advance
) -> Indexed:
    """Read a tar and index its samples; `advance` is told how many bytes more are read.

    Raises:
        UnansweredError: it cannot be read, which says nothing of what it holds.
    """
    layouts = _Layouts(choice.rules)
    with open_tar(place.tar, server, place.bytes, choice.checksum, advance) as tar:
        found, samples = Scan(), _Samples(layouts)
        for member in members_in_order(tar, found):
            members, extension, role = samples.place_of(member.name)
            if extension:
                members.append(_held(member, extension, role, tar, choice.decodes))
        sha256 = tar.sum()
    if found.problem:  # one sample may lack members
        samples.by_key.pop(split_name(found.cut)[0] if found.cut else samples.last, None)
    record = TarRecord(identity, place.tar, place.bytes, place.stamp, sha256)
    record.ended = found.ended or bool(found.problem)
    rows, texts, words = _rows(samples.by_key, place, choice, layouts, record)
    for name, reason in found.unfit:
        record.rejected.append(_rejection(f"{place.name}/{name}", place, UNFIT_MEMBER, reason))
    if found.problem:
        reason = f"{found.problem}; {record.count:,} samples before that are taken"
        record.rejected.append(_rejection(place.name, place, DAMAGED_TAR, reason))
    return Indexed(record, rows, texts, words)


def _rows(
    samples: Mapping[str, Sequence[_Member]],
    place: Place,
    choice: Choice,
    layouts: _Layouts,
    record: TarRecord,
) -> tuple[Index, bytes, bytes]:
    """Return rows, descriptions and words of a tar's samples, and count them in its record."""
    rows, texts, said = list[tuple[int, ...]](), list[bytes](), set[str]()
    sides, captions = list[int](), list[str]()
    for key, members in samples.items():
        try:
            layout = layouts.of(tuple([member.extension for member in members]))
            if layout is None:
                continue
            found = _sample(f"{place.name}/{key}", members, layout, choice, said)
        except UnfitSample as unfit:
            reason = f"{shown(place.tar)}, sample {key}: {unfit.reason}"
            record.rejected.append(_rejection(f"{place.name}/{key}", place, unfit.kind, reason))
        except _LeftOutError:
            record.filtered += 1
        else:
            rows.append(found.row)
            texts.append(found.text)
            sides.append(found.side)
            captions += found.captions
    table = np.array(rows, dtype=ROW)
    table["json_offset"][1:] = np.cumsum(table["json_bytes"][:-1], dtype=np.uint64)
    record.count, record.text_bytes = len(rows), sum(map(len, texts))
    record.said = sorted(said)
    record.smallest, record.largest = min(sides, default=0), max(sides, default=0)
    numbers, counts = np.unique(table["image_format"], return_counts=True)
    record.formats = {
        IMAGE_FORMATS[number]: count
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }
    words = WordCounts.of(captions, choice.letters).content()
    record.word_bytes = len(words)
    return table, b"".join(texts), words


class _LeftOutError(Exception):
    """The filter does not take a sample."""


class _Member(NamedTuple):
    """A member of a tar as far as it is kept: a text whole, of an image what a row needs."""

    extension: str
    name: str
    offset: int
    size: int
    content: bytes = b""
    image: _Image | None = None
    unfit: UnfitSample | None = None


class _Layout(NamedTuple):
    """Which members of a sample are its image and its texts, by their places in it."""

    extensions: tuple[str, ...]
    image: int
    texts: tuple[int, ...]


class _Layouts:
    """What members of each extension, and samples of such members, are by the rules.

    It is asked once for each extension and each list of them, of which a tar has few.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.roles: dict[str, str] = {}
        self._layouts: dict[tuple[str, ...], _Layout | None] = {}

    def role(self, extension: str) -> str:
        """Return what a member of an extension is: text, image, or "" for neither."""
        if (known := self.roles.get(extension)) is not None:
            return known
        named = self._rules.image.lower()
        wanted = extension == named if named else f".{extension}" in IMAGE_FORMATS_OF_SUFFIX
        text = bool(texts_of([extension], self._rules))
        return self.roles.setdefault(extension, "text" if text else "image" if wanted else "")

    def of(self, extensions: tuple[str, ...]) -> _Layout | None:
        """Return the layout of a sample; None: it is none.

        Raises:
            UnfitSample: it has no image, or a member twice.
        """
        if extensions not in self._layouts:
            self._layouts[extensions] = self._new(extensions)
        return self._layouts[extensions]

    def _new(self, extensions: tuple[str, ...]) -> _Layout | None:
        if not is_sample(extensions, self._rules):
            return None
        if len({*extensions}) < len(extensions):
            raise UnfitSample(TWICE, "it holds a member twice: rename one")
        image = extensions.index(image_of(extensions, self._rules))
        texts = texts_of(extensions, self._rules)
        return _Layout(extensions, image, tuple(extensions.index(name) for name in texts))


class _Samples:
    """The members of a tar by the keys of their samples, in the order of their first members.

    Members of a sample mostly follow each other, so a name is first compared with the last key:
    one that differs in a known extension alone needs no other look.
    """

    def __init__(self, layouts: _Layouts) -> None:
        self.by_key: dict[str, list[_Member]] = {}
        self.last = ""
        self._layouts, self._begin = layouts, "\0"
        self._members: list[_Member] = []

    def place_of(self, name: str) -> tuple[list[_Member], str, str]:
        """Return where a member belongs, its extension ("": to no sample) and its role."""
        if name.startswith(self._begin):
            extension = name[len(self._begin) :]
            if (role := self._layouts.roles.get(extension)) is not None:
                return self._members, extension, role
        self.last, extension = split_name(name)
        if not extension:
            self._begin = "\0"  # no name has one
            return [], "", ""
        self._begin = f"{self.last}."
        self._members = self.by_key.setdefault(self.last, [])
        return self._members, extension, self._layouts.role(extension)


class _Image(NamedTuple):
    """What is kept of an image.

    Attributes:
        form, width, height: by its header.
        begin: hash with which the checksum of its sample begins.
        notes: what has to be done with its pixels.
    """

    form: str
    width: int
    height: int
    begin: int
    notes: Notes


def _held(member: Member, extension: str, role: str, tar: TarStream, decodes: bool) -> _Member:
    name, size, offset = member.name, member.size, member.offset_data
    if not role:
        return _Member(extension, name, offset, size)
    try:
        if size > LARGEST_TEXT:
            refuse_outsized(member, LARGEST_TEXT if role == "text" else LARGEST_IMAGE)
        content = tar.read(offset, size)
        if role == "text":
            return _Member(extension, name, offset, size, content)
        return _Member(extension, name, offset, size, b"", _image(content, name, decodes))
    except UnfitSample as unfit:
        return _Member(extension, name, offset, size, b"", None, unfit)


def _image(content: bytes, name: str, decodes: bool) -> _Image:
    if not content.startswith(_JPEG) and (other := other_format(content)):
        raise UnfitSample(other, f"{name} is {other}, which is not read")
    try:
        form, width, height, scans = check_any_image(content, name)
        if decodes:
            decode(content, name)
    except (ValueError, DataError) as error:
        raise UnfitSample(UNDECODABLE, f"{name} cannot be decoded ({error})") from error
    notes = notes_of(content) if has_notes(content, form, scans) else _NO_NOTES
    return _Image(form, width, height, xxhash.xxh3_64_intdigest(content), notes)


class _Found(NamedTuple):
    """A sample that is taken.

    Attributes:
        row: that of the index, but for the place of its description.
        text: the description.
        side: the shorter one, in pixels.
        captions: one or more texts.
    """

    row: tuple[int, ...]
    text: bytes
    side: int
    captions: tuple[str, ...]


def _sample(
    key: str, members: Sequence[_Member], layout: _Layout, choice: Choice, said: set[str]
) -> _Found:
    """Return what the index has of a sample.

    Raises:
        UnfitSample: it cannot be used.
        _LeftOutError: the filter does not take it.
    """
    of_image, contents = members[layout.image], dict[str, bytes]()
    if of_image.unfit is not None:
        raise of_image.unfit
    for place in layout.texts:
        text_member = members[place]
        if text_member.unfit is not None:
            raise text_member.unfit
        contents[text_member.extension] = text_member.content
    image = of_image.image
    assert image is not None  # or else it would be unfit
    given = described(contents, choice.rules, layout.extensions)
    orientation = image.notes.orientation or given.orientation
    width, height = image.width, image.height
    if orientation in TURNED:
        width, height = height, width
    refuse_strip(width, height, of_image.name)
    said.update(given.source)
    if choice.filter is not None:
        values = {"width": width, "height": height, **given.source}
        if not choice.filter(values | {"captions": given.captions}):
            raise _LeftOutError
    description: dict[str, Any] = {
        "key": key,
        "captions": given.captions,
        "width": width,
        "height": height,
    }
    if given.class_id != NO_CLASS:
        description["class"] = given.class_id
    if orientation > 1 or image.notes.profile:
        description |= {"orientation": orientation, "noted": True}
    if given.source:
        description["source"] = given.source
    text = _AS_JSON(description).encode()
    if len(text) > LARGEST_TEXT:
        raise UnfitSample("outsized captions", f"its captions have {len(text):,} bytes")
    check = xxhash.xxh3_64_intdigest(text, seed=image.begin)
    form = IMAGE_FORMATS.index(image.form)
    # In the order of ROW; where the description lies is known when all are.
    row = of_image.offset, 0, check, of_image.size, len(text), form
    return _Found(row, text, min(width, height), given.captions)


def _rejection(key: str, place: Place, kind: str, reason: str) -> Rejection:
    return {"key": key, "path": shown(place.tar), "kind": kind, "reason": reason}
