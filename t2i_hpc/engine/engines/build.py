"""The engines by name."""

from __future__ import annotations

from t2i_hpc.common.step import System
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.engine.engines.ddp import DDPEngine
from t2i_hpc.engine.engines.engine import Engine
from t2i_hpc.engine.world import World


def build_engine(system: System, world: World, config: EngineConfig) -> Engine:
    """Build the engine that the configuration names.

    Raises:
        ConfigurationError: it cannot run here, or not as configured.
    """
    if config.name == "deepspeed":
        from t2i_hpc.engine.engines.zero import DeepSpeedEngine

        return DeepSpeedEngine(system, world, config)
    return DDPEngine(system, world, config)
