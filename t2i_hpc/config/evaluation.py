"""Configuration of evaluation and generation."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import setting

METRICS = (
    "fid",
    "is",
    "kid",
    "mind",
    "prc",
    "density_coverage",
    "cmmd",
    "memorization",
    "diversity",
    "lpips",
    "r_precision",
    "clip_score",
    "fid_infinity",
)
_LONG_NAMES = {"frechet": "fid", "inception_score": "is", "precision_recall": "prc"}


@dataclass
class EvaluationConfig:
    """A protocol (what is compared with what, and how), and how the work is sharded."""

    protocol: str = setting(
        "custom",
        "name of the protocol, for people; in no hash; where a setting differs from the file of "
        "this name, scores say (modified)",
    )
    presets: str = setting(
        "",
        "folder with a file evaluation/NAME.yaml of the protocol's name, beside the shipped ones; "
        "empty: that of --config-dir",
    )
    metrics: list[str] = setting(
        ["fid"],
        "what is measured: FID (called FD with another detector than FID's), Inception score, KID, "
        "MIND, precision and recall, density and coverage, CMMD, memorization, per-prompt "
        "diversity by features and by LPIPS, R-precision, CLIP score, FID∞; frechet, "
        "inception_score and precision_recall mean fid, is and prc",
        choices=METRICS,
        aliases=_LONG_NAMES,
    )
    detector: str = setting(
        "inception",
        "feature network; inception gives FID, inception_literature that of AttnGAN's successors",
        choices=(
            "inception",
            "inception_literature",
            "efficientnet_lite0",
            "efficientnet_lite2",
            "dinov2",
            "clip",
        ),
    )
    detector_weights: str = setting(
        "",
        "weights file of the detector; empty: where t2i_hpc.fetch puts it; of dinov2 and clip the "
        "folder with config.json and model.safetensors",
    )
    detector_resize: str = setting(
        "own",
        "resize for the detector: its own, or clean (antialiased bicubic; inception)",
        choices=("own", "clean"),
    )
    detector_precision: str = setting(
        "float32",
        "the detector's precision; bfloat16 is faster on GPUs and gives another protocol",
        choices=("float32", "bfloat16"),
    )
    images: int = setting(30_000, "images to generate", unit="images", minimum=2)
    real_images: int | None = setting(
        None, "real images to compare with; empty: all", unit="images", minimum=2
    )
    split: str = setting("test", "split of captions and real images")
    data: str = setting("", "folder of shards of the real side; empty: the run's own")
    captions: str = setting(
        "one",
        "one: image i gets one of its sample's captions by (seed, i); all: each in turn",
        choices=("one", "all"),
    )
    caption_tokens: int | None = setting(
        None,
        "longest caption that the generator and R-precision's encoder read; empty: the run's own "
        "data.max_tokens",
        unit="tokens",
        minimum=1,
    )
    real_crop: str = setting(
        "center",
        "crop of the real images: center, or random with flips, as for training",
        choices=("center", "random"),
    )
    real_filter: str = setting(
        "bilinear",
        "filter that resizes real images to the resolution, always antialiased",
        choices=("bilinear", "bicubic", "lanczos"),
    )
    truncation: float | None = setting(
        None, "truncate the noise at so many standard deviations; empty: not", minimum=0.01
    )
    images_per_caption: int = setting(
        1,
        "images in a row that share a caption, for diversity; noise differs; another protocol for "
        "all metrics",
        unit="images",
        minimum=1,
    )
    rounding: str = setting(
        "nearest",
        "how values become 8-bit levels; down: as AttnGAN, DM-GAN and SSA-GAN",
        choices=("nearest", "down"),
    )
    weights: str = setting(
        "ema",
        "weights that generate: ema where the run keeps an EMA, or the latest",
        choices=("ema", "latest"),
    )
    seed: int = setting(
        1,
        "seed of noise, captions, splits and subsets; image i depends on (seed, i) alone",
        minimum=0,
        maximum=2**32 - 1,
    )
    seeds: int = setting(
        1,
        "draw the images by so many seeds, evaluation.seed and the numbers after it; a score is "
        "their mean ± standard deviation",
        unit="seeds",
        minimum=1,
        maximum=1000,
    )
    inception_score_size: int | None = setting(
        None,
        "side that images are resized to before the Inception score's network; 128: SSA-GAN's "
        "IS.py; 299: DM-GAN's for COCO; empty: not resized",
        unit="px",
        minimum=16,
    )
    splits: int = setting(10, "splits of the Inception score", minimum=1)
    kid_subsets: int = setting(100, "pairs of subsets that KID is the mean of", minimum=1)
    kid_subset_size: int = setting(1000, "images of a subset of KID", unit="images", minimum=2)
    mind_directions: int = setting(1000, "random projections of MIND", minimum=1)
    infinity_points: int = setting(
        15,
        "subsets of a tenth of the images to all that fid_infinity's line goes through",
        minimum=3,
    )
    training: str = setting(
        "",
        "training images that memorization compares with: a folder of images, or of shards; empty: "
        "the run's own",
    )
    training_images: int | None = setting(
        None,
        "training images that memorization compares with, evenly spaced; empty: all",
        unit="images",
        minimum=2,
    )
    memorized_share: float = setting(
        0.01,
        "memorization: share of real held-out images that lie as near to a training image as what "
        "counts as memorized",
        minimum=0.0001,
        maximum=0.5,
    )
    neighbors: int = setting(
        3,
        "nearest neighbor that sets the radius in precision, recall, density and coverage (whose "
        "authors take 5)",
        minimum=1,
    )
    candidates: int = setting(
        100, "captions that R-precision ranks for an image, its own included", minimum=2
    )
    folds: int = setting(10, "folds of R-precision", minimum=1)
    text_encoder: str = setting(
        "", "safetensors file of R-precision's DAMSM text encoder; empty: the run's own"
    )
    image_encoder: str = setting(
        "", "safetensors file of R-precision's DAMSM image encoder; empty: the run's own"
    )
    clip: str = setting(
        "",
        "folder of the CLIP of clip_score: config.json, model.safetensors, tokenizer.json",
    )
    lpips: str = setting(
        "",
        "folder of the files of lpips: alexnet-owt-7be5be79.pth of torchvision and alex.pth of the "
        "package lpips (lpips/weights/v0.1), or vgg16-397923af.pth and vgg.pth",
    )
    features: str = setting(
        "float32",
        "how features are kept for KID, MIND, precision, recall, density and coverage; float16 "
        "halves the files",
        choices=("float32", "float16"),
    )
    batch_size: int = setting(32, "images of a batch", unit="images", minimum=1)
    shards: int = setting(
        1, "evaluation shards the images are split into", unit="shards", minimum=1
    )
    shard: int | None = setting(
        None, "compute only this evaluation shard (from 0), without the merge", minimum=0
    )
    merge: bool = setting(
        False, "only merge the partial statistics that are there, or say which shard is missing"
    )
    cache: str = setting(
        "",
        "folder of the real images' statistics, shared by runs; empty: real-statistics beside "
        "the run",
    )
    captions_cache: float = setting(
        4.0,
        "size of the files that keep captions as CLIP and R-precision's encoder encode them, in "
        "captions/ of evaluation.cache, or in caption-codes beside the run; 0: none are kept",
        unit="GB",
        minimum=0,
    )
    save_images: str = setting(
        "none",
        "also write the generated images, and index.jsonl with the caption and noise of each",
        choices=("none", "png", "npz"),
    )


@dataclass
class GenerationConfig:
    """Images of any captions."""

    captions: list[str] = setting(
        [],
        'captions; quote them: \'captions=["a red apple","a {red,blue} square"]\'; words in '
        "braces are swapped, one row each; empty: captions of the run's test split",
    )
    captions_file: str = setting(
        "",
        "file with more captions: text, one a line; .csv or .json with captions and perhaps keys",
    )
    images_per_caption: int | None = setting(
        None,
        "write so many PNG files of each caption, and index.jsonl; empty: a grid",
        unit="images",
        minimum=1,
    )
    columns: int = setting(8, "noise vectors of a caption", minimum=1, maximum=64)
    rows: int = setting(
        8, "captions taken from the test split where none are given", minimum=1, maximum=64
    )
    seed: int = setting(1, "seed of the noise", minimum=0)
    precision: str = setting(
        "float32",
        "the generator's precision; bfloat16 and float16 are faster on GPUs, and images differ "
        "slightly",
        choices=("float32", "bfloat16", "float16"),
    )
    masks: bool = setting(True, "also show the semantic masks")
    output: str = setting(
        "",
        "folder for the images; empty: a folder of generated/ inside the run, named by the hash of "
        "the request",
    )
    batch_size: int = setting(
        32, "images that are made together, with images_per_caption", unit="images", minimum=1
    )
    shards: int = setting(
        1,
        "shards that the images are split into, e.g. of a job array, with images_per_caption",
        unit="shards",
        minimum=1,
    )
    shard: int | None = setting(None, "make only this shard (from 0)", minimum=0)
