"""Engines run systems: world, phases, optimizers, the loop, checkpoints, progress.

This package knows no system by name: it sees ``t2i_hpc.systems.base.System``.
"""
