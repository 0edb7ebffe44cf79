"""A commit is recorded only if it is one of our code."""

from __future__ import annotations

import subprocess
from pathlib import Path

from t2i_hpc.common.files import git


def test_the_checkout_of_another_project_is_not_ours(tmp_path: Path) -> None:
    def run(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    theirs, ours = tmp_path / "theirs.py", tmp_path / ".venv" / "lib" / "ours.py"
    ours.parent.mkdir(parents=True)
    for file in (theirs, ours):
        file.write_text("")
    run("init")
    run("add", "theirs.py")
    run("commit", "-m", "theirs")
    assert len(git("rev-parse", "HEAD", file=theirs).strip()) == 40
    assert git("rev-parse", "HEAD", file=ours) == ""
    assert git("diff", "HEAD", file=ours) == ""
