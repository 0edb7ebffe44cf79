#!/usr/bin/env bash
# Converts a data set to shards in 16 partitions on CPUs, and makes one split of them.
#   bash slurm/build_shards.sh source=coco images=coco/train2014 \
#     captions=coco/annotations/captions_train2014.json output=shards/coco split=train
#
# Run it on a login node: it submits an array and the merge that follows it, and says how to follow,
# check and cancel them. Jobs are requeued and resume as trainings do. Given again, finished shards
# are kept. cluster.dry_run=true prints the batch scripts.
set -euo pipefail

# Your environment goes here: a module, conda activate.
PATH=$PWD/.venv/bin:$PATH
exec python -m t2i_hpc.launch task=shards cluster=slurm \
  cluster.gpus_per_node=0 cluster.cpus_per_task=8 cluster.time=4:00:00 cluster.build_partitions=16 "$@"
