"""What the documented commands read, under the very names that the pages give it, but tiny."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import torch

from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.convert import export_reference
from t2i_hpc.convert.__main__ import COMMAND as CONVERT
from t2i_hpc.convert.slots import slots_of
from t2i_hpc.data.build.sources.pickles import read_published
from t2i_hpc.launch import main as launch
from t2i_hpc.systems import build_system
from t2i_hpc.systems.encoders import checkpoint_follows
from tests.commands.trained import write_encoders
from tests.data.test_pickles_source import make_pickles
from tests.evaluation.pretrained import save_clip, save_dinov2
from tests.golden.case import case
from tests.support.data import (
    captions_of,
    image_bytes,
    make_coco,
    make_cub,
    make_flowers,
    make_image_folder,
)
from tests.support.documents import ROOT, blocks_of
from tests.support.training import TINY

IMAGES = 24
# What makes the experiments of published checkpoints small.
_TEXT = ("system.text_encoder.width=16", "system.text_encoder.embedding_width=12")
_GAN = (*_TEXT, "system.generator_width=2", "system.discriminator_width=2")
_STAGED = (*_GAN, "system.resolution=128", "system.condition_width=5", "system.residuals=1")
_NO_DAMSM = "system.damsm.weight=0"
PUBLISHED: dict[str, tuple[str, ...]] = {
    "cub_ssagan": (*_GAN, "system.resolution=64", "system.mask_width=4", _NO_DAMSM),
    "cub_dfgan": (*_GAN, "system.resolution=64"),
    "cub_attngan2": (*_STAGED, "system.stages=[initial,attention]", _NO_DAMSM),
    "cub_dmgan": (*_STAGED, "system.stages=[initial,memory]", _NO_DAMSM),
    "cub_encoders": (*_TEXT, "system.epoch_images=8855"),
}
_FILES = {
    "cub_ssagan": {"generator": "netG_550.pth"},
    "cub_dfgan": {},
    "cub_attngan2": {"generator": "bird_AttnGAN2.pth"},
    "cub_dmgan": {"generator": "bird_DMGAN.pth"},
    "cub_encoders": {
        name: f"DAMSMencoders/bird/{name}200.pth" for name in ("text_encoder", "image_encoder")
    },
}
RUNS = (
    *("coco_ssagan-1f3a5b7c", "coco_ssagan-…", "demo_bert-1a2b3c4d"),
    *("…", "mine-…", "first-…", "second-…", "flowers_projected-…"),
)


def make_standins(folder: Path, shards: Path) -> Path:
    """Write all of it into a new folder; returns it."""
    folder.mkdir()
    (folder / "data" / "shards").mkdir(parents=True)
    (folder / "data" / "shards" / "coco").symlink_to(shards)
    _write_sources(folder)
    _write_weights(folder, _train(folder, shards))
    _write_published(folder)
    return folder


def enter(standins: Path, folder: Path) -> None:
    """Make the names of the stand-ins seen in a folder; what is written there stays there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in standins.iterdir():
        if path.name != "runs":
            (folder / path.name).symlink_to(path)
    shutil.copytree(standins / "runs", folder / "runs", symlinks=True)


def _write_sources(folder: Path) -> None:
    make_image_folder(folder / "my_images", range(IMAGES))
    for name in ("mine", "real"):
        (folder / name).mkdir()
        for number in range(IMAGES):
            (folder / name / f"{number}.png").write_bytes(image_bytes(number))
    page = ROOT / "docs" / "how-to" / "cluster.md"
    (ours,) = [block for block in blocks_of(page) if block.language == "yaml"]
    (folder / "mine" / "cluster").mkdir()
    (folder / "mine" / "cluster" / "ours.yaml").write_text(ours.text)
    make_image_folder(folder / "zh", range(4))
    (folder / "zh" / "metadata.jsonl").unlink()
    rows = [f"{number:04d}.png,\u4e00\u53ea\u9e1f {number}" for number in range(4)]
    (folder / "zh" / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    for number in range(4):
        for kind, suffix in (("images", "jpg"), ("text", "txt")):
            path = folder / "faces" / kind / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                image_bytes(number, "JPEG")
                if suffix == "jpg"
                else b"\n".join(text.encode() for text in captions_of(number))
            )
    images, captions = make_coco(folder / "coco", IMAGES)
    for year in ("train2014", "val2014"):
        (folder / "coco" / year).symlink_to(images)
        named = folder / "coco" / "annotations" / f"captions_{year}.json"
        named.parent.mkdir(exist_ok=True)
        named.symlink_to(captions)
    (folder / "flickr30k").symlink_to(folder / "faces" / "images")
    listed = [
        {"filename": f"{n}.jpg", "split": "test", "sentences": [{"raw": captions_of(n)[0]}]}
        for n in range(4)
    ]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": listed}))
    make_cub(folder)
    make_flowers(folder)
    make_pickles(folder / "birds")
    (folder / "birds" / "CUB_200_2011").mkdir()
    (folder / "birds" / "CUB_200_2011" / "images").symlink_to(folder / "birds" / "images")
    _write_cocos_pickles(folder, json.loads(captions.read_text())["images"])


