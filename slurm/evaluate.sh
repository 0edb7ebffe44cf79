#!/usr/bin/env bash
# Scores a run in 16 shards, one GPU each, and merges them.
#   sbatch slurm/evaluate.sh run=runs/coco_ssagan-1a2b3c4d checkpoint=120000 [key=value …]
#
# The first shard submits the merge, which begins when all have ended and names a shard that
# failed. Submitted again, only what is missing is computed. Name the checkpoint as a number if
# the run still trains: shards that start later take the same one then.
#SBATCH --job-name=evaluate
#SBATCH --array=0-15
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=6
#SBATCH --time=2:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

# Your environment goes here: a module, conda activate, or a container in front of python below.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2 # a node that does not see the folder: it is on a local disk
PATH=$PWD/.venv/bin:$PATH
shards=${SHARDS:-$SLURM_ARRAY_TASK_COUNT}
task=(t2i_hpc.evaluate evaluation.shards="$shards" "$@")

if [ -n "${MERGE:-}" ]; then
  exec python -m "${task[@]}" evaluation.merge=true
fi
# The merge is submitted once, by the first shard; "$0" is Slurm's own copy of this script. A cluster
# that takes no jobs from its nodes refuses: then submit it by hand, no shard is lost.
name=merge-$SLURM_ARRAY_JOB_ID
if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ -z "$(squeue -h -n "$name")" ]; then
  MERGE=1 SHARDS=$shards sbatch --job-name="$name" --array=0 --output="$name.log" \
    --dependency=afterany:"$SLURM_ARRAY_JOB_ID" \
    --gpus-per-node=0 --partition="$SLURM_JOB_PARTITION" \
    ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} "$0" "$@" ||
    echo "the merge could not be submitted; when all shards have ended, on a login node:" \
      "python -m ${task[*]} evaluation.merge=true" >&2
fi
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m "${task[@]}" evaluation.shard="$SLURM_ARRAY_TASK_ID"
