"""Configuration of evaluation and generation."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import setting


@dataclass
class EvaluationConfig:
    """What is compared with what, by which network, in how many parts."""

    detector: str = setting(
        "inception",
        "feature network; inception gives FID",
        choices=("inception", "efficientnet_lite0"),
    )
    detector_weights: str = setting(
        "", "weights file of inception; empty: where t2i_hpc.fetch puts it"
    )
    images: int = setting(30_000, "images to generate", unit="images", minimum=2)
    real_images: int | None = setting(
        None, "real images to compare with; empty: all", unit="images", minimum=2
    )
    split: str = setting("test", "split of captions and real images")
    data: str = setting("", "folder of shards of the real side; empty: the run's own")
    seed: int = setting(
        1, "seed of noise and captions; image i depends on (seed, i) alone", minimum=0
    )
    batch_size: int = setting(32, "images at a time", unit="images", minimum=1)
    shards: int = setting(1, "parts the images are split into", unit="shards", minimum=1)
    shard: int | None = setting(
        None, "compute only this part (0-based), without the merge", minimum=0
    )


@dataclass
class GenerationConfig:
    """Pictures for captions of one's own."""

    captions: list[str] = setting(
        [],
        'captions; quote them: \'captions=["a red apple","a {red,blue} square"]\'; words in '
        "braces are swapped, one row each; empty: captions of the run's test split",
    )
    captions_file: str = setting("", "text file with more captions, one a line")
    columns: int = setting(8, "noise vectors a caption", minimum=1, maximum=64)
    rows: int = setting(
        8, "captions taken from the test split where none are given", minimum=1, maximum=64
    )
    seed: int = setting(1, "seed of the noise", minimum=0)
    masks: bool = setting(True, "also draw the semantic masks")
    output: str = setting(
        "",
        "folder for the pictures; empty: a folder of generated/ inside the run, named by the "
        "hash of what was asked",
    )
