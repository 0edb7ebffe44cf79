"""Configuration of the data: where the shards lie and how samples are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import setting


@dataclass
class DataConfig:
    """Shards and what happens to a sample between the tar and the batch."""

    name: str = setting("demo", "name of the data set, for titles", identity=False)
    path: str = setting(
        "",
        "folder of shards made by t2i_hpc.shards; demo: those that ship with t2i_hpc",
        identity=False,
    )
    train_split: str = setting("train", "split to train on (a subfolder of path)")
    test_split: str = setting(
        "test", "split to draw captions for samples and scores from", identity=False
    )
    words: int = setting(
        18,
        "longest caption; longer ones become a random subset in order",
        unit="words",
        minimum=1,
        maximum=512,
    )
    margin: float = setting(
        76 / 64,
        "shorter side before the random crop, over the resolution",
        minimum=1.0,
        maximum=4.0,
    )
    flip: bool = setting(True, "mirror half of the images")
    shuffle_window: int = setting(
        8, "shards whose samples are shuffled together", unit="shards", minimum=1
    )
    workers: int = setting(
        2,
        "loader processes a rank; 0 reads in the main process",
        unit="processes",
        minimum=0,
        maximum=256,
        identity=False,
    )


@dataclass
class ShardsConfig:
    """What `t2i_hpc.shards` reads and writes."""

    source: str = setting(
        "folder",
        "layout to read; index: tars that others made, images kept byte for byte",
        choices=("coco", "cub", "folder", "index"),
    )
    images: str = setting(
        "", "folder of the images (cub: the folder CUB_200_2011; index: of the tars)"
    )
    captions: str = setting(
        "",
        "captions: COCO's captions JSON, CUB's text folder, or a folder's metadata.jsonl "
        "(empty: .txt files beside the images, or images/metadata.jsonl)",
    )
    name: str = setting("", "name of the data set, for titles; empty: the source's name")
    output: str = setting("", "folder to write, e.g. shards/coco")
    split: str = setting("train", "name of the split to write (a subfolder of output)")
    size: int = setting(
        304,
        "shorter side that is stored; smaller images are kept as they are",
        unit="px",
        minimum=16,
        maximum=4096,
    )
    format: str = setting("jpeg", "how images are stored", choices=("jpeg", "png", "webp"))
    quality: int = setting(95, "quality of jpeg (4:4:4) and webp", minimum=1, maximum=100)
    shard_samples: int = setting(1000, "samples a tar", unit="samples", minimum=1)
    limit: int | None = setting(None, "convert only the first samples", unit="samples", minimum=1)
    vocabulary: str = setting(
        "",
        "vocabulary.json to use; empty: output/vocabulary.json, made from the captions "
        "where it does not exist yet",
    )
