"""Which samples of a source a split takes: by the hash of their names, the first ones, a filter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sample_filter import ALWAYS_SAID, SampleFilter, filtered, values_of
from t2i_hpc.data.build.sources import SourceData, SourceSample
from t2i_hpc.data.build.sources.sample import AddressedSamples, Unfit
from t2i_hpc.data.build.workspace import Workspace

_HASHED = 1 << 64


@dataclass(frozen=True)
class Job:
    """A split that is to be made of a source.

    Attributes:
        config: what is made; its split is that of the source, for the held-out split as well.
        workspace: where.
        held_out: whether it takes the samples that are held out or the others; None: all.
    """

    config: ShardsConfig
    workspace: Workspace
    held_out: bool | None

    def samples(self, source: SourceData) -> list[SourceSample]:
        """Return the samples of this split.

        Raises:
            DataError: there are none.
        """
        found = list(source.samples)
        if self.held_out is not None:
            found = [one for one in found if self._takes(one.key)]
            self._refuse_none(sum(one.unfit is None for one in found), len(source.samples))
        return found[: self.config.limit]

    def _takes(self, key: str) -> bool:
        return (_hash(key) < int(self.config.test_fraction * _HASHED)) == self.held_out

    def _refuse_none(self, count: int, total: int) -> None:
        if not count:
            raise DataError(
                f"test_fraction={self.config.test_fraction:g} of {total:,} samples leaves none for "
                f"{self.workspace.target.name}: take another fraction"
            )

    def taken(self, source: SourceData) -> tuple[Sequence[SourceSample], tuple[str, ...]]:
        """Return the samples that the filter takes, and what is to be said of the others.

        Raises:
            UserError: it is no expression, or asks what no sample says.
        """
        if isinstance(source.samples, AddressedSamples):  # are not listed: there may be 10⁹
            if self.config.filter:
                SampleFilter(self.config.filter).check({*source.samples.said, *ALWAYS_SAID})
            addressed = source.samples
            if self.held_out is not None:
                rule = f"held out: {self.held_out}, {self.config.test_fraction}"
                addressed = addressed.where(self._takes, rule)
                self._refuse_none(len(addressed), len(source.samples))
            return addressed.first(self.config.limit), ()
        samples = self.samples(source)
        if not self.config.filter:
            return samples, ()
        found = filtered(samples, SampleFilter(self.config.filter))
        if not any(one.unfit is None for one in found):
            self._refuse_filter(len(samples))
        return found, (f"{len(samples) - len(found):,} left out by filter=",)

    def taken_of_group(self, samples: list[SourceSample]) -> tuple[list[SourceSample], int]:
        """Return the samples of a group of tars, and how many the filter left out."""
        found = samples
        if self.held_out is not None:
            found = [one for one in samples if self._takes(one.key)]
        found = [printable(one) for one in found[: self.config.limit]]
        if not self.config.filter:
            return found, 0
        wanted = SampleFilter(self.config.filter)
        taken = [one for one in found if one.unfit or wanted(values_of(one, wanted))]
        return taken, len(found) - len(taken)

    def check_groups(self, found: Sequence[SourceSample], taken: Sequence[SourceSample]) -> None:
        """Refuse settings by which nothing is left of all groups.

        Args:
            found: samples of all groups.
            taken: those of this split.

        Raises:
            UserError: the filter asks what no sample says, or all are left out.
        """
        usable = sum(one.unfit is None for one in taken)
        if self.config.filter:
            said = {name for one in found for name in one.source or ()}
            SampleFilter(self.config.filter).check(said | {*ALWAYS_SAID})
            if not usable:
                self._refuse_filter(len(found))
        if self.held_out is not None:
            self._refuse_none(usable, len(found))

    def _refuse_filter(self, total: int) -> None:
        raise DataError(f"filter={self.config.filter} leaves out all {total:,} samples")


def _hash(key: str) -> int:
    """Return 64 bits that follow from a sample's key alone."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:8], "big")


def printable(sample: SourceSample) -> SourceSample:
    """Reject a sample whose name no JSON file or terminal can show as it is."""
    if sample.key.isprintable():
        return sample
    shown = ascii(sample.key)[1:-1]
    reason = f"{shown!r} is a name with unprintable characters: rename it"
    return replace(sample, key=shown, unfit=Unfit("unprintable name", reason))
