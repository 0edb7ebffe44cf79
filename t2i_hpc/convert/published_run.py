"""From published checkpoints to a run directory, which all commands take like a trained run.

An experiment says what a paper's networks are; its files give them values. What is not published
(discriminators mostly, always the optimizers) is not in the run: generating needs the generator and
the text encoder alone, and a training that starts from the run draws the rest anew.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from socket import gethostname
from typing import Any

import torch
from safetensors.torch import save_file

import t2i_hpc
from t2i_hpc.common.errors import UserError
from t2i_hpc.common.files import sha256_of_file, sha256_of_json, write_json
from t2i_hpc.config.one_stage_settings import CLIPGANConfig
from t2i_hpc.config.systems import DAMSMPretrainingConfig
from t2i_hpc.config.tasks import ConvertConfig, TrainConfig
from t2i_hpc.convert.checkpoint_files import (
    NESTED,
    SEVERAL,
    entries_of,
    other_networks,
    read_tensors,
)
from t2i_hpc.convert.networks import ConversionError
from t2i_hpc.convert.reference import import_any, sizes_of
from t2i_hpc.convert.slots import NETWORKS, TEXT, Slot, Source, check_fit, slots_of
from t2i_hpc.data.captions import VOCABULARY_NOTE, Vocabulary, check_same_words
from t2i_hpc.data.split import open_vocabulary
from t2i_hpc.runs.checkpoint import FORMAT, OPTIMIZERS, STATE, WEIGHTS
from t2i_hpc.runs.inputs import keep_inputs
from t2i_hpc.runs.layout import folder_of
from t2i_hpc.runs.run_directory import CONVERTED, data_record, prepare_run, run_folder
from t2i_hpc.runs.sessions import DONE, write_begin, write_end
from t2i_hpc.systems import outline_system
from t2i_hpc.systems.base import System
from t2i_hpc.systems.clip_gan import build_clip
from t2i_hpc.systems.encoders import check_caption_length, checkpoint_follows, vocabulary_of

_PICKLE = ".pickle"


@dataclass(frozen=True)
class PublishedRun:
    """What a run directory is made of, read and compared, but not written yet.

    Attributes:
        config: of the run.
        sources: its networks by `convert`'s settings.
        system: the system's names and shapes, without memory.
        vocabulary: the words that the text encoder knows; None: not known yet.
        words_from: where these are from, for people.
        images: that the weights were trained on, 0 where nobody says.
        output: the folder that a person named; empty: none.
    """

    config: TrainConfig
    sources: Mapping[str, Source]
    system: System
    vocabulary: Vocabulary | None
    words_from: str
    images: int
    output: str

    @property
    def folder(self) -> Path:
        """The run directory: a function of the configuration and of what the files hold."""
        if self.output:
            return Path(self.output)
        words = self.vocabulary.sha256 if self.vocabulary else ""
        files = {key: source.sha256 for key, source in self.sources.items()}
        content = {"converted": files, "vocabulary": words, "images": self.images}
        return run_folder(self.config, sha256_of_json(content))

    @property
    def missing(self) -> list[str]:
        """The system's networks that no file gives."""
        given = {source.slot.place.split(".")[0] for source in self.sources.values()}
        averaged = {"generator_ema"} if "generator" in given else set[str]()
        return sorted({*self.system.modules} - given - averaged)

    def write(self) -> None:
        """Write the run directory.

        Raises:
            ConversionError: the folder is a run already, or holds something else.
        """
        folder = self.folder
        self._check_folder(folder)
        self._write_checkpoint(folder)
        if isinstance(self.config.system, DAMSMPretrainingConfig):
            self._write_encoders(folder)
        if self.vocabulary:
            keep_inputs(folder, self.config, self.vocabulary)
        record = data_record(self.config, "", self.vocabulary.sha256 if self.vocabulary else "")
        origin = {CONVERTED: self._record()}
        # Last: with its config.yaml the folder becomes a run.
        prepare_run(folder, self.config, 1, torch.device("cpu"), record, origin=origin)
        self._write_session(folder)

    def _write_session(self, run: Path) -> None:
        """Write that nothing of the run is left to do, which its status then says."""
        identity = write_begin(
            run,
            job="",
            restart=0,
            hosts=(gethostname(),),
            ranks=1,
            pid=os.getpid(),
            images=self.images,
        )
        write_end(run, identity, DONE, self.images, message="made of published checkpoints")

    def _check_folder(self, folder: Path) -> None:
        if (folder / "config.yaml").exists():
            raise ConversionError(
                f"{folder} is a run already: use it, remove it, or name another folder with output="
            )
        if self.output and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConversionError(
                f"output={folder} exists already: name a folder that is not there"
            )

    def _record(self) -> dict[str, Any]:
        """Return what run.json says of the sources."""
        files = {
            key: {
                "file": str(source.path.absolute()),
                "sha256": source.sha256,
                "weights": "EMA" if self._is_averaged(source) else "live",
                "also_there": entries_of(source.path, key),
            }
            for key, source in self.sources.items()
        }
        return {"files": files, "missing": self.missing, "vocabulary": self.words_from}

    def _is_averaged(self, source: Source) -> bool:
        # AttnGAN and DM-GAN save the average of the generator's weights, with live batch norms.
        return source.slot.key == "generator" and source.slot.system in ("attn_gan", "dm_gan")

    def _write_checkpoint(self, run: Path) -> None:
        tensors = {k: v for source in self.sources.values() for k, v in source.tensors.items()}
        if (
            self.system.emas
        ):  # one file gives both: the live weights behind an EMA are published by nobody
            tensors |= {
                k.replace("generator.", "generator_ema.", 1): v.clone()
                for k, v in tensors.items()
                if k.startswith("generator.")
            }
        folder = folder_of(run, self.images)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS)
        save_file({}, folder / OPTIMIZERS)
        state: dict[str, Any] = {
            "format": FORMAT,
            "progress": {"images_seen": self.images, "step": 0, "seconds": 0.0},
            "files": {name: _described(folder / name) for name in (WEIGHTS, OPTIMIZERS)},
            "origin": self._origin(run),
        }
        state["checksum"] = sha256_of_json(state)
        write_json(folder / STATE, state)

    def _origin(self, run: Path) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.timezone.utc)
        return {
            "run": run.name,
            "vocabulary": self.vocabulary.sha256 if self.vocabulary else "",
            "engine": CONVERTED,
            "versions": {"t2i_hpc": t2i_hpc.__version__, "torch": str(torch.__version__)},
            "time": now.isoformat(timespec="seconds"),
        }

    def _write_encoders(self, run: Path) -> None:
        """Write the files that pre-training leaves for other trainings."""
        notes = {"format": "pt"}
        notes |= {VOCABULARY_NOTE: self.vocabulary.sha256} if self.vocabulary else {}
        for key, source in self.sources.items():
            save_file(source.module.state_dict(), run / f"{key}.safetensors", notes)

    def lines(self) -> list[str]:
        """Say what the run is made of, for people."""
        lines = [source.text() for source in self.sources.values()]
        if averaged := [s for s in self.sources.values() if self._is_averaged(s)]:
            lines.append(
                f"{averaged[0].path} holds the EMA of the generator's weights: it is both "
                "generator and generator_ema here, since nobody published the live weights"
            )
        files = {source.path: key for key, source in self.sources.items()}
        for path, key in files.items():  # one may give several networks
            taken = {NESTED.get(k, "") for k, source in self.sources.items() if source.path == path}
            if others := set(entries_of(path, key)) - {"model", *taken}:
                lines.append(f"{path}: {', '.join(sorted(others))} left out")
        words = f"{self.vocabulary.size:,} words of {self.words_from}" if self.vocabulary else ""
        lines.append(f"vocabulary: {words or 'none given: captions need data.path='}")
        if self.missing:
            lines.append(
                f"not given: {', '.join(self.missing)}; a training that starts from this run "
                "draws them anew"
            )
        return lines


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}


