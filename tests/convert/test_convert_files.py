"""The command `convert`: files in, files out, and what it refuses."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t2i_hpc.convert import export_reference, import_reference
from t2i_hpc.convert.__main__ import COMMAND
from t2i_hpc.convert.checkpoint_files import entries_of
from t2i_hpc.models.discriminator import DFHead
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.systems.encoders import load_weights
from tests.golden.case import case
from tests.support.training import run_task

TEXT = ("system=damsm", "network=text")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text_encoder200.pth"
    torch.save({f"module.{k}": v for k, v in case("damsm").weights("text").items()}, path)
    return path


def convert(*arguments: object) -> int:
    return COMMAND.main([str(word) for word in arguments])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert convert(*arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    return printed.err


def test_to_safetensors_and_back(tmp_path: Path, text: Path) -> None:
    output, back = tmp_path / "text.safetensors", tmp_path / "back.pth"
    done = run_task("convert", *TEXT, f"input={text}", f"output={output}")
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert f"sha256 {digest}" in done.stdout
    size = f"{output.stat().st_size:,} bytes"
    assert re.search(rf"LSTMTextEncoder\), [\d,]+ parameters, {size}", done.stdout), done.stdout

    encoder = LSTMTextEncoder(60)
    load_weights(encoder, output, "system.text_encoder.weights")
    weights = case("damsm").weights("text")
    assert torch.equal(encoder.embedding.weight, weights["encoder.weight"])
    with safe_open(output, "pt") as file:
        source = hashlib.sha256(text.read_bytes()).hexdigest()
        notes = {"format": "pt", "system": "damsm", "network": "text", "source": source}
        assert file.metadata() == notes

    assert convert(*TEXT, "direction=export", f"input={output}", f"output={back}") == 0
    again = torch.load(back, weights_only=True)
    assert list(again) == list(weights)
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_files_of_torch_before_1_6(tmp_path: Path) -> None:
    """The published files are of that age: a row of pickles instead of a zip."""
    old, output = tmp_path / "old.pth", tmp_path / "new.safetensors"
    weights = OrderedDict(case("dfgan").weights("C"))
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    assert convert("system=df_gan", "network=head", f"input={old}", f"output={output}") == 0
    assert torch.equal(load_file(output)["logit.weight"], weights["joint_conv.2.weight"])


@pytest.mark.parametrize(
    ("network", "key", "kind"),
    [
        ("generator", "G", "DFGenerator"),
        ("discriminator", "D", "DFDiscriminator"),
        ("head", "C", "DFHead"),
    ],
)
def test_a_network_of_df_gans_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: str, key: str, kind: str
) -> None:
    networks = {f"net{letter}": case("dfgan").weights(letter) for letter in "GDC"}
    whole = {"model": networks, "optimizers": {"optimizer_G": {"state": {}}}, "epoch": 3}
    torch.save(whole, tmp_path / "state_epoch_003.pth")
    first, back = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    arguments = ("system=df_gan", f"network={network}")
    assert convert(*arguments, f"input={tmp_path}/state_epoch_003.pth", f"output={first}") == 0
    assert f"df_gan {network} ({kind})" in capsys.readouterr().out
    expected = import_reference("df_gan", network, networks[f"net{key}"]).state_dict()
    found = load_file(first)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert convert(*arguments, "direction=export", f"input={first}", f"output={back}") == 0
    assert list(torch.load(back, weights_only=True)) == list(networks[f"net{key}"])


def test_a_checkpoint_without_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"netG": case("dfgan").weights("G")}}, tmp_path / "a.pth")
    arguments = (f"input={tmp_path}/a.pth", f"output={tmp_path}/b.safetensors")
    assert "holds netG, but not netC" in refusal(
        capsys, "system=df_gan", "network=head", *arguments
    )
    assert "holds netG, but not" in refusal(
        capsys, "system=ssa_gan", "network=generator", *arguments
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html><title>Google Drive</title>", "is no checkpoint but a web page: down"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is no checkpoint but a pointer of G"),
        (b"hello", "is no whole file of torch.save"),
    ],
)
def test_what_a_download_left(
    content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    arguments = (f"input={tmp_path}/a.pth", f"output={tmp_path}/b.safetensors")
    assert reason in refusal(capsys, *TEXT, *arguments)


def test_what_is_left_out_of_a_file(tmp_path: Path) -> None:
    """A network that is there alone is the one that is read."""
    weights = {"weight": torch.zeros(1)}
    for content, named in (
        ({"state_dict": weights, "epoch": 3}, {"epoch"}),
        ({"model": {"netG": weights}, "optimizers": {"optimizer_G": {}}}, {"netG", "optimizers"}),
        ({"netG": weights, "netD": weights}, {"netG", "netD"}),
        (weights, set[str]()),
    ):
        torch.save(content, tmp_path / "a.pth")
        assert {*entries_of(tmp_path / "a.pth")} - {"model"} == named


def test_files_without_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert "experiment= is missing" in refusal(capsys, "generator=a.pth", "text_encoder=b.pth")


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_pickles_of_more_than_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder.weight": Harmful()}, "a.pth")
    arguments = (*TEXT, "input=a.pth", "output=b.safetensors")
    assert "is not unpickled because" in refusal(capsys, *arguments)
    torch.save([torch.zeros(2)], "a.pth")
    assert "holds a list, not tensors by name" in refusal(capsys, *arguments)
    torch.save({"encoder.weight": 3}, "a.pth")
    assert "'encoder.weight' is of type int" in refusal(capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint at all", b"PK\x03\x04" + bytes(60)],
    ids=["empty", "text", "half a zip"],
)
def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        arguments = (*TEXT, f"input={tmp_path / name}", f"output={tmp_path}/b.safetensors")
        assert f"input={tmp_path / name} is" in refusal(capsys, *arguments)


def test_wrong_arguments(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"output={tmp_path}/b.safetensors"
    given = f"input={text}"
    assert "there is no such file" in refusal(capsys, *TEXT, f"input={text}.old", out)
    assert "there is no such file" in refusal(capsys, *TEXT, f"input={tmp_path}", out)
    assert "network=texts is not offered for damsm" in refusal(
        capsys, "system=damsm", "network=texts", given, out
    )
    assert "system= is not offered" in refusal(capsys, given, out)
    assert "emb_features.weight" in refusal(capsys, "system=damsm", "network=image", given, out)
    assert "output=(empty)" in refusal(capsys, *TEXT, given)
    assert "writes a .pth file" in refusal(capsys, *TEXT, "direction=export", given, out)
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_output_that_exists_is_kept(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "b.safetensors"
    output.write_bytes(b"precious")
    error = refusal(capsys, *TEXT, f"input={text}", f"output={output}")
    assert "exists already" in error
    assert output.read_bytes() == b"precious"


def test_exporting_another_networks_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(DFHead(2).state_dict(), tmp_path / "head.safetensors")
    arguments = (
        f"input={tmp_path}/head.safetensors",
        f"output={tmp_path}/b.pth",
        "direction=export",
    )
    error = refusal(capsys, "system=damsm", "network=text", *arguments)
    assert "none of our names of this network" in error
    save_file({**DFHead(2).state_dict(), "more": torch.zeros(1)}, tmp_path / "head.safetensors")
    error = refusal(capsys, "system=df_gan", "network=head", *arguments)
    assert "1 unexpected: more" in error
    assert export_reference("df_gan", "head", DFHead(2)).keys()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_names_of_compiled_networks(tmp_path: Path, prefix: str) -> None:
    weights = case("damsm").weights("text")
    torch.save({prefix + name: value for name, value in weights.items()}, tmp_path / "a.pth")
    arguments = (f"input={tmp_path / 'a.pth'}", f"output={tmp_path / 'a.safetensors'}")
    assert convert(*TEXT, *arguments) == 0
    written = load_file(tmp_path / "a.safetensors")
    assert torch.equal(written["embedding.weight"], weights["encoder.weight"])


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.float32, np.bool_])
def test_a_state_dict_as_trainers_wrap_it(tmp_path: Path, kind: Any) -> None:
    weights = case("damsm").weights("text")
    wrapped = {"state_dict": weights, "epoch": kind(1), "optimizer": {"state": {0: kind(1)}}}
    torch.save(wrapped, tmp_path / "a.pth")
    arguments = (f"input={tmp_path / 'a.pth'}", f"output={tmp_path / 'a.safetensors'}")
    assert convert(*TEXT, *arguments) == 0
    written = load_file(tmp_path / "a.safetensors")
    assert torch.equal(written["embedding.weight"], weights["encoder.weight"])


def test_one_of_several_networks_is_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = case("damsm").weights("text")
    torch.save({"params": weights, "params_ema": weights}, tmp_path / "a.pth")
    arguments = (f"input={tmp_path / 'a.pth'}", f"output={tmp_path / 'a.safetensors'}")
    assert "holds params, params_ema, but not" in refusal(capsys, *TEXT, *arguments)
