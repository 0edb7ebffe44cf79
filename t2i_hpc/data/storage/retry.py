"""The retry policy: file systems and servers come back, and a run should outlive their absence.

Waits double from a tenth of a second to ten seconds, and each is a random part of that, so
that the processes of a cluster do not come back all at once. The first failure is logged:
whoever watches sees why nothing moves. Passwords and signatures never reach a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from t2i_hpc.common.errors import DataError

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0  # seconds
_SHORTEST_TRY = 1.0  # seconds; an attempt that may take none cannot succeed
_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "s3fs", "gcsfs")
_Result = TypeVar("_Result")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)]+")


class IncompleteError(OSError):
    """Fewer bytes came than there must be."""


def is_transient(error: Exception) -> bool:
    """Return True for errors of a file system or a server, False for defects of the program."""
    if isinstance(error, (OSError, asyncio.TimeoutError)):
        return True
    return type(error).__module__.partition(".")[0] in _CLIENTS


def is_permanent(error: Exception) -> bool:
    """Return True for an answer, such as "no such file", which a second try only confirms."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return True
    status = getattr(error, "status", 0)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in (408, 425, 429)  # timeout, too early, too many requests
    return "Credential" in type(error).__name__


class RetryPolicy:
    """How long something is tried again.

    Args:
        seconds: in all, from the first failure on; 0: once.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._spent: float | None = None  # of a block; None: each attempt has all the seconds

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Let the attempts of a block share the seconds: 24 bad reads take no longer than one."""
        self._spent = 0.0
        try:
            yield
        finally:
            self._spent = None

    def attempt(
        self,
        name: str,
        action: Callable[[float], _Result],
        advice: str,
        permanent: Callable[[Exception], bool] = is_permanent,
    ) -> _Result:
        """Return what `action` returns, as soon as it succeeds.

        Args:
            name: what is read, for messages.
            action: is given the seconds it may take, 1 at least.
            advice: what to do when it fails for good.
            permanent: whether an error is an answer, which is believed the second time.

        Raises:
            DataError: time is up, or it was refused twice.
        """
        begin, tries, refusals = time.monotonic(), 0, 0
        allowed = self.seconds - (self._spent or 0.0)
        while True:
            left = allowed - (time.monotonic() - begin)
            try:
                result = action(max(left, _SHORTEST_TRY))
            except Exception as error:
                if isinstance(error, DataError) or not is_transient(error):
                    raise
                tries, refusals = tries + 1, refusals + permanent(error)
                waited = time.monotonic() - begin
                if refusals > 1 or waited >= allowed:
                    raise DataError(_sentence(name, error, tries, waited, advice)) from None
                _tell(name, error, tries, allowed)
            else:
                if tries and self._spent is not None:
                    self._spent += time.monotonic() - begin
                return result
            _wait(tries, allowed - waited)


def reason(error: Exception) -> str:
    """Return what went wrong in a few words, without secrets."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return without_secrets(" ".join(error.strerror.split()))
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    if isinstance(status := getattr(error, "status", None), int):
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    return without_secrets(" ".join((str(error) or type(error).__name__).split()))


def _sentence(name: str, error: Exception, tries: int, waited: float, advice: str) -> str:
    often = "once" if tries == 1 else f"{tries} times in {waited:.0f} s"
    return f"cannot read {name} ({reason(error)}; tried {often}): {advice}"


def _tell(name: str, error: Exception, tries: int, seconds: float) -> None:
    if tries == 1:
        logging.getLogger(__name__).warning(
            "cannot read %s (%s): trying again for %.0f s", name, reason(error), seconds
        )


def _wait(tries: int, left: float) -> None:
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(tries - 1, 10))
    time.sleep(min(longest * random.uniform(0.5, 1.0), max(left, 0.0)))


# --- addresses in messages


def scheme_of(address: str) -> str:
    """Return the part of an address before ``://``, in lower case."""
    return address.partition("://")[0].lower()


def shown(address: str) -> str:
    """Return an address without user, password, query and fragment."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def without_secrets(text: str) -> str:
    """Return a text with every address in it as :func:`shown`."""
    return _ADDRESS.sub(lambda found: shown(found.group()), text)
