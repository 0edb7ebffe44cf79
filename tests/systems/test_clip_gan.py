"""GALIP's recipe: its CLIP is transformers' CLIP, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.data.captions import WordPieces, encode_caption
from t2i_hpc.models.clip_transformer import CLIPVision
from t2i_hpc.systems import build_system
from t2i_hpc.systems.encoders import check_caption_length
from tests.support.clip import LAYERS, tiny_clip, write_clip
from tests.systems.tiny import built, configured


def test_both_halves_are_those_of_transformers() -> None:
    from transformers import CLIPModel

    reader: Any = CLIPModel  # the library's eval has no types
    theirs = reader.from_pretrained(tiny_clip(), local_files_only=True).eval()
    ours = built("clip_gan")
    ours.modules.eval()
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    pixels = ours.vision.normalized(images, "clip")
    with torch.no_grad():
        found = theirs.vision_model(pixels, output_hidden_states=True)
        levels, code = ours.vision(pixels, range(LAYERS))
        sizes = torch.tensor([1, 4])
        text = ours.text_encoder(torch.tensor([[5, 0, 0, 0], [2, 10, 15, 3]]), sizes)
        framed = torch.tensor([[18, 5, 19, 19, 19, 19], [18, 2, 10, 15, 3, 19]])
        inside = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6])
        sentence = theirs.text_projection(theirs.text_model(framed, inside).pooler_output)
        expected = theirs.visual_projection(found.pooler_output)
    torch.testing.assert_close(code, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(text.sentence, sentence, rtol=0, atol=1e-5)
    assert not text.words[0, :, 1:].any()
    for level, hidden in zip(levels.unbind(1), found.hidden_states[1:], strict=True):
        torch.testing.assert_close(level.flatten(2), hidden[:, 1:].mT, rtol=0, atol=1e-5)


def test_how_clip_reads_images() -> None:
    vision: CLIPVision = built("clip_gan").vision
    white = torch.ones(1, 3, 56, 56)
    for pixels in ("released", "clip"):  # both end at 1: colors are halved twice towards white
        torch.testing.assert_close(
            vision.normalized(white, pixels)[0, :, 0, 0], ((1 - vision.mean) / vision.std).flatten()
        )
    black = vision.normalized(-white, "released") * vision.std + vision.mean
    torch.testing.assert_close(black, torch.full_like(black, 0.5))
    black = vision.normalized(-white, "clip") * vision.std + vision.mean
    torch.testing.assert_close(black, torch.zeros_like(black))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("system.clip=''", "system.clip is empty: name the folder of a clip model"),
        ("system.text_encoder.width=256", "set system.text_encoder.width=16"),
        ("system.text_encoder.training=damsm", "has no effect on clip_gan"),
        ("system.levels=[2,1]", "must be two or more rising numbers of CLIP's blocks, 0 to 2"),
        ("system.levels=[0,3]", "must be two or more rising numbers of CLIP's blocks, 0 to 2"),
        ("system.prompts=3", "so give at most 2"),
    ],
)
def test_what_does_not_fit_is_refused(override: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        built("clip_gan", override)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_captions_longer_than_clip_reads() -> None:
    """Its 24 places less two; as CLIP's tokenizer does, a caption is cut behind the last token."""
    system = built("clip_gan")
    check_caption_length(dict(system.modules.items()), 22, "data.max_tokens")
    with pytest.raises(ConfigurationError, match="reads 22 tokens of a caption"):
        check_caption_length(dict(system.modules.items()), 23, "data.max_tokens")
    tokens = WordPieces.load(tiny_clip() / "tokenizer.json")
    text = "a red circle on the blue square"
    assert encode_caption(text, tokens, 4, (0, "words", 0)) == tokens.encode(text)[:4]


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    own = (f"system.clip={folder}/model.safetensors",)
    with pytest.raises(ConfigurationError, match=r"the data has 21: name its tokenizer"):
        build_system(configured("clip_gan", *own).system, 21)
    (folder / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ConfigurationError, match="is damaged or does not hold the network"):
        built("clip_gan", *own)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is missing"):
        built("clip_gan", *own)
    with pytest.raises(ConfigurationError, match=r"belongs to system=clip_gan"):
        built("ssa_gan", "system.text_encoder.name=clip")
