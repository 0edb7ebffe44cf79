#!/usr/bin/env bash
# SSA-GAN on COCO, one task a GPU.   sbatch slurm/train_coco.sh [key=value …]
# The same command goes on with its run: submit it again after a time limit.
#SBATCH --job-name=coco_ssagan
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=%x-%j.log
set -euo pipefail

# Your environment goes here: a module, conda activate, or a container in front of python below.
cd "${SLURM_SUBMIT_DIR:-.}"
PATH=$PWD/.venv/bin:$PATH

# srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m t2i_hpc.train experiment=coco_ssagan "$@"
