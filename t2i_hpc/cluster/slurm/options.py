"""The options of a job's sbatch: what the settings of ``cluster`` say, and the user's own.

A setting is never overridden in silence: a user's option that repeats it is refused, and an
``SBATCH_`` variable of the environment, which sbatch would let win over the script, is hidden.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from t2i_hpc.cluster.jobs import Work
from t2i_hpc.cluster.slurm.client import CLIENT_SETTINGS
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.config.cluster import ClusterConfig

Options = dict[str, str | bool]
"""Options of sbatch by their long names; True for one without a value."""

_NAME = re.compile(r"--[a-z][a-z0-9-]+")
_OF_JOB = ("SLURM_", "SRUN_", "SUBMITIT_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
_SHORT = {
    "a": "array", "A": "account", "b": "begin", "c": "cpus-per-task", "C": "constraint",
    "d": "dependency", "G": "gpus", "H": "hold", "J": "job-name", "L": "licenses",
    "M": "clusters", "n": "ntasks", "N": "nodes", "o": "output", "p": "partition", "q": "qos",
    "s": "oversubscribe", "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip
# Options that say the same thing in other words.
_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_GPUS = ("gpus-per-node", "gpus-per-task", "gpus-per-socket", "gpus", "gres")
_TASKS = ("ntasks-per-node", "ntasks", "ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket")
_CPUS = ("cpus-per-task", "cpus-per-gpu")
_REQUEUE = ("requeue", "no-requeue")
_GROUPS = (_MEMORY, _GPUS, _TASKS, _CPUS, _REQUEUE)
_KEYS = {
    **dict.fromkeys(_MEMORY, "cluster.memory_per_node, memory_per_cpu or memory_per_gpu"),
    **dict.fromkeys(
        _GPUS,
        "cluster.gpus_per_node, gpu_type and gpus_by (gpus_per_node=0 leaves GPUs to the options)",
    ),
    **dict.fromkeys(_TASKS, "cluster.tasks_per_node"),
    **dict.fromkeys(_CPUS, "cluster.cpus_per_task"),
    **dict.fromkeys(_REQUEUE, "cluster.on_stop"),
    "nodes": "cluster.nodes",
    "time": "cluster.time",
    "signal": "cluster.stop_before",
    "partition": "cluster.partition",
    "account": "cluster.account",
    "qos": "cluster.qos",
    "constraint": "cluster.constraint",
    "exclude": "cluster.exclude",
}
_ALWAYS_OURS = {"nodes", "time", "signal", *_TASKS, *_CPUS, *_REQUEUE}
_NOT_FOR_LAUNCH = {
    "array": "launch makes the arrays (--sweep, evaluation.shards, cluster.build_partitions)",
    "job-name": "a job has the name of its run: set name=",
    "output": "a job's log is in the folder jobs of its run",
    "error": "a job's log is in the folder jobs of its run",
    "open-mode": "a job's log is in the folder jobs of its run",
    "clusters": "set SLURM_CLUSTERS, which all of Slurm's clients read",
    "test-only": "say cluster.dry_run=true",
    "wait": "say --follow",
    "wrap": "launch writes the script",
    "parsable": "launch reads what sbatch prints",
    "quiet": "launch reads what sbatch prints",
}
_VARIABLES = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE"}
_GENERIC = ("--gres", "--tres-per-task")  # lists of resources, GPUs among others


def resource_options(cluster: ClusterConfig) -> Options:
    """Return the options for GPUs and memory, in the form that the cluster wants."""
    options: Options = {}
    if count := cluster.gpus_per_node:
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        if cluster.gpus_by == "gres":
            options["gres"] = f"gpu:{kind}{count}"
        elif cluster.gpus_by == "gpus-per-task":
            options["gpus-per-task"] = f"{kind}{count // cluster.tasks_of_node}"
        else:
            options["gpus-per-node"] = f"{kind}{count}"
    memory = (cluster.memory_per_node, cluster.memory_per_cpu, cluster.memory_per_gpu)
    for name, size in zip(_MEMORY, memory, strict=True):
        if size:
            options[name] = f"{round(size * 1024)}M"
    return options


def user_options(cluster: ClusterConfig) -> Options:
    """Read ``cluster.options``.

    Raises:
        ClusterError: one cannot be read, stands there twice, or repeats a setting.
    """
    ours = _given(cluster)
    found: Options = {}
    for option in cluster.options:
        name, value = _read(option)
        if name in found:
            raise ClusterError(f"cluster.options gives --{name} twice")
        if reason := _NOT_FOR_LAUNCH.get(name):
            raise ClusterError(f"cluster.options: --{name} has no place there: {reason}")
        if name in _ALWAYS_OURS or _repeats(name, value, ours):
            raise ClusterError(
                f"cluster.options: {option} repeats a setting: set {_KEYS[name]} instead"
            )
        found[name] = value
    return found


def joined(ours: str | bool | None, own: str | bool | None) -> str | bool | None:
    """Join the values of an option that is a list, e.g. of dependencies or of resources."""
    return f"{ours},{own}" if ours and own else ours or own


def partitions_of(cluster: ClusterConfig) -> list[str]:
    """Return the partitions that a job names: by a setting, an option or SBATCH_PARTITION."""
    given = user_options(cluster).get("partition", "")
    names = cluster.partition or str(given) or os.environ.get("SBATCH_PARTITION", "")
    return [name for name in names.split(",") if name]


@contextlib.contextmanager
def outside_of_jobs(script: str) -> Iterator[None]:
    """Hide the job that this process may itself be in, and what would override a script.

    A job that is submitted from inside another one is independent of it; a user's settings for
    all clients, and ``SBATCH_`` variables of which the script says nothing, are kept.
    """
    overriding = _overriding(re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE))
    if "gpu" not in os.environ.get("SBATCH_GRES", "gpu"):
        overriding.discard("SBATCH_GRES")  # of another resource
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(_OF_JOB) and name not in CLIENT_SETTINGS) or name in overriding
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def cluster_of(work: Work, cluster: ClusterConfig) -> ClusterConfig:
    """Return the cluster configuration of a work's job.

    A merge is one task: it reads files, and at most one GPU has something to do for it. In all
    else it keeps the settings of the shards' jobs.

    Args:
        work: what the job does.
        cluster: the configuration of the plan that the work belongs to.
    """
    if work.merge_gpus is None:
        return cluster
    wanted = work.merge_gpus if cluster.merge_gpus is None else cluster.merge_gpus
    gpus = min(wanted, cluster.gpus_per_node)
    one = dataclasses.replace(cluster, nodes=1, tasks_per_node=1, gpus_per_node=gpus)
    return one if wanted else _without_gpus(one)


def _given(cluster: ClusterConfig) -> set[str]:
    """Return the options that settings make, beside those that are always there."""
    names = ("partition", "account", "qos", "constraint", "exclude")
    return {*resource_options(cluster), *(name for name in names if getattr(cluster, name))}


def _read(option: str) -> tuple[str, str | bool]:
    name, equals, value = option.partition("=")
    if _NAME.fullmatch(name):
        return name.removeprefix("--"), value if equals else True
    long = _SHORT.get(option[1:2], "") if option.startswith("-") else ""
    form = f"--{long} or --{long}=value" if long else "--name or --name=value"
    raise ClusterError(f"cluster.options: cannot read {option!r}: write {form}")


def _repeats(name: str, value: str | bool, ours: Collection[str]) -> bool:
    if name == "gres" and "gpu" not in str(value):
        return False  # of another resource
    return any(same in ours for same in _alike(name))


def _alike(name: str) -> Iterable[str]:
    return next((group for group in _GROUPS if name in group), (name,))


def _overriding(names: Collection[str]) -> set[str]:
    """Return the variables that sbatch would let win over options of a script."""
    found = {"SBATCH_WAIT", "SBATCH_QUIET"}
    for name in names:
        for same in _alike(name):
            found.add(f"SBATCH_{_VARIABLES.get(same, same.replace('-', '_').upper())}")
    return found


def _without_gpus(cluster: ClusterConfig) -> ClusterConfig:
    """Return a configuration of one task that asks for no GPU; memory of a GPU is the node's."""
    return dataclasses.replace(
        cluster,
        gpu_type="",
        memory_per_gpu=None,
        memory_per_node=cluster.memory_per_gpu or cluster.memory_per_node,
        options=list(_options_without_gpus(cluster.options)),
    )


def _options_without_gpus(options: Sequence[str]) -> Iterator[str]:
    for option in options:
        name, _, value = option.partition("=")
        if name in _GENERIC:
            others = ",".join(each for each in value.split(",") if "gpu" not in each)
            if others:
                yield f"{name}={others}"
        elif name == "--mem-per-gpu":
            yield f"--mem={value}"
        elif "gpu" not in name:
            yield option
