"""Configuration of the data: where the shards are and how samples are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import setting


@dataclass
class DataConfig:
    """Shards and what happens to a sample between the tar and the batch."""

    name: str = setting("demo", "name of the dataset, for titles", identity=False)
    path: str = setting(
        "",
        "folder of shards made by t2i_hpc.shards, or its URL (https://…, s3://…); demo: the shards "
        "that ship with t2i_hpc",
        identity=False,
    )
    paths: list[str] = setting(
        [],
        "several folders of shards to train on at once; vocabulary and test split are those of "
        "data.path, which becomes the first of them unless it is another one of them",
        identity=False,  # the run takes the contents and the weights as its data
    )
    weights: list[float] = setting(
        [],
        "data.paths: relative shares of the samples, one for each; empty: as much of each as it "
        "has",
        identity=False,
    )
    train_split: str = setting("train", "split to train on (a subfolder of path)")
    test_split: str = setting(
        "test", "split of captions for sample grids and scores", identity=False
    )
    max_tokens: int = setting(
        18,
        "longest caption; of a longer one a random subset of its tokens, in order; of CLIP's "
        "the first",
        unit="tokens",
        minimum=1,
        maximum=512,
    )
    tokenizer: str = setting(
        "",
        "tokenizer.json of a pretrained text encoder (BERT, CLIP); empty: the shards' own "
        "vocabulary",
        file=True,
    )
    resize_ratio: float = setting(
        76 / 64,
        "shorter side before the random crop / resolution",
        minimum=1.0,
        maximum=4.0,
    )
    flip: bool = setting(True, "flip half of the images horizontally")
    shuffle_window: int = setting(
        8, "shards whose samples are shuffled together", unit="shards", minimum=1
    )
    workers: int = setting(
        2,
        "loader processes of a rank; 0: load in the main process",
        unit="processes",
        minimum=0,
        maximum=256,
        identity=False,
    )
    reader: str = setting(
        "indexed",
        "indexed: shards with a manifest, in an exact order; webdataset: tars without one, named "
        "by data.urls and resampled (data.path then holds the vocabulary and the test split)",
        choices=("indexed", "webdataset"),
    )
    urls: list[str] = setting(
        [],
        "tars for reader=webdataset: paths, http(s)://, s3:// or gs://, with {000..999} for "
        "many; quote the whole argument",
        identity=False,  # the run takes the hash of the list as its data
    )
    shuffle_buffer: int = setting(
        1000,
        "reader=webdataset: shuffle buffer of each loader process",
        unit="samples",
        minimum=1,
    )
    image_member: str = setting(
        "",
        "reader=webdataset: extension of the image in a sample, e.g. input.jpg; empty: the one of "
        "an image format (.jpg, .png, .webp)",
        identity=False,  # part of the data's identity
    )
    caption_member: str = setting(
        "",
        "reader=webdataset: extension of the captions, e.g. syn.json; empty: txt, then json",
        identity=False,
    )
    caption_key: str = setting(
        "",
        "reader=webdataset: name of the captions in JSON; empty: captions, caption, text or the "
        "like",
        identity=False,
    )
    max_lost: float = setting(
        0.01,
        "reader=webdataset: largest fraction of samples without a caption or that cannot be "
        "decoded; up to 10 samples are always allowed",
        minimum=0.0,
        maximum=1.0,
        identity=False,
    )
    retry_seconds: float = setting(
        120.0,
        "how long failing reads of a batch are retried; with several ranks at most half of "
        "engine.timeout",
        unit="seconds",
        minimum=0.0,
        identity=False,
    )
    cache: str = setting(
        "",
        "cache folder of remote shards, shared by the processes of a node; empty: in "
        "$SLURM_TMPDIR, $TMPDIR or the system's temporary folder",
        identity=False,
    )
    cache_gigabytes: float = setting(
        50.0,
        "size of the cache; the shards that are needed last are evicted",
        unit="GB",
        minimum=0.001,
        identity=False,
    )
    remote_reads: str = setting(
        "shards",
        "shards: download remote shards to the cache before they are needed; ranges: one range "
        "request a sample, without a cache",
        choices=("shards", "ranges"),
        identity=False,
    )
    prefetch: int = setting(
        1,
        "shuffle windows of remote shards that a node fetches ahead, within the cache; on shared "
        "file systems the kernel is told to read them; 0: none",
        unit="windows",
        minimum=0,
        maximum=64,
        identity=False,
    )
    connections: int = setting(
        24,
        "range requests at once when a process fetches remote shards",
        minimum=1,
        maximum=256,
        identity=False,
    )
    endpoint: str = setting(
        "",
        "address of a server of s3:// other than Amazon's, e.g. http://minio:9000; empty: "
        "AWS_ENDPOINT_URL, or Amazon's",
        identity=False,
    )
    anonymous: bool = setting(
        False, "read public buckets of s3:// and gs:// without keys", identity=False
    )

    def __post_init__(self) -> None:
        """Let vocabulary and test split come from one of the data sets that are mixed."""
        if self.paths and self.path not in self.paths:
            self.path = self.paths[0]


@dataclass
class ShardsConfig:
    """What `t2i_hpc.shards` reads and writes."""

    source: str = setting(
        "folder",
        "layout to read; webdataset: tars that another tool made (img2dataset, webdataset); mds: a "
        "directory of mosaicml-streaming; parquet: files that hold the images themselves (Hugging "
        "Face, img2dataset); "
        "pickles: the metadata of AttnGAN and its successors; split: a split that is there, or an "
        "index of tars, to store it in another size or format",
        choices=(
            "coco",
            "cub",
            "flowers",
            "folder",
            "mds",
            "parquet",
            "webdataset",
            "pickles",
            "split",
        ),
    )
    images: str = setting(
        "",
        "folder of the images (cub: the folder CUB_200_2011; flowers: the folder jpg, or the one "
        "that holds it; webdataset: of the tars, with its sub-folders; pickles: the folder that "
        "holds <key>.jpg)",
    )
    captions: str = setting(
        "",
        "captions: one file (COCO's or Karpathy's JSON, JSON lines, a table .csv, .tsv or "
        ".parquet, Flickr's token file), a folder of .txt files, or captions.pickle; empty: .txt "
        "files beside the images, or images/metadata.jsonl, .csv, .tsv or .parquet",
    )
    caption_key: str = setting(
        "",
        "name of the captions in JSON, or of their column in a table; empty: captions, caption, "
        "text or the like",
    )
    image_key: str = setting(
        "",
        "parquet: name of the column of images; empty: the only one of bytes, or image, jpg or the "
        "like",
    )
    image_member: str = setting(
        "",
        "webdataset: extension of the image in a sample, e.g. input.jpg; empty: that of an image "
        "format (.jpg, .png, .webp)",
    )
    caption_member: str = setting(
        "", "webdataset: extension of the captions, e.g. syn.json; empty: txt, then json"
    )
    name: str = setting("", "name of the dataset, for titles; empty: the source's name")
    output: str = setting(
        "", "folder to write, e.g. shards/coco; or s3://bucket/coco, with staging="
    )
    staging: str = setting(
        "", "output=s3://… or gs://…: folder here in which the split is built before it is copied"
    )
    index: str = setting(
        "",
        "source=webdataset: write only an index of the tars to this folder, instead of output=; "
        "training then reads the images where they lie",
    )
    urls: list[str] = setting(
        [],
        "index=: the tars, instead of a folder images=: paths, http(s)://, s3:// or gs://, with "
        "{000..999} for many; quote the whole argument",
    )
    endpoint: str = setting(
        "",
        "address of a server of s3:// other than Amazon's, e.g. http://minio:9000; empty: "
        "AWS_ENDPOINT_URL, or Amazon's",
    )
    anonymous: bool = setting(False, "read public buckets of s3:// and gs:// without keys")
    check_images: str = setting(
        "headers",
        "index=: what is read of an image: headers, or decode, which finds damaged pixels and "
        "takes far longer",
        choices=("headers", "decode"),
    )
    checksum: str = setting(
        "sha256",
        "index=: hash of each tar, compared with copies of tars on servers and by verify; xxh128: "
        "less than half the time, and no guard against forged tars, only against accidents",
        choices=("sha256", "xxh128"),
    )
    split: str = setting(
        "train",
        "name of the split to write (a subfolder of output); sources that know splits give its "
        "images, and all images for split=all",
    )
    test_fraction: float = setting(
        0.0,
        "fraction of the images to hold out as the split test, by the hash of their names",
        minimum=0.0,
        maximum=0.9,
    )
    size: int = setting(
        304,
        "shorter side that is stored; smaller images are kept as they are; not for format=original",
        unit="px",
        minimum=16,
        maximum=4096,
    )
    format: str = setting(
        "jpeg",
        "how images are stored; png: resized but lossless; original: each file byte for byte, not "
        "resized (those that EXIF rotates or a box crops become png)",
        choices=("jpeg", "png", "webp", "original"),
    )
    quality: int = setting(95, "quality of jpeg (4:4:4) and webp", minimum=1, maximum=100)
    shard_samples: int = setting(1000, "samples of a tar", unit="samples", minimum=1)
    limit: int | None = setting(None, "convert only the first samples", unit="samples", minimum=1)
    max_rejected: float = setting(
        0.05,
        "largest fraction of rejected samples (no caption, no image, an image that cannot be "
        "decoded, a damaged tar), which rejected.jsonl lists; one is always allowed; 0: none",
        minimum=0.0,
        maximum=1.0,
    )
    vocabulary: str = setting(
        "",
        "vocabulary.json to use; empty: output/vocabulary.json, built from the captions where it "
        "does not exist yet",
    )
    letters: str = setting(
        "ascii",
        "letters of the words of a new vocabulary; ascii: English, as all published encoders have "
        "it; unicode: every language",
        choices=("ascii", "unicode"),
    )
    min_count: int = setting(
        1,
        "of a new vocabulary: leave out words that stand in the captions less often",
        unit="times",
        minimum=1,
    )
    max_words: int = setting(
        0,
        "of a new vocabulary: take the most frequent words alone; 0: all",
        unit="words",
        minimum=0,
    )
    filter: str = setting(
        "",
        "take samples for which this is true of what their source says of them (JSON beside the "
        "image, columns of a table), e.g. 'width >= 256 and aesthetic > 5'; quote it",
    )
    workers: int | None = setting(
        None,
        "worker processes; empty: one a core, at most 8; 0 or 1: this process alone",
        unit="processes",
        minimum=0,
        maximum=256,
    )
    partition: str = setting(
        "",
        "build only this partition of the shards, e.g. 3/16 in a Slurm array; once all are built, "
        "the command merge makes the split of them",
    )
