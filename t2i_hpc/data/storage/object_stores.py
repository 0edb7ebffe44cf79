"""Buckets: how they are reached, and how a split that was built gets into one.

Keys come from where the packages find them (AWS_ACCESS_KEY_ID, ~/.aws, a role). Another server than
Amazon's, and access without keys, are settings; they are kept in the environment, so that every
process of a run, loaders and fetchers included, has them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.storage.retry import scheme_of, shown

_ENDPOINT, _ANONYMOUS = "AWS_ENDPOINT_URL_S3", "T2I_HPC_ANONYMOUS"
_UPLOADING = ".uploading.json"
_AT_ONCE = 4  # files; each goes in several pieces by itself
_OFFERED = ("s3", "gs")


class _Access(Protocol):
    """Settings of data or of a build."""

    endpoint: str
    anonymous: bool


def use_access(config: _Access) -> None:
    """Let this process and those that it starts reach buckets as the settings say."""
    if config.endpoint:
        os.environ[_ENDPOINT] = config.endpoint
    if config.anonymous:
        os.environ[_ANONYMOUS] = "1"


def options_of(scheme: str) -> dict[str, Any]:
    """Return what a client of fsspec is told of access."""
    anonymous = bool(os.environ.get(_ANONYMOUS))
    if scheme == "s3":
        # Given as an argument too: not every version of botocore reads the variable.
        endpoint = os.environ.get(_ENDPOINT) or os.environ.get("AWS_ENDPOINT_URL")
        return ({"endpoint_url": endpoint} if endpoint else {}) | {"anon": anonymous}
    return {"token": "anon"} if scheme == "gs" and anonymous else {}


class Bucket:
    """A folder of a bucket that is written to.

    Args:
        address: ``s3://bucket/folder`` or ``gs://…``.
        setting: what it was given as, for messages.
    """

    def __init__(self, address: str, setting: str = "to") -> None:
        if scheme_of(address) not in _OFFERED:
            raise ConfigurationError(
                f"{setting}={shown(address)} is no bucket: write s3://BUCKET/FOLDER or "
                "gs://BUCKET/FOLDER"
            )
        self.address = address.rstrip("/")
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The file system, made when it is first used."""
        if self._client is None:
            import fsspec

            scheme = scheme_of(self.address)
            try:
                self._client = fsspec.filesystem(scheme, **options_of(scheme))
            except ImportError as error:
                package = {"s3": "s3fs", "gs": "gcsfs"}[scheme]
                raise DataError(
                    f"{scheme}:// needs the package {package}: pip install {package}"
                ) from error
        return self._client

    def sizes(self, folder: str) -> dict[str, int]:
        """Return name and size of each file of a folder."""
        place = f"{self.address}/{folder}"
        try:
            found = self.client.ls(place, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {one["name"].rpartition("/")[2]: int(one["size"] or 0) for one in found}

    def read(self, name: str) -> bytes | None:
        """Return a small file; None: it is not there."""
        try:
            return bytes(self.client.cat_file(f"{self.address}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self.client.pipe_file(f"{self.address}/{name}", content)

    def put(self, path: Path, name: str) -> None:
        """Copy a file; it appears whole or not at all."""
        self.client.put_file(str(path), f"{self.address}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.client.rm_file(f"{self.address}/{name}")


def upload_split(manifest: Manifest, bucket: Bucket, advance: Callable[[int], None]) -> None:
    """Copy a split and its vocabulary into a bucket; the manifest last, by which it becomes one.

    What an interrupted call of the same split has copied is not copied again.

    Args:
        manifest: of the split.
        bucket: the folder that is to hold the folder of the split.
        advance: told how many bytes more are there.

    Raises:
        DataError: another split or vocabulary is there, or the bucket does not answer.
    """
    if manifest.in_place:
        raise DataError(
            f"{manifest.folder} is an index of tars elsewhere, which has to be in a folder: build "
            "shards of it with source=split first"
        )
    try:
        _upload(manifest, bucket, advance)
    except DataError:
        raise
    except Exception as error:  # botocore raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot write {shown(bucket.address)} ({reason}): the same command resumes"
        ) from error


def _upload(manifest: Manifest, bucket: Bucket, advance: Callable[[int], None]) -> None:
    folder, split = manifest.folder, manifest.split
    own = folder.parent / VOCABULARY
    there = bucket.read(VOCABULARY)
    if there is not None and there != own.read_bytes():
        raise DataError(
            f"{shown(bucket.address)} has a vocabulary of other words: name another folder"
        )
    kept = bucket.read(f"{split}/{MANIFEST}")
    if kept is not None:
        if kept != (folder / MANIFEST).read_bytes():
            raise DataError(
                f"{shown(bucket.address)}/{split} is another split: remove it, or name another "
                "folder"
            )
        advance(sum(path.stat().st_size for path in folder.iterdir()))
        return
    mark = {"manifest": manifest.digest}
    begun = bucket.read(f"{split}/{_UPLOADING}")
    resumes = begun is not None and json.loads(begun) == mark
    sizes = bucket.sizes(split) if resumes else {}
    bucket.write(f"{split}/{_UPLOADING}", json.dumps(mark).encode())
    if there is None:
        bucket.put(own, VOCABULARY)
    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    for count in _put_all(bucket, split, paths, sizes):
        advance(count)
    bucket.put(folder / MANIFEST, f"{split}/{MANIFEST}")
    advance((folder / MANIFEST).stat().st_size)
    bucket.remove(f"{split}/{_UPLOADING}")


def _put_all(bucket: Bucket, split: str, paths: list[Path], sizes: dict[str, int]) -> Iterator[int]:
    """Copy files, several at once; give the bytes of each that is there."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs = {}
        for path in paths:
            size = path.stat().st_size
            if sizes.get(path.name) == size:
                yield size
            else:
                jobs[pool.submit(bucket.put, path, f"{split}/{path.name}")] = size
        try:
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        finally:
            for job in jobs:
                job.cancel()
