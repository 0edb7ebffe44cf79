"""What happened to real images when they were stored, where it moves a score."""

from __future__ import annotations

from t2i_hpc.data.format.manifest import ORIGINAL, Manifest

_LOSSY = ("jpeg", "webp")
_ADVICE = "build that split with format=original (docs/explanation/protocols.md, The real images)"


def stored_twice(manifest: Manifest, where: str, resolution: int) -> str | None:
    """Return a warning where a build compressed or scaled images that are scaled again here.

    Args:
        manifest: of the real images.
        where: names them.
        resolution: side in px at which images are compared.
    """
    how = manifest.storing
    if how.encoding == ORIGINAL:
        return None
    lossy, scaled = manifest.image_format in _LOSSY, manifest.size > resolution
    if not how.encoding:
        if not (lossy or scaled):
            return None
        return (
            f"the shards of {where} do not record how they store images: the real images may "
            f"have been compressed or scaled before, which moves a score; {_ADVICE}"
        )
    done = [f"compressed as {how.encoding.upper()} of quality {how.quality}"] * lossy
    done += [f"scaled twice (to {manifest.size} px, then to {resolution} px)"] * scaled
    if not done:
        return None
    return f"the real images of {where} were {' and '.join(done)}, which moves a score; {_ADVICE}"


def scaled_jpegs(side: int, lossy: int, where: str, resolution: int) -> str | None:
    """Return a warning where a folder's files are JPEG of the very side they are compared at.

    Photographs are larger: such files were scaled before they were compressed.

    Args:
        side: shorter side of the folder's first image in px.
        lossy: number of its JPEG files.
        where: names it.
        resolution: side in px at which images are compared.
    """
    if not lossy or side != resolution:
        return None
    return (
        f"{lossy:,} real images of {where} are JPEG files of {side} px: they were compressed after "
        "they were scaled, which moves a score; name a folder of the original files"
    )
