"""A run's networks as one graph that other programs run: torch.export's, or ONNX.

Traps, measured with torch 2.14.1 (docs/python.md has what follows from them for users):

- A packed LSTM cannot be exported by torch.export: its steps depend on the captions. It becomes
  two LSTMs of one direction over padded captions, which give the same features.
- Whatever asks for its own mode is exported in that mode: networks are put into evaluation first.
- Noise is an input: random numbers of a graph would be another program's.
- Equal parameters become one when an ONNX graph is optimized, so it is written as it was traced,
  and every weight can be found by its name.
- ONNX has no inverse of the normal distribution, which DF-GAN's noise is cut by: Newton's method
  takes its place, by functions that ONNX has.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.models.text_encoder import LSTMTextEncoder, TextEncoder, TextFeatures
from t2i_hpc.sampling.arithmetic import generating
from t2i_hpc.sampling.trained_run import TrainedRun
from t2i_hpc.systems.base import GAN
from t2i_hpc.systems.staged_gan import StagedGAN

TOLERANCE = 1e-4  # of what the written file computes, against the networks
FILES = {"torch_export": "model.pt2", "onnx": "model.onnx"}
_EXTRA = "pip install 't2i-hpc[export]'"
_BATCHES = (2, 3)  # that a graph is traced with, and tried with


@dataclass(frozen=True)
class Graph:
    """What is exported, and what it takes and gives.

    Attributes:
        network: takes `inputs`, gives `outputs`, on the CPU in float32.
        inputs: names in order.
        outputs: names in order.
        example: makes inputs of a batch.
    """

    network: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: Callable[[int], tuple[Tensor, ...]]

    @torch.no_grad()
    def run(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return the networks' own outputs."""
        return list(self.network(*given))


class PaddedLSTMEncoder(TextEncoder):
    """An :class:`LSTMTextEncoder` in evaluation mode without packed captions.

    The backward direction reads each caption mirrored within its length, so both directions
    meet padding only after the last word.
    """

    def __init__(self, encoder: LSTMTextEncoder) -> None:
        super().__init__()
        self.width, self.embedding = encoder.width, encoder.embedding
        weights = encoder.lstm.state_dict()
        ahead = {name: value for name, value in weights.items() if not name.endswith("_reverse")}
        self.ahead = _one_way(encoder.lstm, ahead)
        self.back = _one_way(encoder.lstm, {name: weights[f"{name}_reverse"] for name in ahead})

    def forward(self, tokens: Tensor, lengths: Tensor) -> TextFeatures:
        """Encode tokens int64 (B, T) of `lengths` int64 (B,), 1 ≤ length ≤ T."""
        embedded = self.embedding(tokens)
        place = torch.arange(tokens.shape[1], device=tokens.device)[None]
        inside = place < lengths[:, None]
        mirror = torch.where(inside, lengths[:, None] - 1 - place, place)
        ahead, _ = self.ahead(embedded)
        mirrored, _ = self.back(_taken(embedded, mirror))
        back = _taken(mirrored, mirror)
        words = torch.cat([ahead, back], 2) * inside[:, :, None]
        last = _taken(ahead, lengths[:, None] - 1)[:, 0]
        return TextFeatures(words.transpose(1, 2), torch.cat([last, back[:, 0]], 1))


def _one_way(lstm: nn.LSTM, weights: dict[str, Tensor]) -> nn.LSTM:
    made = nn.LSTM(lstm.input_size, lstm.hidden_size, batch_first=True)
    made.load_state_dict(weights)
    return made


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """Return rows of values (B, T, D) at places int64 (B, n): (B, n, D)."""
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))