def _write_cocos_pickles(folder: Path, images: list[dict[str, str]]) -> None:
    keys = [Path(image["file_name"]).stem for image in images]
    text = [[1, 2]] * (len(keys) * 5)
    words = {0: "<end>", 1: "a", 2: "bird"}
    metadata = folder / "metadata"
    for split in ("train", "test"):
        (metadata / split).mkdir(parents=True)
        (metadata / split / "filenames.pickle").write_bytes(pickle.dumps(keys, 2))
    content = [text, text, words, {word: number for number, word in words.items()}]
    (metadata / "captions.pickle").write_bytes(pickle.dumps(content, 2))
    (folder / "captions.pickle").symlink_to(metadata / "captions.pickle")


def _train(folder: Path, shards: Path) -> Path:
    """Train a sweep of two runs, which stands for all sweeps and runs."""
    words = ("--sweep", "seed=1,2", "engine.images=4", f"data.path={shards}", *TINY)
    assert launch([*words, f"runs={folder / 'runs'}"]) == 0
    runs = sorted(path.parent for path in (folder / "runs").glob("*/config.yaml"))
    (sweep,) = (folder / "runs" / "sweeps").iterdir()
    (sweep.parent / "demo-1a2b3c4d").symlink_to(sweep)
    for place, name in enumerate(RUNS):
        (folder / "runs" / name).symlink_to(runs[place % 2])
    (folder / "RUN").symlink_to(runs[0])
    (folder / "SWEEP").symlink_to(sweep)
    (folder / "archive").mkdir()
    (folder / "archive" / "coco-1f3a5b7c").symlink_to(runs[0])
    return runs[0]


def _write_weights(folder: Path, run: Path) -> None:
    encoders = folder / "encoders"
    encoders.mkdir()
    write_encoders(run, 16, 12)
    for name in ("text", "image"):
        (encoders / f"{name}_encoder.safetensors").symlink_to(run / f"{name}.safetensors")
    (folder / "text_encoder.safetensors").symlink_to(run / "text.safetensors")
    (folder / "my_captions.csv").write_text("key,caption\nfirst,a red circle\nother,one square\n")
    width = 1280  # of EfficientNet-Lite0, which stands for every detector
    np.savez_compressed(folder / "stats.npz", mu=np.zeros(width), sigma=np.eye(width))
    save_dinov2(folder / "dinov2-large")
    save_clip(folder / "clip-vit-base-patch32")
    torch.save(case("damsm").weights("text"), folder / "text_encoder200.pth")
    torch.save(case("ssagan_ngf4").weights("G"), folder / "netG_600.pth")


def _write_published(folder: Path) -> None:
    """Write checkpoints as they were published, and make a run of one."""
    words = len(read_published(folder / "birds" / "captions.pickle").words)
    (folder / "DAMSMencoders" / "bird").mkdir(parents=True)
    for experiment, files in _FILES.items():
        states = _states(experiment, words)
        for key, name in files.items():
            torch.save(states[key], folder / name)
        if not files:
            letters = {"netG": "generator", "netD": "discriminator", "netC": "head"}
            networks = {letter: states[key] for letter, key in letters.items()}
            torch.save({"model": networks, "epoch": 1220}, folder / "state_epoch_1220.pth")
    given = (
        *(f"generator={folder}/netG_550.pth", f"vocabulary={folder}/birds/captions.pickle"),
        f"text_encoder={folder}/DAMSMencoders/bird/text_encoder200.pth",
        f"output={folder}/runs/cub_ssagan-9d2c4e1f",
    )
    assert CONVERT.main(["experiment=cub_ssagan", *PUBLISHED["cub_ssagan"], *given]) == 0


def _states(experiment: str, words: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return small networks of an experiment under their published names."""
    settings = [f"experiment={experiment}", *PUBLISHED[experiment]]
    config = compose_config("train", settings, TrainConfig).system
    torch.manual_seed(1)
    with checkpoint_follows():
        modules = build_system(config, words).modules
    return {
        slot.key: export_reference(slot.system, slot.network, modules.get_submodule(slot.place))
        for slot in slots_of(config)
        if slot.place.split(".")[0] in modules
    }
