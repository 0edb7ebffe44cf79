"""What the job reserves that merges the shards of other jobs.

A merge is one task: it reads files, and at most one GPU has something to do for it. It keeps the
settings of the shards' jobs in everything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from t2i_hpc.cluster.jobs import Work
from t2i_hpc.config.cluster import ClusterConfig

_GENERIC = ("--gres", "--tres-per-task")  # lists of resources, GPUs among others


def cluster_of(work: Work, cluster: ClusterConfig) -> ClusterConfig:
    """Return the cluster configuration of a work's own job.

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
