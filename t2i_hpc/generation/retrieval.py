"""How well encoders in pre-training match held-out images and captions."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from t2i_hpc.common.files import append_json_line, read_json_lines, sha256_of_json, write_bytes
from t2i_hpc.common.step import Batch, Matcher
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.engine.progress import ProgressLine
from t2i_hpc.generation.captions import encode_captions

_MOST = 256


class RetrievalReport:
    """Writes a row of ``scores.jsonl`` and the encoders' files each time it is called.

    The score is the share of held-out images (at most 256, one seeded caption each) for which
    the nearest of all those captions is their own. ``text_encoder.safetensors`` and
    ``image_encoder.safetensors`` of the run are what systems load as ``…_encoder.weights``.
    """

    def __init__(
        self, run: Path, config: TrainConfig, split: Split, system: Matcher, line: ProgressLine
    ) -> None:
        self.run, self.system, self.line = run, system, line
        count = min(split.count, _MOST)
        numbers = range(0, count)
        captions = [split.caption(number, config.seed)[1] for number in numbers]
        tokens, lengths = encode_captions(
            captions, split.vocabulary, config.data.words, config.seed
        )
        images = split.evaluation_images(numbers, system.resolution)
        order = torch.arange(count)
        self.batch = Batch(images, tokens, lengths, order, order, captions)
        self.protocol = {
            "data": split.manifest.digest,
            "images": count,
            "resolution": system.resolution,
            "seed": config.seed,
        }

    def __call__(self, images_seen: int) -> None:
        """Score the encoders as they are now and write them."""
        device = next(self.system.modules.parameters()).device
        similarities = self.system.match(self.batch.to(device)).cpu()
        own = similarities.diagonal()[:, None]
        # A caption equal to the image's own is right as well; a tie with another is not lost.
        hits = int((similarities <= own).all(1).sum())
        count = len(similarities)
        self.line.say(
            f"after {images_seen:,} images: {hits} of {count} held-out images find their caption "
            f"among {count} (top-1 {hits / count:.1%}, chance {1 / count:.1%})"
        )
        self._record(images_seen, hits / count, count)
        for name in ("text_encoder", "image_encoder"):
            self._write(name)

    def _record(self, images_seen: int, value: float, count: int) -> None:
        path = self.run / "scores.jsonl"
        if any(row.get("images") == images_seen for row in read_json_lines(path)):
            return
        append_json_line(
            path,
            {
                "images": images_seen,
                "metric": f"top-1 retrieval among {count}",
                "value": value,
                "n": count,
                "n_real": count,
                "protocol": sha256_of_json(self.protocol)[:12],
                "protocol_text": self.protocol,
                "checkpoint": "",
                "better": "higher",
                "detector_label": "the encoders themselves, on the test split",
            },
        )

    def _write(self, name: str) -> None:
        weights = self.system.modules[name].state_dict()
        whole = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        write_bytes(self.run / f"{name}.safetensors", save(whole))
