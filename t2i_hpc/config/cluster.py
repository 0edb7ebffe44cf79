"""Configuration of where a task runs."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import setting


@dataclass
class ClusterConfig:
    """Where `t2i_hpc.launch` puts a task, and how it stays alive there."""

    name: str = setting(
        "local",
        "where: local = processes on this machine; slurm = a job of the batch system",
        choices=("local", "slurm"),
    )
    processes: int = setting(1, "local: ranks to start", unit="processes", minimum=1, maximum=1024)
    nodes: int = setting(1, "slurm: nodes of a job", unit="nodes", minimum=1)
    gpus_per_node: int = setting(
        1, "slurm: GPUs of a node, one task each; 0 = a job on CPUs", unit="GPUs", minimum=0
    )
    tasks_per_node: int | None = setting(
        None, "slurm: ranks of a node; empty: one a GPU", unit="tasks", minimum=1
    )
    cpus_per_task: int = setting(6, "slurm: CPU cores of a rank", unit="cores", minimum=1)
    memory_per_node: float | None = setting(
        None, "slurm: main memory of a node; empty: the partition's default", unit="GB", minimum=0.1
    )
    partition: str = setting("", "slurm: partition; empty: the cluster's default")
    account: str = setting("", "slurm: account that pays; empty: the user's default")
    qos: str = setting("", "slurm: quality of service; empty: the default")
    constraint: str = setting("", "slurm: features a node must have, e.g. a100")
    exclude: str = setting("", "slurm: nodes not to use, e.g. gpu[03-04]")
    time: str = setting("24:00:00", "slurm: time limit of one start, [days-]hours:minutes:seconds")
    stop_before: int = setting(
        120, "slurm: how long before the time limit a job is told to save", unit="s", minimum=1
    )
    on_stop: str = setting(
        "requeue",
        "what a job does that had to stop before its end: requeue = back into the queue under the "
        "same number; chain = a new job follows, where jobs are not taken back; end = nothing",
        choices=("requeue", "chain", "end"),
    )
    max_restarts: int = setting(
        3, "restarts in a row that made no new checkpoint; then a job gives up", minimum=0
    )
    array_parallelism: int = setting(
        64, "elements of a job array that run at the same time", unit="jobs", minimum=1
    )
    parts: int = setting(
        1, "task=shards: jobs that share the work; the parts are merged by one more", minimum=1
    )
    setup: list[str] = setting(
        [], "shell lines before the task, e.g. 'cluster.setup=[\"module load cuda/12.4\"]'"
    )
    options: list[str] = setting(
        [], 'more options of sbatch, e.g. \'cluster.options=["--mail-type=END","--exclusive"]\''
    )
    python: str = setting(
        "", "command that starts Python on the nodes, e.g. a container's; empty: this one"
    )
    check: bool = setting(
        True, "slurm: ask Slurm first whether the job could run; false where that refuses wrongly"
    )
    dry_run: bool = setting(False, "slurm: print the batch script and submit nothing")

    @property
    def tasks_of_node(self) -> int:
        """Ranks of a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        """Ranks of a job in all."""
        return self.processes if self.name == "local" else self.nodes * self.tasks_of_node
