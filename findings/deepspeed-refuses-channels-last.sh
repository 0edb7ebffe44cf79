#!/usr/bin/env bash
# DeepSpeed 0.19.8: a network in channels_last cannot be given to deepspeed.initialize.
#
# channels_last is what convolutions want on tensor cores. Parameters are broadcast through a view
# of their bytes, which torch refuses for a tensor whose last stride is not 1.
#
# Expected: the engine is built; the layout of a weight is its own business.
# Seen:     RuntimeError "self.stride(-1) must be 1 to view Float as Byte", at stages 0, 1 and 2, on
#           one rank. The same network trains when channels_last is put on after initialize.
# Who is hurt: convolutional networks moved to DeepSpeed by the usual line of advice.
# Guard: initialize first, then network.to(memory_format=torch.channels_last).
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


def start(stage: int, before: bool) -> str:
    network = torch.nn.Conv2d(4, 4, 3)
    if before:
        network.to(memory_format=torch.channels_last)
    try:
        engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_clipping": 0.0,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            },
        )
    except RuntimeError as error:
        return str(error).partition(",")[0]
    network.to(memory_format=torch.channels_last)
    images = torch.ones(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    engine.backward(engine(images).mean())
    engine.step()
    return "trains"


for stage in (0, 1, 2):
    before, after = start(stage, before=True), start(stage, before=False)
    print(f"stage {stage}: channels_last before initialize: {before}; after: {after}")
    assert "must be 1 to view Float as Byte" in before, before
    assert after == "trains", after
print("behaviour as described: channels_last ends initialize")
PYTHON
