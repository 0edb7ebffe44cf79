#!/usr/bin/env bash
# SSA-GAN on CUB with 2 to 7 semantic masks (the paper's ablation): one training an element.
#   sbatch slurm/sweep_masks.sh [key=value …]
#
# Before the time limit Slurm sends USR1: the run saves and is put back into the queue, where it
# goes on by itself; so it does after a lost node. Submitted again, the same command finds its run.
# The table: python -m t2i_hpc.table runs/cub_ssagan-*
#SBATCH --job-name=sweep_masks
#SBATCH --array=2-7%2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

# Your environment goes here: a module, conda activate, or a container in front of python below.
cd "${SLURM_SUBMIT_DIR:-.}"
PATH=$PWD/.venv/bin:$PATH
task=(t2i_hpc.train experiment=cub_ssagan system.masks="$SLURM_ARRAY_TASK_ID" "$@")

run=$(python -m "${task[@]}" --print-run)
# srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
code=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=300 python -m "${task[@]}" || code=$?

trap '' TERM # putting the job back ends this script, too
exec python -m t2i_hpc.cluster.slurm.afterwards "$run" "$code"
