#!/usr/bin/env bash
# SSA-GAN on COCO, one task a GPU.   sbatch slurm/train_coco.sh [key=value …]
#
# Before the time limit Slurm sends USR1: the run saves, leaves with exit code 75 and is put back
# into the queue, where it goes on by itself. Submitted again, the same command finds its run.
#SBATCH --job-name=coco_ssagan
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# Your environment goes here: a module, conda activate, or a container in front of python below.
cd "${SLURM_SUBMIT_DIR:-.}"
PATH=$PWD/.venv/bin:$PATH

# srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
code=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m t2i_hpc.train experiment=coco_ssagan "$@" || code=$?

# Where the queue does not take jobs back, submit the next one here instead:
#   sbatch --dependency=afterany:"$SLURM_JOB_ID" slurm/train_coco.sh "$@" && exit 0
if [ "$code" = 75 ]; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # until Slurm has ended this start
fi
exit "$code"
