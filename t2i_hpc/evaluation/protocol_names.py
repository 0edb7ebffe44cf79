"""What a protocol is called on each metric: the preset's name, or that it was modified."""

from __future__ import annotations

from t2i_hpc.config.compose import changed_settings
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.metrics import METRICS
from t2i_hpc.evaluation.protocol import Protocol

# The settings that decide a field of the protocol, where they have other names than the field.
_SETTINGS_OF = {
    "caption_choice": ("captions", "images_per_caption"),
    "crop": ("real_crop", "real_filter"),
    "preprocessing": ("detector_resize", "detector_precision"),
    "score_side": ("inception_score_size",),
}
# What of a protocol is a place or comes with the data, not with a preset.
_NO_PRESET = frozenset(
    {"data", "captions", "encoders", "clip", "detector_sha256", "training", "seeds", "lpips"}
)


def protocol_names(settings: EvaluationConfig, protocol: Protocol) -> dict[str, str]:
    """Return the protocol's name by metric.

    It is "… (modified)" where a setting that moves the metric differs from the file of that name.
    """
    changed = changed_settings(settings)
    names = {}
    for metric in METRICS:
        fields = {"split", *protocol.fields_of(metric)} - _NO_PRESET
        moving = {name for field in fields for name in _SETTINGS_OF.get(field, (field,))}
        modified = " (modified)" if changed & moving else ""
        names[metric] = f"{settings.protocol}{modified}"
    return names
