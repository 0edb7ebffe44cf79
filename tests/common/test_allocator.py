"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from t2i_hpc.common.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(16_000_000)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_blocks_are_used_again_without_page_faults() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") * 10 < faults("leave")
