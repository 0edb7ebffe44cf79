#!/usr/bin/env bash
# DeepSpeed 0.19.8: of two losses given to one engine before a step, ZeRO 1 and 2 train the last alone.
#
# A GAN's discriminator has two losses, of real and of fake images. In torch two backward calls add
# their gradients up; DeepSpeed at stage 0 does the same.
#
# Expected: engine.backward(real); engine.backward(fake); engine.step() moves a weight by 1 + 10.
# Seen:     stage 0 moves it by 11, stages 1 and 2 by 10: the first loss is lost, without an error
#           or a warning (gradient_accumulation_steps=1).
# Who is hurt: GANs: half of the discriminator's loss never trains, and every curve looks alive.
# Guard: add the losses up and call engine.backward once.
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


def update(stage: int, together: bool) -> float:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    real, fake = (engine(torch.tensor([[x]])).sum() for x in (1.0, 10.0))
    if together:
        engine.backward(real + fake)
    else:
        engine.backward(real)
        engine.backward(fake)
    engine.step()
    return -network.weight.item()


seen = {stage: (update(stage, together=False), update(stage, together=True)) for stage in (0, 1, 2)}
for stage, (apart, added) in seen.items():
    print(f"stage {stage}: two backward calls move the weight by {apart:g}, their sum by {added:g}")
assert seen == {0: (11.0, 11.0), 1: (10.0, 11.0), 2: (10.0, 11.0)}, seen
print("behaviour as described: stages 1 and 2 lose the first loss")
PYTHON