def read_published_run(config: ConvertConfig, training: TrainConfig) -> PublishedRun:
    """Read the files that the settings name, and compare them with the experiment.

    Args:
        config: of `convert`.
        training: the experiment that the files belong to.

    Raises:
        UserError: a file is missing, damaged or of another network, system, size or vocabulary.
    """
    slots = {slot.key: slot for slot in slots_of(training.system)}
    paths = _paths(config, slots, training.system.name)
    sources = {key: _source(slots[key], path) for key, path in paths.items()}
    if isinstance(training.system, CLIPGANConfig):
        vocabulary, words_from, rows, halves = _clip_tokens(training, training.system)
        sources |= halves
    else:
        rows = sizes_of("damsm", "text", sources[TEXT].module)["vocabulary_size"]
        vocabulary, words_from = _vocabulary(config, training, sources[TEXT].path, rows)
    with checkpoint_follows():  # no other file of weights is looked for
        outline = outline_system(training.system, rows)
    if outline is None:
        raise TypeError(f"{training.system.name} cannot be outlined")
    for source in sources.values():
        check_fit(source, outline, training.system)
    networks = dict(outline.modules.items())
    check_caption_length(networks, training.data.max_tokens, "data.max_tokens")
    return PublishedRun(
        training, sources, outline, vocabulary, words_from, config.images, config.output
    )


