"""Rows as runs of an experiment tracker: MLflow, or Weights & Biases without a network."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.runs.results import append_rows, read_lines
from onceclip.pipeline.words import counted, shots_of
from onceclip.stores.identity import fingerprint

PROJECT = "onceclip"  # the experiment or project, unless the tracker's own variable names another
ROW, RUN = "onceclip.row", "onceclip.run"  # tags: which row it is, and what was asked for
_PARAMETERS = ("method", "shots", "seed", "select", "text", "class_weights", "encoder")
_NOT_TOLD = ("bank", "captions", "join", "draws", "values")  # paths of this machine, and what is told another way
_MOST = 500  # characters of a value
_NO_NAME = re.compile(r"[^\w.\- :/]")  # characters that MLflow takes in no name, as in lp++
_AT_ONCE = 100  # parameters that MLflow takes
_log = logging.getLogger("onceclip")


@dataclass(frozen=True)
class Entry:
    """What a tracker is told of a row. key: fingerprint of all its values. error: why it has no result, or empty."""

    key: str
    name: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    error: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Entry:
        """That of a row: no path of this machine but the store's name, and nothing that may be a password."""
        asked = {name: value for name, value in row.get("asked", {}).items() if name not in _NOT_TOLD}
        values = {**asked, **{name: row[name] for name in _PARAMETERS if name in row},
                  **{f"hyperparameters.{name}": value for name, value in row.get("hyperparameters", {}).items()}}
        key, error = fingerprint(dict(row)), without_secrets(str(row.get("error", "")))[:_MOST]
        prints = {f"fingerprint.{name}": value for name, value in row.get("fingerprints", {}).items() if value}
        tags = {ROW: key, RUN: row["run"], "store": str(row["store"]).rstrip("/").rpartition("/")[2],
                **({"error": error} if error else {}), **prints,
                **{name: row[name] for name in ("version", "device") if name in row}}
        return cls(key, f"{row['method']}, {shots_of(row['shots'])}, seed {row['seed']}",
                   {name: without_secrets(str(value))[:_MOST] for name, value in values.items()},
                   {name: float(value) for name, value in row.items()
                    if type(value) in (int, float) and name not in _PARAMETERS},
                   {name: without_secrets(str(value)) for name, value in tags.items()}, error)


def without_secrets(text: str) -> str:
    """A text without names, passwords and keys in its URLs."""
    return re.sub(r"\?\S*=\S*", "?***", re.sub(r"(?<=://)[^/@\s]*@", "***@", text))


class MlflowTracker:
    """Runs of an MLflow experiment.

    place: the tracking URI; empty for what MLFLOW_TRACKING_URI says. keys: of the rows that it has.
    """

    package = "mlflow-skinny"

    def __init__(self, place: str) -> None:
        from mlflow import MlflowClient

        # MLflow's own seven tries take four minutes, and a sweep that goes on without its log loses nothing.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._client = MlflowClient(place or None)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ResultError(f"experiment {name!r} was deleted: restore it, or name another in MLFLOW_EXPERIMENT_NAME")
        self._experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._unfinished: dict[str, str] = {}
        self.keys: set[str] = set()
        token = None
        while token != "":
            page = self._client.search_runs([self._experiment], f"tags.`{ROW}` != ''", max_results=1000,
                                            page_token=token)
            for run in page:
                if run.info.status in ("FINISHED", "FAILED"):
                    self.keys.add(run.data.tags[ROW])
                else:  # of a process that was killed
                    self._unfinished[run.data.tags[ROW]] = run.info.run_id
            token = page.token or ""

    def add(self, entry: Entry) -> None:
        """Write one run."""
        from mlflow.entities import Metric, Param
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        run = self._unfinished.get(entry.key) or self._client.create_run(
            self._experiment, tags=entry.tags, run_name=entry.name).info.run_id
        self._client.log_batch(run, [Metric(name, value, now, 0) for name, value in entry.metrics.items()])
        params = [Param(_NO_NAME.sub("_", name), value) for name, value in entry.parameters.items()]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(run, params=params[start:start + _AT_ONCE])
        self._client.set_terminated(run, "FAILED" if entry.error else "FINISHED")

    def close(self) -> None:
        pass


class WandbTracker:
    """Offline runs in a folder, which `wandb sync` sends when it is called. place: the folder. keys: as above."""

    package = "wandb"
    _NAME = "onceclip.jsonl"  # the rows whose runs are whole

    def __init__(self, place: str) -> None:
        import wandb

        if not place:
            raise ResultError("give a folder, as in wandb-offline:runs")
        self._wandb, self._folder = wandb, Path(place)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.keys = {str(line.get("row")) for line in read_lines(self._folder / self._NAME)}

    def add(self, entry: Entry) -> None:
        for half in self._folder.glob(f"wandb/offline-run-*-{entry.key}"):  # of a process that was killed
            rmtree(half)
        settings = self._wandb.Settings(  # nothing of this machine, its commands and its code
            mode="offline", console="off", silent=True, disable_git=True, disable_code=True, save_code=False,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False)
        run = self._wandb.init(dir=str(self._folder), project=os.environ.get("WANDB_PROJECT", PROJECT), id=entry.key,
                               name=entry.name, config={**entry.parameters, **entry.tags}, settings=settings)
        run.summary.update(entry.metrics)
        run.finish(exit_code=int(bool(entry.error)))
        append_rows(self._folder, [{"row": entry.key}], self._NAME)

    def close(self) -> None:
        self._wandb.teardown()


Tracker = MlflowTracker | WandbTracker
TRACKERS: dict[str, type[Tracker]] = {"mlflow": MlflowTracker, "wandb-offline": WandbTracker}


class Log:
    """Tells rows to trackers, each row once; one that fails is told no more, and what it lacks is said at the end.

    places: KIND:PLACE of each, such as mlflow:sqlite:///runs.db.
    Raises ResultError for one that does not exist, cannot be opened or lacks its package.
    """

    def __init__(self, places: Iterable[str]) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._failed: dict[str, str] = {}
        for text in dict.fromkeys(places):
            kind, _, place = text.partition(":")
            told = f"--log {without_secrets(text)}"
            if kind not in TRACKERS:
                raise ResultError(f"{told}: give {' or '.join(f'{each}:PLACE' for each in TRACKERS)}")
            try:
                self._trackers[told] = TRACKERS[kind](place)
            except ImportError as error:
                raise ResultError(f"{told} needs the package {TRACKERS[kind].package}: pip install "
                                  f"'onceclip[{kind.partition('-')[0]}]' ({error})") from error
            except Exception as error:  # whatever a client of a network raises
                raise ResultError(f"{told}: {_line(error)}; nothing was run") from None

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell rows to every tracker that lacks them."""
        for told, tracker in self._trackers.items():
            for entry in map(Entry.of, rows if told not in self._failed else ()):
                if entry.key in tracker.keys:
                    continue
                try:
                    tracker.add(entry)
                except Exception as error:  # rows are worth more than their log
                    self._failed[told] = _line(error)
                    break
                tracker.keys.add(entry.key)

    def close(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Tell what is left of all rows of a sweep, and say which were not told. folder: that holds them."""
        self.add(rows)
        for told, reason in self._failed.items():
            lacking = sum(Entry.of(row).key not in self._trackers[told].keys for row in rows)
            _log.warning("%s: %s; %s not logged, and in %s all the same: the same command again logs what is missing",
                         told, reason, f"{counted(lacking, 'row')} {'is' if lacking == 1 else 'are'}", folder)
        for tracker in self._trackers.values():
            tracker.close()


def _line(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split()) or type(error).__name__)[:_MOST]
