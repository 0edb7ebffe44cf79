"""The engines by name."""

from __future__ import annotations

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.base import System
from t2i_hpc.training.ddp import DDPEngine
from t2i_hpc.training.step import Engine
from t2i_hpc.training.world import World


def build_engine(system: System, world: World, config: EngineConfig) -> Engine:
    """Build the engine that the configuration names.

    Raises:
        ConfigurationError: it cannot run here, or not as configured.
    """
    if config.name == "deepspeed":
        from t2i_hpc.training.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(system, world, config)
    return DDPEngine(system, world, config)
