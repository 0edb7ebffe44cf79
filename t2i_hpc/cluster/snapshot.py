"""What a job was submitted with: code, packages, configuration; written beside its log."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from t2i_hpc.common.checkout import git
from t2i_hpc.common.files import write_json, write_text


@dataclass(frozen=True)
class Snapshot:
    """The state of code and packages at one moment.

    Attributes:
        commit: of the checkout that the code runs from; "" outside of one.
        changes: what differs from it, as git shows it.
        packages: installed versions by name.
        configuration: YAML, resolved.
    """

    commit: str
    changes: str
    packages: dict[str, str]
    configuration: str

    @classmethod
    def take(cls, configuration: str) -> Snapshot:
        """Look at the checkout and the packages as they are now."""
        found = {each.metadata["Name"]: each.version for each in distributions()}
        packages = dict(sorted((name, version) for name, version in found.items() if name))
        return cls(git("rev-parse", "HEAD").strip(), git("diff", "HEAD"), packages, configuration)

    def write(self, folder: Path, job: str) -> None:
        """Write ``JOB_code.json``, ``JOB_config.yaml`` and perhaps ``JOB_changes.diff``."""
        state = {"commit": self.commit, "changed": bool(self.changes), "packages": self.packages}
        write_json(folder / f"{job}_code.json", state)
        write_text(folder / f"{job}_config.yaml", self.configuration)
        if self.changes:
            write_text(folder / f"{job}_changes.diff", self.changes)
