"""Configuration of launches: where a task runs."""

from __future__ import annotations

from dataclasses import dataclass, fields

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.fields import setting

_LOCAL_ONLY = ("processes",)
_ANYWHERE = ("name", "dry_run")
_ADD_SLURM = "leave it out, or add cluster=slurm"
_SET_NODES = "set cluster.nodes and cluster.gpus_per_node instead"


@dataclass
class ClusterConfig:
    """Where `t2i_hpc.launch` runs a task, and how it resumes there."""

    name: str = setting(
        "local",
        "local: processes on this machine; slurm: a job of the batch system",
        choices=("local", "slurm"),
    )
    processes: int = setting(1, "local: ranks to start", unit="processes", minimum=1, maximum=1024)
    nodes: int = setting(1, "slurm: nodes of a job", unit="nodes", minimum=1)
    gpus_per_node: int = setting(
        1, "slurm: GPUs of a node, one task each; 0 = a job on CPUs", unit="GPUs", minimum=0
    )
    gpu_type: str = setting("", "slurm: type of the GPUs, e.g. a100; empty: any")
    card: str = setting(
        "",
        "slurm: GPU that the estimate before a submission is made for, e.g. h100; empty: by "
        "gpu_type or constraint",
    )
    link: str = setting(
        "",
        "slurm: network between nodes for that estimate, e.g. ib400, or 4xib400 for nodes of four "
        "ports; empty: left out of it",
    )
    gpus_by: str = setting(
        "gpus-per-node",
        "slurm: option of sbatch that requests GPUs; some clusters know only gres",
        choices=("gpus-per-node", "gpus-per-task", "gres"),
    )
    tasks_per_node: int | None = setting(
        None, "slurm: ranks of a node; empty: one a GPU", unit="tasks", minimum=1
    )
    cpus_per_task: int = setting(6, "slurm: CPU cores of a rank", unit="cores", minimum=1)
    memory_per_node: float | None = setting(
        None, "slurm: main memory of a node; empty: the partition's default", unit="GB", minimum=0.1
    )
    memory_per_cpu: float | None = setting(
        None, "slurm: main memory of a CPU core, where a cluster wants that", unit="GB", minimum=0.1
    )
    memory_per_gpu: float | None = setting(
        None, "slurm: main memory of a GPU, where a cluster wants that", unit="GB", minimum=0.1
    )
    partition: str = setting("", "slurm: partition; empty: the cluster's default")
    account: str = setting("", "slurm: account to charge; empty: the user's default")
    qos: str = setting("", "slurm: quality of service; empty: the default")
    constraint: str = setting("", "slurm: required features of a node, e.g. a100")
    exclude: str = setting("", "slurm: nodes to exclude, e.g. gpu[03-04]")
    time: str = setting(
        "24:00:00", "slurm: time limit of one start, [days-]hours:minutes:seconds, or minutes"
    )
    stop_before: int = setting(
        120, "slurm: how long before the time limit a job is signaled to save", unit="s", minimum=1
    )
    on_stop: str = setting(
        "requeue",
        "slurm: how a job resumes that stopped before its end: requeue = under the same job id; "
        "chain = by the next job, which it submits at its start, where jobs cannot be requeued; "
        "end = not at all",
        choices=("requeue", "chain", "end"),
    )
    max_restarts: int = setting(
        3, "slurm: restarts in a row without a new checkpoint before a job gives up", minimum=0
    )
    array_parallelism: int = setting(
        64, "slurm: elements of a job array that run at the same time", unit="jobs", minimum=1
    )
    build_partitions: int = setting(
        1,
        "slurm, task=shards: jobs, one for each build partition; one more job merges them",
        minimum=1,
    )
    merge_gpus: int | None = setting(
        None,
        "slurm: GPUs of the job that merges evaluation shards; empty: 1 for KID, precision and "
        "recall, else 0",
        unit="GPUs",
        minimum=0,
        maximum=1,
    )
    setup: list[str] = setting(
        [], "slurm: shell lines before the task, e.g. 'cluster.setup=[\"module load cuda/12.4\"]'"
    )
    options: list[str] = setting(
        [],
        'slurm: more options of sbatch, e.g. \'cluster.options=["--mail-type=END","--exclusive"]\'',
    )
    python: str = setting(
        "", "slurm: command that starts Python on the nodes, e.g. a container's; empty: this one"
    )
    check: bool = setting(
        True, "slurm: validate with sbatch --test-only first; false where that refuses wrongly"
    )
    dry_run: bool = setting(
        False, "start and submit nothing; print the commands (local) or the batch script (slurm)"
    )

    @property
    def tasks_of_node(self) -> int:
        """Ranks of a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        """Ranks of a job in all."""
        return self.processes if self.name == "local" else self.nodes * self.tasks_of_node


def check_cluster(cluster: ClusterConfig, task: str) -> None:
    """Refuse settings that have no effect where they are given, or contradict each other.

    Raises:
        ConfigurationError: names the setting and what to do.
    """
    local, default = cluster.name == "local", ClusterConfig()
    for item in fields(cluster):
        value = getattr(cluster, item.name)
        unused = (item.name in _LOCAL_ONLY) != local and item.name not in _ANYWHERE
        if unused and value != getattr(default, item.name):
            raise ConfigurationError(
                f"cluster.{item.name}={value} has no meaning with cluster={cluster.name}: "
                + (_ADD_SLURM if local else _SET_NODES)
            )
    if cluster.build_partitions > 1 and task != "shards":
        raise ConfigurationError(
            f"cluster.build_partitions={cluster.build_partitions} belongs to task=shards, not to "
            f"task={task}: " + ("set evaluation.shards" if task == "evaluate" else "leave it out")
        )
    _check_gpus(cluster)
    _check_memory(cluster)


def _check_gpus(cluster: ClusterConfig) -> None:
    count, tasks = cluster.gpus_per_node, cluster.tasks_of_node
    if not count and (cluster.gpu_type or cluster.memory_per_gpu):
        name = "gpu_type" if cluster.gpu_type else "memory_per_gpu"
        raise ConfigurationError(f"cluster.{name} is set, but cluster.gpus_per_node=0: set both")
    if cluster.gpus_by == "gpus-per-task" and count % tasks:
        raise ConfigurationError(
            f"cluster.gpus_per_node={count} cannot be divided by {tasks} tasks of a node: set "
            "another cluster.tasks_per_node, or cluster.gpus_by=gpus-per-node"
        )


def _check_memory(cluster: ClusterConfig) -> None:
    names = ("memory_per_node", "memory_per_cpu", "memory_per_gpu")
    given = [f"cluster.{name}" for name in names if getattr(cluster, name)]
    if len(given) > 1:
        raise ConfigurationError(
            f"{' and '.join(given)} exclude each other: set one, and the others to null"
        )
