"""Presets of evaluation: the file that a protocol's name stands for, and what was changed in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from t2i_hpc.common.files import resource
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.tasks import EvaluateConfig


def preset_of(settings: EvaluationConfig) -> EvaluationConfig | None:
    """Return the settings of the file whose ``protocol`` these settings bear, None without one.

    A file of ``settings.presets`` goes before a shipped one.
    """
    own = Path(settings.presets) if settings.presets else None
    for root in [*([own] if own else []), resource("configs")]:
        for path in sorted((root / "evaluation").glob("*.yaml")):
            if _name_in(path) == settings.protocol:
                chosen = [f"evaluation={path.stem}"]
                return compose_config("evaluate", chosen, EvaluateConfig, own).evaluation
    return None


def changed_settings(settings: EvaluationConfig) -> frozenset[str]:
    """Return the names of the settings that differ from the preset's file."""
    preset = preset_of(settings)
    if preset is None:
        return frozenset()
    names = (field.name for field in dataclasses.fields(settings))
    return frozenset(name for name in names if getattr(settings, name) != getattr(preset, name))


def _name_in(path: Path) -> object:
    content = OmegaConf.load(path)
    return content.get("protocol") if isinstance(content, DictConfig) else None
