"""The first weights of a run that starts from others: chosen, compared, loaded, recorded.

Networks are taken whole. Only the word embeddings of a text encoder may differ in size: with
another vocabulary each word finds its own row, and words that are new keep fresh rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError, RunError, UserError, nearest
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import Vocabulary, check_same_words
from t2i_hpc.runs.checkpoint import read_tensors
from t2i_hpc.runs.inputs import run_vocabulary, with_inputs
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.runs.run_directory import open_run, recorded_files
from t2i_hpc.runs.start_from import KEY, Start, find_start
from t2i_hpc.systems.base import System

_TEXT = "text_encoder"
_EMBEDDINGS = (
    f"{_TEXT}.embedding.weight",
    f"{_TEXT}.bert.embeddings.word_embeddings.weight",
)
_SHOWN = 4  # tensors or words in a message
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Words:
    """The words of a text encoder, before and now."""

    before: Sequence[str]
    now: Sequence[str]

    @property
    def new(self) -> list[str]:
        """Words that the encoder has not seen."""
        known = set(self.before)
        return [word for word in self.now if word not in known]

    def moved(self, rows: Tensor, fresh: Tensor) -> Tensor:
        """Return embeddings (N, E) of the words now, from rows (B, E) of those before.

        Rows behind the words (BERT's special tokens) keep their places behind them.
        """
        place = {word: number for number, word in enumerate(self.before)}
        result = fresh.clone()
        known = [(number, place[word]) for number, word in enumerate(self.now) if word in place]
        now, before = zip(*known, strict=True)  # padding is known to all
        result[list(now)] = rows[list(before)]
        result[len(self.now) :] = rows[len(self.before) :]
        return result


@dataclass(frozen=True)
class FirstWeights:
    """What a run takes from its start, compared with the run's own system.

    Attributes:
        start: where it is from.
        networks: that are taken.
        others: the system's networks that begin anew.
        words: of a text encoder with another vocabulary; None: its rows fit as they are.
    """

    start: Start
    networks: tuple[str, ...]
    others: tuple[str, ...]
    words: Words | None = None

    @classmethod
    def plan(cls, config: TrainConfig, system: System, vocabulary: Vocabulary) -> FirstWeights:
        """Choose what to take and compare it; no tensor is read, and `system` may be an outline.

        Raises:
            UserError: the start is not there, damaged, or does not fit; names the tensors.
        """
        start = find_start(config.start_from)
        shapes = start.shapes()
        names = _chosen(config, start, shapes, set(system.modules))
        words = _words(start, vocabulary) if _TEXT in names else None
        wanted = {name: tuple(value.shape) for name, value in system.modules.state_dict().items()}
        _check_shapes(start, names, shapes, wanted, words)
        averaged = {"generator_ema"} if "generator" in names else set[str]()
        others = sorted({*system.modules} - names - averaged)
        return cls(start, tuple(sorted(names)), tuple(others), words)

    def load(self, system: System) -> None:
        """Put the weights into a system; an EMA that is not taken begins at what it averages.

        Raises:
            RunError: a file cannot be read.
        """
        own = system.modules.state_dict()
        prefixes = tuple(f"{name}." for name in self.networks)
        found = {self.start.name(n): v for n, v in read_tensors(*self.start.files).items()}
        taken = {name: value for name, value in found.items() if name.startswith(prefixes)}
        if self.words is not None:
            taken |= {
                n: self.words.moved(taken[n], own[n].cpu()) for n in _EMBEDDINGS if n in taken
            }
        system.modules.load_state_dict(taken, strict=False)
        targets = {id(system.modules[name]) for name in self.networks}
        for ema in system.emas:
            if id(ema.target) not in targets:
                ema.target.load_state_dict(ema.source.state_dict())

    def lines(self) -> list[str]:
        """Say what is taken, for people."""
        after = f" after {self.start.images:,} images" if self.start.images else ""
        lines = [f"starting from {self.start.given}{after}: {', '.join(self.networks)}"]
        lines[0] += "; optimizers begin anew"
        if self.others:
            lines.append(f"not from there, with first weights: {', '.join(self.others)}")
        if self.words is not None and (new := self.words.new):
            total = len(self.words.now)
            shown = ", ".join(new[:_SHOWN]) + (", …" if len(new) > _SHOWN else "")
            lines.append(
                f"text encoder: {total - len(new):,} of {total:,} words are known to "
                f"{self.start.given}; {len(new):,} are new and begin at random ({shown})"
            )
        return lines

    def record(self) -> dict[str, Any]:
        """Return what run.json keeps."""
        start = self.start
        return {
            "given": start.given,
            "path": str(Path(start.given).absolute()),
            "files": [str(path) for path in start.files],
            "sha256": start.sha256,
            "images": start.images,
            "networks": list(self.networks),
            "new_words": len(self.words.new) if self.words is not None else 0,
        }


def changed_start(folder: Path, config: TrainConfig) -> str:
    """Return a notice of a run that resumes while its start holds other weights; "" of others."""
    digest = recorded_files(folder).get(KEY)
    if not config.start_from or digest is None or not list_checkpoints(folder):
        return ""
    try:
        now = find_start(config.start_from)
    except UserError:  # the run does without
        return ""
    if now.sha256 == digest:
        return ""
    return (
        f"{now.title} holds other weights now than this run began with, and it resumes with its "
        "own: another name= begins a run with the new ones"
    )


def given_networks(config: TrainConfig) -> set[str]:
    """Return the names of the networks that a start gives, whatever system takes them.

    Raises:
        UserError: the start is not there or damaged.
    """
    if not config.start_from:
        return set()
    asked = set(config.start_from_networks)
    return asked or _networks_in(find_start(config.start_from).shapes()) - _named(config)


def _networks_in(shapes: Shapes) -> set[str]:
    return {name.split(".")[0] for name in shapes}


def _named(config: TrainConfig) -> set[str]:
    """Return the encoders whose weights a setting names."""
    encoders = {name: getattr(config.system, name, None) for name in (_TEXT, "image_encoder")}
    return {name for name, encoder in encoders.items() if getattr(encoder, "weights", "")}


def _chosen(config: TrainConfig, start: Start, shapes: Shapes, own: AbstractSet[str]) -> set[str]:
    there, asked, named = _networks_in(shapes), set(config.start_from_networks), _named(config)
    for name in sorted(asked):
        if name not in own:
            raise ConfigurationError(f"{KEY}_networks: {name} is not offered: {nearest(name, own)}")
        if name not in there:
            raise ConfigurationError(
                f"{KEY}_networks: {start.given} has no {name}; it has {', '.join(sorted(there))}"
            )
        if name in named:
            raise ConfigurationError(
                f"{KEY}_networks and system.{name}.weights both name weights of {name}: leave one"
            )
    chosen = asked or (there & own) - named
    if not chosen:
        raise ConfigurationError(
            f"{start.title} has nothing for this run: it has {', '.join(sorted(there))}, the "
            f"system {', '.join(sorted(own))}"
            + (" (some named by system.*.weights)" if named else "")
        )
    return chosen


def _words(start: Start, vocabulary: Vocabulary) -> Words | None:
    """Return the words of a start and of the run, None where they are the same or unknown.

    Raises:
        RunError: they differ, and those of the start are nowhere.
    """
    if start.vocabulary == vocabulary.sha256:
        return None
    before = _vocabulary_of(start)
    if before is None:
        advice = "name the run itself, which keeps its words, to match them word by word"
        check_same_words(start.title, start.vocabulary, vocabulary.sha256, advice)
        return None
    return None if before.words == vocabulary.words else Words(before.words, vocabulary.words)


def _vocabulary_of(start: Start) -> Vocabulary | None:
    if start.run is None:
        return None
    try:
        return run_vocabulary(start.run, with_inputs(start.run, open_run(start.run)).data)
    except UserError:  # a run of before vocabularies were kept, whose data is gone
        return None


def _check_shapes(
    start: Start,
    networks: AbstractSet[str],
    found: Shapes,
    wanted: Shapes,
    words: Words | None,
) -> None:
    """Refuse tensors that are missing, unexpected or of another shape, by name."""
    bad: dict[str, list[str]] = {}
    for name in sorted(found.keys() | wanted.keys()):
        network = name.split(".")[0]
        if network not in networks:
            continue
        if name not in found or name not in wanted:
            where = start.given if name not in found else "this run"
            bad.setdefault(network, []).append(f"{name} is not in {where}")
        elif _compared(name, found[name], words, 0) != _compared(name, wanted[name], words, 1):
            bad.setdefault(network, []).append(f"{name} is {found[name]}, not {wanted[name]}")
    if bad:
        reasons = [reason for each in bad.values() for reason in each]
        rest = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        fit = sorted(networks - bad.keys())
        advice = f"or take {KEY}_networks=[{','.join(fit)}]" if fit else "or another start"
        raise RunError(
            f"{start.title} does not fit: {'; '.join(reasons[:_SHOWN])}{rest}; take the settings "
            f"of system that it was trained with, {advice}"
        )


def _compared(
    name: str, shape: tuple[int, ...], words: Words | None, which: int
) -> tuple[int, ...]:
    """Return a shape, of embeddings by what they have beside words."""
    if words is None or name not in _EMBEDDINGS or not shape:
        return shape
    return (shape[0] - len((words.before, words.now)[which]), *shape[1:])
