#!/usr/bin/env bash
# Converts a data set to shards in 16 parts on CPUs, and makes one split of them.
#   sbatch slurm/build_shards.sh source=coco images=coco/train2014 \
#     captions=coco/annotations/captions_train2014.json output=shards/coco split=train
#
# The first part submits the merge, which begins when all have ended and names a part that failed.
# Submitted again, finished shards are kept.
#SBATCH --job-name=build_shards
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

# Your environment goes here: a module, conda activate, or a container in front of python below.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2 # a node that does not see the folder: it is on a local disk
PATH=$PWD/.venv/bin:$PATH

# The split's folder, from the words output=… and split=… (train where there is none).
output='' split=train
for word in "$@"; do
  case $word in output=*) output=${word#*=} ;; split=*) split=${word#*=} ;; esac
done

if [ -n "${MERGE:-}" ]; then
  exec python -m t2i_hpc.shards merge "$output/$split"
fi
# The merge is submitted once, by the first part; "$0" is Slurm's own copy of this script. A cluster
# that takes no jobs from its nodes refuses: then submit it by hand, no part is lost.
name=merge-$SLURM_ARRAY_JOB_ID
if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ -z "$(squeue -h -n "$name")" ]; then
  MERGE=1 sbatch --job-name="$name" --array=0 --output="$name.log" \
    --dependency=afterany:"$SLURM_ARRAY_JOB_ID" --partition="$SLURM_JOB_PARTITION" \
    ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} "$0" "$@" ||
    echo "the merge could not be submitted; when all parts have ended, on a login node:" \
      "python -m t2i_hpc.shards merge $output/$split" >&2
fi
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m t2i_hpc.shards "$@" part="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
