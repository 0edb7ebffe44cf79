#!/usr/bin/env bash
# DeepSpeed 0.19.8: an inner gradient through the engine is divided by gradient_accumulation_steps.
#
# A gradient penalty differentiates the discriminator with respect to its input and trains on the
# norm. With ZeRO 1 the engine hangs its scaling on the module's outputs, so it also reaches
# torch.autograd.grad(engine(x).sum(), x, create_graph=True).
#
# Expected: d(3x)/dx = 3, whatever gradient_accumulation_steps is.
# Seen:     1.5 at 2 and 0.75 at 4, without an error (at 1: IndexError, list index out of range).
# Who is hurt: WGAN-GP, R1, MA-GP: the norm is that of another network; a sixth power of it is
#              1/64 and 1/4096 of the penalty.
# Guard: enter the bare module for everything that is differentiated again.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet deepspeed==0.19.8 torch==2.14.1 numpy==2.4.6 ninja \
  setuptools==80.9.0 wheel 2>/dev/null
# DeepSpeed compiles a small CPU part at its first start: its cache stays in the folder, too.
export TORCH_EXTENSIONS_DIR="$work/extensions" OMP_NUM_THREADS=1 PATH="$work/venv/bin:$PATH"
cd "$work" && python - 2> errors.txt <<'PYTHON' || { cat errors.txt; exit 1; }
import os

os.environ.update(DS_ACCELERATOR="cpu", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import torch
import torch.distributed as dist

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import deepspeed

deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
print("deepspeed", deepspeed.__version__, "torch", torch.__version__)


def inner(accumulate: int, bare: bool) -> float:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 3.0)
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    x = torch.ones(1, 1, requires_grad=True)
    score = (network if bare else engine)(x).sum()
    (gradient,) = torch.autograd.grad(score, x, create_graph=True)
    return gradient.item()


seen = {steps: (inner(steps, bare=False), inner(steps, bare=True)) for steps in (2, 4)}
for steps, (engine, bare) in seen.items():
    print(f"gradient_accumulation_steps={steps}: {engine:g} through the engine, {bare:g} through the module")
assert seen == {2: (1.5, 3.0), 4: (0.75, 3.0)}, seen
print("behaviour as described: the inner gradient is divided by the number of micro-batches")
PYTHON
