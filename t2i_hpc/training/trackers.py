"""Trackers of experiments: Weights & Biases, MLflow and trackio show what a run's files hold.

``metrics.jsonl``, ``scores.jsonl`` and ``samples/`` are the truth. A thread follows them and tells
each tracker what it has not been told, at explicit steps (images seen); training never waits for
it. How far a tracker is stands in ``RUN/trackers/NAME.json``, so a later session first tells it
what it missed: what was lost with a killed process, and scores that came between two sessions. A
step that a resumed run takes again is told once; its values are the same.

The run directory's name is the run's name or id everywhere, so a requeued job goes on in the same
curve. Without settings of theirs in the environment all three write into the run directory and
nothing to the internet. A tracker that fails is left out until the next session, and training goes
on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import read_json_lines, write_json

TENSORBOARD = "tensorboard"  # written by the metrics log itself
PROJECT = "t2i_hpc"
_CLOSING_SECONDS = 60.0
_POSITIONS = ("images", "step", "seconds")


class Tracker(Protocol):
    """What a tracker is told; all calls come from one thread.

    `durable` says whether what it was told survives the death of this process.
    """

    durable: bool

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Add a point to each curve, at so many images seen; later calls may go back."""

    def show(self, name: str, picture: Path, images: int) -> None:
        """Add an image file."""

    def close(self) -> None:
        """Write what is buffered."""


class WeightsAndBiases:
    """Writes ``RUN/wandb``, for ``wandb sync``, unless WANDB_MODE says otherwise.

    A step once left behind takes no more values, so scores, which come late, stand at the newest
    step and have an axis of their own.
    """

    durable = False  # the newest seconds are in the memory of a process that ends with this one

    def __init__(self, run: Path) -> None:
        import wandb

        self._wandb = wandb
        mode: Any = os.environ.get("WANDB_MODE", "offline")  # wandb refuses what is none of its own
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=re.sub(r"[^\w.-]", "-", run.name),
            name=run.name,
            dir=str(run),
            resume="allow",
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="images")
        self._step = 0

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Add a point to each curve."""
        self._log(dict(values), images)

    def show(self, name: str, picture: Path, images: int) -> None:
        """Add an image file."""
        self._log({name: self._wandb.Image(str(picture))}, images)

    def _log(self, values: dict[str, Any], images: int) -> None:
        self._step = max(self._step, images)
        self._run.log({**values, "images": images}, step=self._step)

    def close(self) -> None:
        """Finish the session's part of the run."""
        self._run.finish()