def _clip_tokens(
    training: TrainConfig, system: CLIPGANConfig
) -> tuple[Vocabulary | None, str, int, dict[str, Source]]:
    """Return CLIP's tokens, where they are from, their number, and both halves of its folder."""
    if not training.data.tokenizer:
        raise ConversionError(
            "data.tokenizer= is empty: name the tokenizer.json of the CLIP of system.clip"
        )
    tokens = open_vocabulary(training.data)
    text, vision = build_clip(system, tokens.size)
    halves = {TEXT: text, "clip": vision}
    sources = {
        name: Source(Slot(name, "clip_gan", name, name), Path(system.clip), module)
        for name, module in halves.items()
    }
    return tokens, f"data.tokenizer={training.data.tokenizer}", tokens.size, sources


def _paths(config: ConvertConfig, slots: Mapping[str, Slot], system: str) -> dict[str, Path]:
    """Return the files by network; one that holds several networks gives all of them."""
    named = {f.name: getattr(config, f.name) for f in fields(config) if f.name in NETWORKS}
    for key, value in named.items():
        if value and key not in slots:
            offered = ", ".join(f"{name}=" for name in slots)
            raise ConversionError(f"{key}= is no network of system={system}: name {offered}")
    given = {key: Path(value) for key, value in named.items() if value}
    for key in ("generator", "discriminator"):
        if key in given and slots[key].system in SEVERAL:
            others = {name for name in other_networks(given[key], key) if name in slots}
            given |= dict.fromkeys(others - given.keys(), given[key])
    for key in ("generator", TEXT):
        if key in slots and key not in given:
            raise ConversionError(f"{key}= names no file: name the published {key}'s")
    if "discriminator" in given and "head" in slots and "head" not in given:
        raise ConversionError(
            f"discriminator={given['discriminator']} holds no conditional head: name that too, "
            "head=netC_….pth"
        )
    return {key: given[key] for key in slots if key in given}


def _source(slot: Slot, path: Path) -> Source:
    tensors = read_tensors(path, slot.system, slot.network, slot.key)
    try:
        return Source(slot, path, import_any(slot.system, slot.network, tensors))
    except ConversionError as error:
        raise ConversionError(f"{slot.key}={path}: {error}") from error


def _vocabulary(
    config: ConvertConfig, training: TrainConfig, text_encoder: Path, rows: int
) -> tuple[Vocabulary | None, str]:
    """Return the words of the text encoder, and where they are from; compare their number."""
    vocabulary, source = _open_words(config, training)
    if vocabulary is None:
        return None, ""
    if vocabulary.size != rows:
        raise ConversionError(
            f"text_encoder={text_encoder} knows {rows:,} words and {source} has "
            f"{vocabulary.size:,}: they do not belong together, so name the words that it was "
            "trained with, vocabulary=captions.pickle"
        )
    if text_encoder.suffix == ".safetensors":
        known = vocabulary_of(text_encoder, TEXT)
        advice = "name the words that it was trained with"
        check_same_words(f"text_encoder={text_encoder}", known, vocabulary.sha256, advice)
    return vocabulary, source


def _open_words(config: ConvertConfig, training: TrainConfig) -> tuple[Vocabulary | None, str]:
    path = Path(config.vocabulary)
    if not config.vocabulary:
        try:
            return open_vocabulary(training.data), f"data.path={training.data.path}"
        except UserError:  # the data may come later
            return None, ""
    if not path.is_file():
        raise ConversionError(
            f"vocabulary={path}: there is no such file; name the captions.pickle that was "
            "published with the text encoder, or data.path= of shards with its words"
        )
    if path.suffix != _PICKLE:
        return Vocabulary.load(path), str(path)
    from t2i_hpc.data.build.sources.pickles import read_published

    return Vocabulary(read_published(path).words), str(path)
