"""What the literature's code and papers do when they score, with where it says so.

Read in MinfengZhu/DM-GAN at d515995, taoxugit/AttnGAN at 0d000e6, wtliao/text2image (SSA-GAN) at
3063e27 and the papers; not in this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """One value of a preset: `setting` of ``evaluation`` is `value`, as `source` says."""

    setting: str
    value: Any
    source: str


NOT_DOCUMENTED = "not documented"
_DMGAN = (
    Fact("images", 30_000, "DM-GAN code/trainer.py:419 R = np.zeros(30000), filled by passes"),
    Fact("split", "test", "DM-GAN code/main.py:127 split_dir = 'test'"),
    Fact(
        "captions", "one", "DM-GAN code/datasets.py:305 sent_ix = random.randint(…), in each pass"
    ),
    Fact("rounding", "down", "DM-GAN code/trainer.py:460, AttnGAN code/trainer.py:425"),
    Fact("weights", "ema", "DM-GAN code/trainer.py:179 load_params(netG, avg_param_G)"),
)
_DMGAN_SCORES = (
    Fact("detector", "inception_literature", "DM-GAN eval/FID/inception.py: torchvision's"),
    Fact("metrics", ["r_precision", "fid"], "DM-GAN README, table Performance"),
    Fact("candidates", 100, "DM-GAN code/datasets.py:315 99 others and its own"),
    Fact("folds", 10, "DM-GAN code/trainer.py:486 sum = np.zeros(10)"),
    Fact("real_crop", "center", NOT_DOCUMENTED),
    Fact("real_filter", "bilinear", NOT_DOCUMENTED),
)
_SSAGAN = (
    Fact("metrics", ["is", "fid"], "SSA-GAN README, section on evaluation; IS.py"),
    Fact("detector", "inception", "SSA-GAN README:39 bioinf-jku/TTUR; IS.py MODEL_DIR"),
    Fact("split", "test", "SSA-GAN main.py:496 TextDataset(cfg.DATA_DIR, 'test', …)"),
    Fact("captions", "one", "SSA-GAN datasets.py:317 sent_ix = random.randint(…)"),
    Fact("rounding", "down", "SSA-GAN main.py:143"),
    Fact("weights", "latest", "SSA-GAN main.py keeps no average"),
    Fact("real_filter", "bilinear", "SSA-GAN datasets.py:91 transforms.Resize"),
    Fact("inception_score_size", 128, "SSA-GAN IS.py --image_size"),
    Fact("splits", 3, "SSA-GAN IS.py --num_splits"),
)
PRESETS = {
    "literature_coco": (
        *_DMGAN,
        *_DMGAN_SCORES,
        Fact("caption_tokens", 20, "AttnGAN and DM-GAN code/cfg/eval_coco.yml WORDS_NUM"),
    ),
    "literature_cub": (
        *_DMGAN,
        *_DMGAN_SCORES,
        Fact("caption_tokens", 25, "AttnGAN and DM-GAN code/cfg/eval_bird.yml WORDS_NUM"),
    ),
    "literature_coco_is": (
        *_DMGAN,
        Fact("metrics", ["is"], "DM-GAN README, table Performance"),
        Fact("caption_tokens", 20, "DM-GAN code/cfg/eval_coco.yml WORDS_NUM"),
        Fact("detector", "inception", "DM-GAN eval/IS/coco/inception_score_coco.py DATA_URL"),
        Fact("inception_score_size", 299, "DM-GAN eval/IS/coco/inception_score_coco.py:111"),
        Fact("splits", 10, "DM-GAN eval/IS/coco/inception_score_coco.py:25"),
    ),
    "ssagan_code": (
        *_SSAGAN,
        Fact("images", 2933 // 24 * 24, "SSA-GAN main.py:504 drop_last, cfg/bird.yml BATCH_SIZE"),
        Fact("real_crop", "random", "SSA-GAN main.py: image_transform of the training"),
    ),
    "ssagan_paper": (
        *_SSAGAN,
        Fact("images", 30_000, "SSA-GAN's paper, section 4"),
        Fact("real_crop", "center", NOT_DOCUMENTED),
    ),
}
