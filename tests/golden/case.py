"""Reading a golden case and comparing with it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.convert import import_reference
from t2i_hpc.convert.names import reference_names
from t2i_hpc.convert.networks import find_network
from t2i_hpc.convert.reference import with_dead_convolutions
from tests.golden import fill

_FOLDER = Path(__file__).parent
NORM = 1e-4  # relative
VALUE = 2e-4  # absolute


class Case:
    """One case: `facts` of its JSON, `values` that the reference computed."""

    def __init__(self, name: str) -> None:
        self.facts: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
        with np.load(_FOLDER / f"{name}.npz") as archive:
            self.values = {key: archive[key] for key in archive.files}
        self.seed = int(self.facts["seed"])
        self.batch = int(self.facts["batch"])
        self.step = int(self.facts.get("subsample", 8))

    def weights(self, part: str, number: str = "", *, gain: float = 1.0) -> dict[str, Tensor]:
        """Fill a part; `number` tells several of one kind apart."""
        shapes = self.facts[part][int(number)] if number else self.facts[part]
        return fill.state_dict(shapes, self.seed, gain)

    def network(self, system: str, name: str, part: str, gain: float = 1.0) -> nn.Module:
        return import_reference(system, name, self.weights(*part.split(), gain=gain))

    def input(self, name: str, *shape: int, scale: float = 1.0) -> Tensor:
        return fill.values(name, (self.batch, *shape), self.seed, scale)

    def images(self, name: str = "x") -> Tensor:
        return fill.images(name, self.batch, self.seed)

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(self.values[name])

    def check(self, name: str, found: Tensor) -> None:
        """Compare norm, mean and values (every `step`-th pixel of large maps)."""
        wide = found.detach().double()
        self.check_norm(name, wide)
        if f"{name}.mean" in self.values:
            mean = pytest.approx(float(self.values[f"{name}.mean"]), abs=VALUE)
            assert wide.mean().item() == mean, name
        if found.ndim == 4 and found.shape[-1] >= 64:
            wide = wide[..., :: self.step, :: self.step]
        self.check_values(name, wide)

    def check_values(self, name: str, found: Tensor) -> None:
        stored = self.values.get(name, self.values.get(f"{name}.sub"))
        assert stored is not None, name
        np.testing.assert_allclose(found.detach(), stored, rtol=0, atol=VALUE, err_msg=name)

    def check_norm(self, name: str, found: Tensor) -> None:
        expected = pytest.approx(float(self.values[f"{name}.l2"]), rel=NORM)
        assert found.detach().double().norm().item() == expected, name


@cache
def case(name: str) -> Case:
    """Read a case once."""
    return Case(name)


def names(system: str, network: str, module: nn.Module) -> list[tuple[str, str | None]]:
    """Return (their name, our name) of every tensor, in their order; None where it is dead."""
    (reference,) = (one for one in find_network(system, network) if one.kind is type(module))
    own = module.state_dict()
    found = reference_names(reference.patterns, with_dead_convolutions(reference.patterns, own))
    return [(theirs, ours if ours in own else None) for theirs, ours in found.items()]


def published(name: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a published network's state dict, in its order."""
    rows = (_FOLDER / "keys" / f"{name}.tsv").read_text().splitlines()
    columns = (row.split("\t") for row in rows)
    return {key: tuple(json.loads(_as_list(shape))) for key, shape, _ in columns}


def _as_list(shape: str) -> str:
    return "[" + shape.strip("()").rstrip(",") + "]"
