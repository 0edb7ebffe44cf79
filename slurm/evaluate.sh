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
cd "${SLURM_SUBMIT_DIR:-.}"
PATH=$PWD/.venv/bin:$PATH
shards=${SHARDS:-$SLURM_ARRAY_TASK_COUNT}
task=(t2i_hpc.evaluate evaluation.shards="$shards" "$@")

if [ -n "${MERGE:-}" ]; then
  exec python -m "${task[@]}" evaluation.merge=true
fi
if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ -z "${SLURM_RESTART_COUNT:-}" ]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')
  MERGE=1 SHARDS=$shards sbatch --array=0 --dependency=afterany:"$SLURM_ARRAY_JOB_ID" \
    --gpus-per-node=0 --partition="$SLURM_JOB_PARTITION" \
    ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} \
    "$script" "$@"
fi
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m "${task[@]}" evaluation.shard="$SLURM_ARRAY_TASK_ID"
