#!/usr/bin/env bash
# Scores a run in 16 shards, one GPU each, and merges them.
#   bash slurm/evaluate.sh run=runs/coco_ssagan-1a2b3c4d checkpoint=120000 [key=value …]
#
# Run it on a login node: it submits an array and the merge that follows it, and says how to follow,
# check and cancel them. Jobs are requeued and resume as trainings do. Given again, it computes
# only what is missing. cluster.dry_run=true prints the batch scripts.
set -euo pipefail

# Your environment goes here: a module, conda activate.
PATH=$PWD/.venv/bin:$PATH
exec python -m t2i_hpc.launch task=evaluate cluster=slurm \
  cluster.gpus_per_node=1 cluster.cpus_per_task=6 cluster.time=2:00:00 \
  evaluation.shards=16 "$@"
