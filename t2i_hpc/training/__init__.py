"""Training: one step of phases over DDP or DeepSpeed, the loop, checkpoints, lost ranks.

This package knows no system by name: it sees ``t2i_hpc.systems.base.System``.
"""