class _Images(nn.Module):
    """The generator: noise and sentences, of staged systems also words, to images."""

    def __init__(self, system: GAN) -> None:
        super().__init__()
        self._system = system
        self.generator = system.emas[0].target if system.emas else system.generator

    def made(self, text: TextFeatures, lengths: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Return the last image, masks, and attention."""
        found = self._system.synthesize(self.generator, text, lengths, noise)
        return (found.images[-1], *found.masks, *found.attention)


class _SentenceToImages(_Images):
    def forward(self, noise: Tensor, sentence: Tensor) -> tuple[Tensor, ...]:
        return self.made(TextFeatures(sentence[:, :, None], sentence), noise, noise)


class _WordsToImages(_Images):
    def forward(
        self, noise: Tensor, sentence: Tensor, words: Tensor, lengths: Tensor
    ) -> tuple[Tensor, ...]:
        return self.made(TextFeatures(words, sentence), lengths, noise)


class _CaptionToImages(_Images):
    def __init__(self, system: GAN) -> None:
        super().__init__(system)
        encoder = system.text_encoder
        if isinstance(encoder, LSTMTextEncoder):
            encoder = PaddedLSTMEncoder(encoder)
        self.text_encoder = encoder

    def forward(self, tokens: Tensor, lengths: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return self.made(self.text_encoder(tokens, lengths), lengths, noise)


def graph_of(trained: TrainedRun, what: str) -> Graph:
    """Return what is exported of a run.

    Args:
        trained: the run.
        what: generator (of encoded captions), or all (of tokens).

    Raises:
        ConfigurationError: another network, or a system that has none of these.
    """
    if not isinstance(trained.system, GAN):
        raise ConfigurationError(
            f"{trained.config.system.name} is a system of your own: graphs are made of GANs that "
            "derive from t2i_hpc.systems.base.GAN"
        )
    system = copy.copy(trained.system)
    system.modules = copy.deepcopy(trained.system.modules).cpu().float().eval()
    longest, words = trained.config.data.max_tokens, trained.vocabulary.size
    staged = isinstance(system, StagedGAN)

    def example(batch: int) -> tuple[Tensor, ...]:
        drawn = torch.Generator().manual_seed(batch)
        noise = torch.randn(batch, system.noise_width, generator=drawn)
        lengths = torch.randint(1, longest + 1, (batch,), generator=drawn)
        tokens = torch.randint(1, words, (batch, longest), generator=drawn)
        if what == "all":
            return tokens, lengths, noise
        with torch.no_grad():
            text = trained.system.modules["text_encoder"].cpu().eval()(tokens, lengths)
        return (noise, text.sentence, text.words, lengths) if staged else (noise, text.sentence)

    inputs = {
        "all": ("tokens", "lengths", "noise"),
        "generator": ("noise", "sentence", "words", "lengths")[: 4 if staged else 2],
    }
    if what not in inputs:
        raise ConfigurationError(
            f"what={what} is no graph: take what=generator (of encoded captions) or what=all (of "
            "tokens)"
        )
    kinds = {"all": _CaptionToImages, "generator": _WordsToImages if staged else _SentenceToImages}
    network = kinds[what](_of_copies(system)).eval()
    with torch.no_grad():
        found = network(*example(_BATCHES[0]))
    maps = "attention" if staged else "mask"
    outputs = ("images", *(f"{maps}_{number}" for number in range(len(found) - 1)))
    return Graph(network, inputs[what], outputs, example)


def _of_copies(system: GAN) -> GAN:
    """Let a copied system use its copied networks."""
    named: dict[str, Any] = dict(system.modules.items())
    system.text_encoder = named["text_encoder"]
    if system.emas:
        system.emas = [replace(system.emas[0], target=named["generator_ema"])]
    else:
        system.generator = named["generator"]
    return system


def write_graph(graph: Graph, form: str, folder: Path) -> Path:
    """Write a graph, run it by what other programs run it by, and compare; return its path.

    Args:
        graph: what is exported.
        form: torch_export or onnx.
        folder: where to write.

    Raises:
        ConfigurationError: a package is missing.
        RunError: torch cannot export it, or the file computes something else.
    """
    path = folder / FILES[form]
    given = graph.example(_BATCHES[0])
    dimensions = tuple({0: torch.export.Dim.DYNAMIC} for _ in graph.inputs)
    write = _write_onnx if form == "onnx" else _write_program
    try:
        # torch warns of its own deprecations here, and its exporter prints its progress.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), generating("float32", _CPU):
            warnings.simplefilter("ignore")
            write(graph, given, dimensions, path)
    except ConfigurationError:
        raise
    except Exception as error:  # exporters raise errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"format={form}: torch cannot export these networks: {reason}") from error
    _compare(graph, _runner(form, path), form)
    return path


_CPU = torch.device("cpu")


def _write_program(
    graph: Graph, given: tuple[Tensor, ...], dimensions: tuple[Any, ...], path: Path
) -> None:
    torch.export.save(torch.export.export(graph.network, given, dynamic_shapes=dimensions), path)


def _write_onnx(
    graph: Graph, given: tuple[Tensor, ...], dimensions: tuple[Any, ...], path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise ConfigurationError(f"format=onnx needs an extra: {_EXTRA}")
    program = torch.export.export(graph.network, given, dynamic_shapes=dimensions)
    torch.onnx.export(
        program.run_decompositions(_MISSING_IN_ONNX),
        (),
        path,
        input_names=graph.inputs,
        output_names=graph.outputs,
        dynamic_shapes=dimensions,
        optimize=False,
        external_data=False,
        verbose=False,
    )


def normal_share(value: Tensor) -> Tensor:
    """Return how much of the normal distribution lies below: as ``torch.special.ndtr``.

    In float32, for onnxruntime has no erf of float64.
    """
    return (0.5 * (1 + torch.erf(value.float() * math.sqrt(0.5)))).to(value.dtype)


def normal_quantile(share: Tensor) -> Tensor:
    """Return where a share of the normal distribution ends: as ``torch.special.ndtri``.

    Off by 2e-6 at most between ±2 deviations, where DF-GAN's noise is cut.
    """
    given = share.float()
    found = torch.zeros_like(given)
    for _ in range(_NEWTON_STEPS):
        slope = math.sqrt(2 * math.pi) * torch.exp(0.5 * found * found)
        found = found - (normal_share(found) - given) * slope
    return found.to(share.dtype)


_NEWTON_STEPS = 8  # from 0 to ±2 deviations; 6 would do
_MISSING_IN_ONNX: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.special_ndtr.default: normal_share,
    torch.ops.aten.special_ndtri.default: normal_quantile,
}


def _runner(form: str, path: Path) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Return what runs a written file as other programs do."""
    if form == "torch_export":
        program = torch.export.load(path).module()
        return lambda given: list(program(*given))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, fed)]

    return run


def _compare(graph: Graph, run: Callable[[Sequence[Tensor]], list[Tensor]], form: str) -> None:
    """Compare the file with the networks, on a batch of another size than it was traced with.

    Raises:
        RunError: it computes something else.
    """
    given = graph.example(_BATCHES[1])
    with torch.no_grad():
        pairs = zip(graph.outputs, graph.run(given), run(given), strict=True)
        worst = max((float((a - b).abs().max()), name) for name, a, b in pairs)
    if not worst[0] <= TOLERANCE:
        raise RunError(
            f"the file of format={form} gives {worst[1]} {worst[0]:.2g} off what the networks give "
            f"(at most {TOLERANCE:g} is expected): report it with the versions of torch and onnx"
        )
