"""One checkpoint against the real images: both sides, their parts, the score.

The only place where protocol, detector, parts and distance meet; it is handed functions that
draw images and knows neither networks nor data sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.metrics.detectors.base import Detector
from t2i_hpc.metrics.distance import frechet_distance
from t2i_hpc.metrics.evaluate import Division, Draw, Side, compute_missing, merged_moments
from t2i_hpc.metrics.parts import Target
from t2i_hpc.metrics.protocol import Protocol
from t2i_hpc.metrics.scores import record_score, score_row

_FOLDER = "evaluations"


@dataclass(frozen=True)
class Subject:
    """The checkpoint that is scored.

    Attributes:
        checkpoint: SHA-256 of its weights.
        images_seen: images it was trained on.
        draw: its images by number, uint8 (B, 3, R, R).
    """

    checkpoint: str
    images_seen: int
    draw: Draw


@dataclass(frozen=True)
class Comparison:
    """A checkpoint, the real images, and how they are compared.

    Attributes:
        run: the run directory; scores and parts are written there.
        subject: the checkpoint.
        draw_real: the real images by number, uint8 (B, 3, R, R).
        detector: the feature network.
        protocol: everything that moves the score.
        division: how the images are split into parts.
    """

    run: Path
    subject: Subject
    draw_real: Draw
    detector: Detector
    protocol: Protocol
    division: Division

    @property
    def generated(self) -> Side:
        """The generated images; their parts lie by protocol and images seen."""
        protocol, subject = self.protocol, self.subject
        target = Target("generated", protocol.hash, subject.checkpoint, protocol.images)
        folder = self.run / _FOLDER / protocol.hash / f"{subject.images_seen:010d}"
        return Side(target, folder, subject.draw)

    @property
    def real(self) -> Side:
        """The real images; all checkpoints and protocols that share them share the files."""
        digest = self.protocol.real_hash
        target = Target("real", digest, "", self.protocol.real_images)
        return Side(target, self.run / _FOLDER / f"real-{digest}", self.draw_real)

    def compute(self, parts: Iterable[int]) -> None:
        """Compute those of the parts, of both sides, that are not there yet."""
        chosen = list(parts)
        for side in (self.generated, self.real):
            compute_missing(side, self.detector, self.division, chosen)

    def score(self) -> dict[str, Any]:
        """Merge all parts, record the score in the run, and return its row.

        Raises:
            EvaluationError: parts are missing or do not fit together.
        """
        sides = [merged_moments(side, self.division) for side in (self.generated, self.real)]
        subject = self.subject
        row = score_row(
            frechet_distance(*sides),
            self.protocol,
            self.detector,
            checkpoint=subject.checkpoint,
            images_seen=subject.images_seen,
        )
        record_score(self.run, row)
        return row
