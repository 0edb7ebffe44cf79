#!/usr/bin/env bash
# SSA-GAN on CUB, one task a GPU.   sbatch slurm/train_cub.sh [key=value …]
#
# engine=gpu computes in bfloat16, the fastest; without it GPUs take TF32.
#
# Before the time limit Slurm sends USR1: the run saves, is requeued and resumes by itself; so it
# does after preemption or a lost node. Submitted again, the same command finds its run.
# torchrun, the second way, is shown in train_coco.sh.
#SBATCH --job-name=cub_ssagan
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
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2 # a node that does not see the folder: it is on a local disk
PATH=$PWD/.venv/bin:$PATH
task=(t2i_hpc.train experiment=cub_ssagan "$@")

run=$(python -m "${task[@]}" --print-run)
job=(python -m t2i_hpc.cluster.slurm.job "$run")

# Slurm's TERM (time limit, preemption) ends this script together with the tasks. srun runs
# beside the script, so that bash answers it at once: whatever the tasks still do, the job is
# requeued.
trap '"${job[@]}" TERM || true' TERM
"${job[@]}" begin || exec "${job[@]}" $?
# srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=300 python -m "${task[@]}" & step=$!
while wait $step; code=$?; kill -0 $step 2>/dev/null; do :; done
# It may have ended while bash answered TERM: then this knows how.
wait $step 2>/dev/null && code=0 || { late=$?; [ $late = 127 ] || code=$late; }
trap '' TERM # requeueing the job ends this script, too
exec "${job[@]}" $code
