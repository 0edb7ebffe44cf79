"""Members of tars that others made, as stages of webdataset take them, and what was lost of them.

The walk and the rules are those of ``source=webdataset``. webdataset's own reader is tarfile, which
ends quietly at a damaged header, reads whatever size a header claims, and says nothing of what it
passes over.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.tar_stream import UnansweredError, open_tar
from t2i_hpc.data.format.tars import LARGEST_IMAGE, Scan, members_in_order
from t2i_hpc.data.sidecars import Rules, is_sample, is_wanted, split_name
from t2i_hpc.data.storage.fetching import Server
from t2i_hpc.data.storage.retry import shown

Stage = Iterator[dict[str, Any]]
_TOLERATED = 10  # samples that may be left out in any case
_LOG = logging.getLogger(__name__)


class Losses:
    """Counts what cannot be used, names it once, and ends the run when it is more than a few.

    Args:
        fraction: of all samples, which may be left out (data.max_lost).

    Attributes:
        used: good samples so far.
    """

    def __init__(self, fraction: float) -> None:
        self.used, self._fraction, self._lost = 0, fraction, Counter[str]()

    def add(self, name: str, reason: str) -> None:
        """Count what cannot be used.

        Raises:
            DataError: there were more than 10 losses and the fraction that is allowed.
        """
        text = f"{shown(name)} ({' '.join(reason.split())})"
        if name not in self._lost:
            _LOG.warning("left out: %s", text)
        self._lost[name] += 1
        count = self._lost.total()
        if count > max(_TOLERATED, self._fraction * (self.used + count)):
            raise DataError(
                f"{count} samples or tars of data.urls cannot be used, beside {self.used} "
                f"samples that can, which is more than data.max_lost={self._fraction:g}; the last "
                f"is {text}: make the tars again, leave it out, or allow more"
            )


def members_of_tars(
    shards: Iterable[dict[str, Any]], server: Server, rules: Rules, losses: Losses
) -> Stage:
    """Give the files of tars, and an empty one behind each, as ``tar_file_expander`` does.

    Args:
        shards: the ``url`` of each tar.
        server: reads of servers, and how often failing ones are tried again.
        rules: which members may be part of a sample; others are passed over.
        losses: told of damaged tars, and of members that cannot be used.

    Raises:
        DataError: a tar cannot be read, or too much was lost.
    """
    for url in (shard["url"] for shard in shards):
        found, last, here, samples = Scan(), "", set[str](), False
        try:
            with open_tar(url, server) as tar:
                for member in members_in_order(tar, found):
                    key, extension = split_name(member.name)
                    if not is_wanted(extension, rules):
                        continue
                    here, last = here if key == last else set(), key
                    samples = samples or is_sample([extension], rules)
                    if extension in here or member.size > LARGEST_IMAGE:
                        losses.add(f"{member.name} in {url}", "it is there twice, or too large")
                        continue
                    here.add(extension)
                    data = tar.read(member.offset_data, member.size)
                    yield {"fname": member.name, "data": data, "__url__": url}
        except UnansweredError as error:
            raise DataError(str(error)) from error
        if found.problem or not found.ended:
            reason = found.problem or "its end is missing"
            losses.add(url, f"it is damaged or breaks off: {reason}")
        elif not samples:
            losses.add(url, "it holds no samples")  # of nothing but such tars none would ever come
        if found.problem:  # its last sample may lack members
            yield {"fname": f"{last}.__bad__", "data": True, "__url__": url}
        yield {}