class MLflow:
    """Writes ``RUN/mlflow.db`` unless MLFLOW_TRACKING_URI names a server."""

    durable = True

    def __init__(self, run: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._metric = Metric
        own = f"sqlite:///{run.resolve()}/mlflow.db"
        uri = os.environ.get("MLFLOW_TRACKING_URI", own)
        self._client = MlflowClient(uri)
        artifacts = (run.resolve() / "mlflow").as_uri() if uri == own else None
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(title)
        experiment = (
            found.experiment_id
            if found
            else self._client.create_experiment(title, artifact_location=artifacts)
        )
        # Its ids cannot be chosen: a tag holds ours.
        quoted = run.name.replace("'", "\\'")
        runs = self._client.search_runs([experiment], f"tags.`run_identity` = '{quoted}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {"run_identity": run.name}
            made = self._client.create_run(experiment, run_name=run.name, tags=tags)
            self._id = made.info.run_id

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Add a point to each curve."""
        now = int(1000 * time.time())
        points = [
            self._metric(re.sub(r"[^\w\-. /]", "_", name), value, now, images)
            for name, value in values.items()
        ]
        self._client.log_batch(self._id, metrics=points)

    def show(self, name: str, picture: Path, images: int) -> None:
        """Add an image file."""
        self._client.log_artifact(self._id, str(picture), name)

    def close(self) -> None:
        """Say that nobody writes any more."""
        self._client.set_terminated(self._id, "FINISHED")


class Trackio:
    """Writes ``RUN/trackio`` unless TRACKIO_DIR, a space or a server is set."""

    durable = False

    def __init__(self, run: Path) -> None:
        if not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")):
            os.environ.setdefault("TRACKIO_DIR", str(run.resolve() / "trackio"))
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=PROJECT,
            name=run.name,
            resume="allow",  # by default a second session hides the first
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Add a point to each curve."""
        self._run.log(dict(values), step=images)

    def show(self, name: str, picture: Path, images: int) -> None:
        """Add an image file."""
        self._run.log({name: self._trackio.Image(str(picture))}, step=images)

    def close(self) -> None:
        """Wait until everything is written."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
_MODULES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy"), "trackio": ("trackio",)}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ConfigurationError: names one, and how to get it.
    """
    for name in names:
        for module in _MODULES.get(name, ()):
            if find_spec(module) is None:
                extra = "trackio" if name == "trackio" else "trackers"
                raise ConfigurationError(
                    f"trackers names {name}, whose package {module} is not installed: pip install "
                    f"'t2i-hpc[{extra}]', or leave it out"
                )


@dataclass
class Told:
    """What a tracker has been told: images of the last line and picture, number of scores."""

    images: int = -1
    scores: int = 0
    pictures: int = -1


class Followers:
    """Tells trackers what a run's files say, in a thread of its own.

    Args:
        run: the run directory, whose ``metrics.jsonl`` is only appended to from now on.
        names: of the trackers.
        say: prints a message.
    """

    def __init__(self, run: Path, names: Sequence[str], say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self._names = [name for name in names if name in TRACKERS]
        self._wake, self._closing = threading.Event(), False
        # A daemon: a tracker that hangs keeps no process alive.
        self._thread = threading.Thread(target=self._follow, name="trackers", daemon=True)
        if self._names:
            self._thread.start()

    def wake(self) -> None:
        """Say that there is something new; returns at once."""
        self._wake.set()

    def close(self) -> None:
        """Let the trackers write the rest, for a minute at most."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is None:
            return
        self._thread.join(_CLOSING_SECONDS)
        if self._thread.is_alive():
            self._say("trackers are still busy and are left: the next session tells them the rest")

    def _follow(self) -> None:
        """Run in the thread: whatever fails in it fails here alone."""
        open_ones = [self._opened(name) for name in self._names]
        followers = [follower for follower in open_ones if follower is not None]
        done = False
        while followers and not done:
            done = self._closing  # read before the files, which are whole then
            self._wake.clear()
            followers = [each for each in followers if self._survives(each, each.tell)]
            if not done:
                self._wake.wait()
        for follower in followers:
            self._survives(follower, follower.close)

    def _opened(self, name: str) -> _Follower | None:
        try:
            return _Follower(name, TRACKERS[name](self._run), self._run)
        except BaseException as error:  # a package may exit the interpreter
            self._blame(name, error)
            return None

    def _survives(self, follower: _Follower, work: Callable[[], None]) -> bool:
        try:
            work()
        except BaseException as error:
            self._blame(follower.name, error)
            return False
        return True

    def _blame(self, name: str, error: BaseException) -> None:
        lines = str(error).strip().splitlines() or [""]
        self._say(
            f"tracker {name} failed ({type(error).__name__}: {lines[0]}): training goes on without "
            "it, and the next session tells it what it missed"
        )


class _Follower:
    """One tracker, and how far it is."""

    def __init__(self, name: str, tracker: Tracker, run: Path) -> None:
        self.name, self._tracker, self._run = name, tracker, run
        self._path = run / "trackers" / f"{name}.json"
        self._told = _read_told(self._path)
        self._read = 0  # bytes of metrics.jsonl

    def tell(self) -> None:
        """Tell the tracker what is new."""
        before = asdict(self._told)
        for row in self._new_rows():
            if row.get("images", -1) > self._told.images:
                self._tracker.log(dict(curves(row)), row["images"])
                self._told.images = row["images"]
        for row in read_json_lines(self._run / "scores.jsonl")[self._told.scores :]:
            self._told.scores += 1
            if _is_number(row.get("value")):
                name = f"scores/{row['metric']} {row['protocol']}"
                self._tracker.log({name: row["value"]}, row["images"])
        for picture in sorted((self._run / "samples").glob("[0-9]*.png")):
            if int(picture.stem) > self._told.pictures:
                self._tracker.show("samples", picture, int(picture.stem))
                self._told.pictures = int(picture.stem)
        if self._tracker.durable and asdict(self._told) != before:
            self._keep()

    def close(self) -> None:
        """Let the tracker write the rest, and keep how far it is."""
        self._tracker.close()
        self._keep()

    def _keep(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        write_json(self._path, asdict(self._told))

    def _new_rows(self) -> Iterator[dict[str, Any]]:
        path = self._run / "metrics.jsonl"
        if not path.exists():
            return
        with path.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):  # is being written
                    return
                self._read += len(line)
                try:
                    yield json.loads(line)
                except ValueError:  # the end of a session that was cut off
                    continue


def curves(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield names and finite values of a line of metrics.jsonl, e.g. ``speed/data_wait``."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            for name, number in value.items():
                if _is_number(number):
                    yield name if key == "losses" else f"{key}/{name}", number
        elif key not in _POSITIONS and _is_number(value):
            yield f"speed/{key}", value


def _is_number(value: Any) -> bool:
    """Whether a tracker can show a value; MLflow makes 1.8e308 of an infinity."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _read_told(path: Path) -> Told:
    try:
        return Told(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Told()
