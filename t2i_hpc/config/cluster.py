"""Configuration of where a task runs."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import setting


@dataclass
class ClusterConfig:
    """Where `t2i_hpc.launch` puts a task."""

    name: str = setting("local", "where: local = processes on this machine", choices=("local",))
    processes: int = setting(1, "ranks to start", unit="processes", minimum=1, maximum=1024)
