#!/usr/bin/env bash
# SSA-GAN on COCO, one task a GPU.   sbatch slurm/train_coco.sh [key=value …]
#
# Before the time limit Slurm sends USR1: the run saves and is put back into the queue, where it
# goes on by itself; so it does after a lost node. Submitted again, the same command finds its run.
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
task=(t2i_hpc.train experiment=coco_ssagan "$@")

run=$(python -m "${task[@]}" --print-run)
# srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
code=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=300 python -m "${task[@]}" || code=$?

# The second way, torchrun: --ntasks-per-node=1 above, no --signal (torchrun dies of it; the run
# knows its time limit by itself), and instead of the line with srun:
#   srun --wait=300 torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --rdzv-backend=c10d \
#     --rdzv-endpoint="$(scontrol show hostnames "$SLURM_NODELIST" | head -n1):29500" \
#     -m "${task[@]}" || code=$?

trap '' TERM # putting the job back ends this script, too
exec python -m t2i_hpc.cluster.slurm.afterwards "$run" "$code"
