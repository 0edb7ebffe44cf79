"""Names of tasks and systems, and the dataclass of each."""

from __future__ import annotations

from typing import Any

from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.config.df_gan import DFGANConfig
from t2i_hpc.config.staged_gan import StagedGANConfig
from t2i_hpc.config.system import DAMSMPretrainingConfig, SSAGANConfig, SystemConfig
from t2i_hpc.config.tasks import (
    CancelConfig,
    CheckpointsConfig,
    CompareConfig,
    ConvertConfig,
    EvaluateConfig,
    FetchConfig,
    GenerateConfig,
    LaunchConfig,
    ReportConfig,
    StatusConfig,
    TableConfig,
    TrainConfig,
)

TASK_SCHEMAS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "pretrain": TrainConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "compare": CompareConfig,
    "report": ReportConfig,
    "checkpoints": CheckpointsConfig,
    "shards": ShardsConfig,
    "fetch": FetchConfig,
    "convert": ConvertConfig,
    "launch": LaunchConfig,
    "status": StatusConfig,
    "cancel": CancelConfig,
    "table": TableConfig,
}

SYSTEM_SCHEMAS: dict[str, type[SystemConfig]] = {
    "ssa_gan": SSAGANConfig,
    "df_gan": DFGANConfig,
    "staged_gan": StagedGANConfig,
    "damsm": DAMSMPretrainingConfig,
}
