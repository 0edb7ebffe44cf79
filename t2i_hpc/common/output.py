"""What is written for people: that nobody reads it any more ends no work.

The reader of a pipe may leave (``| head``), a terminal may be closed.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

_NO_READER = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal


def say(text: object, stream: TextIO | None = None) -> None:
    """Print a line on standard output, or on `stream`, at once.

    Raises:
        OSError: it cannot be written, other than for want of a reader.
    """
    stream = stream or sys.stdout
    if stream is None:  # closed by who started the process
        return
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        if error.errno not in _NO_READER:
            raise
        discard(stream)


def say_in_log(sentence: str) -> None:
    """Print a sentence of ours on standard error, which in a job's log others write as well."""
    say(f"t2i_hpc: {sentence}", sys.stderr)


def discard(stream: TextIO) -> None:
    """Let all that is written to `stream`, and what waits in it, go nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
