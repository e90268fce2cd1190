"""What the project wants to reach: a number for each goal, and the bench that measures it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Goal:
    """text: what is measured. bench: its name. least, most: the values between which the goal is reached."""

    text: str
    bench: str
    least: float = -inf
    most: float = inf

    def reached(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        return self.least <= value <= self.most

    @property
    def wanted(self) -> str:
        """The number in words."""
        return f"≥ {self.least:,g}" if self.most == inf else f"≤ {self.most:,g}"


GOALS = {
    "1": Goal("Tip-Adapter, 200 x 20 search: times as fast as the peers' double loop", "selection", least=500),
    "1 cells": Goal("rows by which a cell of its table differs from the loop's, at most", "selection", most=1),
    "2 float32": Goal("1,000 CLIP-Adapter runs, compiled before: times as fast as the peers' loop", "grid", least=4.8),
    "2 bfloat16": Goal("the same with products in bfloat16", "grid", least=7),
    "3": Goal("the same in float32: times as fast as a process per run, as many at once as cores", "grid", least=50),
    "4 float32": Goal("Tip-Adapter-F, 16 shots, compiled: times as fast as the peers' loop", "runs", least=2.7),
    "4 bfloat16": Goal("the same with products in bfloat16", "runs", least=3.8),
    "5 float32": Goal("linear heads, 100 classes, 8 to 64 runs, compiled: the same, the least of all", "runs", least=5),
    "5 bfloat16": Goal("the same with products in bfloat16", "runs", least=7),
    "5 ten float32": Goal("linear heads, 10 classes, 8 to 64 runs, compiled: the same, the least of all", "runs",
                          least=30),
    "5 ten bfloat16": Goal("the same with products in bfloat16", "runs", least=40),
    "6 loop": Goal("97 weight decays in bfloat16, compiled: per training, times as fast as a DataLoader", "probe",
                   least=6),
    "6 workers": Goal("the same beside a DataLoader with four workers, started anew each epoch", "probe", least=50),
    "7": Goal("1 to 1,024 runs: speed per run, of that of single runs, at worst", "runs", least=0.95),
    "8 logistic": Goal("exact logistic regression: times as fast as scikit-learn at its objective", "probe", least=1.7),
    "8 ridge": Goal("ridge regressions of 97 strengths: times as fast as scikit-learn's refits", "probe", least=4.5),
    "9 shards": Goal("whole read from shards: of np.load's speed", "store", least=0.85),
    "9 chunks": Goal("whole read from chunks of 4,096 rows: the same", "store", least=0.8),
    "9 stock": Goal("whole read from shards: times as fast as zarr-python alone", "store", least=4),
    "10 warm": Goal("gathering 1,600 rows from warm files: times a memory map's time", "store", most=1),
    "10 oindex": Goal("the same: times as fast as zarr's oindex", "store", least=50),
    "10 cold": Goal("the same from cold files: times as fast as a memory map", "store", least=8),
    "11 rows": Goal("writing finished units: rows per second", "store", least=400_000),
    "11 append": Goal("the same: times as fast as appending batches", "store", least=15),
    "12 encoder": Goal("extraction, ViT-B/32, 500x375: of the encoder's speed alone", "extract", least=0.95),
    "12 float32": Goal("the same: times as fast as the peers' loop in float32", "extract", least=4),
    "12 autocast": Goal("the same: times as fast as the peers' loop under autocast", "extract", least=2),
    "13 feed": Goal("decoding alone, 500x375: times as fast as the peers' DataLoader", "extract", least=1.6),
    "13 levels": Goal("its pixels: grey levels from open_clip's, at most", "extract", most=1),
    "13 fast": Goal("`--decode fast`, 1920x1080: times as fast as the peers' DataLoader", "extract", least=2.4),
    "13 distance": Goal("its embeddings: 1 - cosine to the exact ones, median", "extract", most=1e-5),
    "14 one": Goal("an epoch of streamed rows, 1 run: times the time in memory", "stream", most=1.15),
    "14 sixteen": Goal("the same, 16 runs", "stream", most=1.05),
    "14 memory": Goal("the same: memory of the process in GiB, at most", "stream", most=1),
    "15": Goal("a sweep on two processes of one thread: times as fast as on one", "workers", least=1.8),
    "16 runs": Goal("256 runs on an H100: times as fast as the peers' loop", "gpu", least=100),
    "16 extract": Goal("extraction with ViT-L/14 on an H100: of the encoder's speed alone", "extract", least=0.95),
    "17": Goal("a step of CoOp, 100 classes, ViT-B/32: times as fast as the published form on cached images", "prompts",
               least=5),
    "18 zero": Goal("ZERO on 64 stored views of 2,000 images: times as fast as encoding the views again", "views",
                    least=20),
    "18 mta": Goal("MTA on the same", "views", least=20),
    "20 products": Goal("exact nearest 10 of 10,000 queries among 1,000,000 x 512 stored rows: of the products' speed",
                        "retrieval", least=0.7),
    "20 memory": Goal("the same: memory of the process in GiB, at most", "retrieval", most=2),
    "best": Goal("the best of 1,000 CLIP-Adapter runs: times as fast as the peers' whole grid", "grid", least=20),
    "22 help": Goal("start: processor seconds of `--help`", "start", most=0.15),
    "22 info": Goal("the same of `info`", "start", most=0.6),
    "22 methods": Goal("the same of `methods`", "start", most=0.6),
    "22 fit": Goal("the same of `fit --method gda` on a ready store", "start", most=3),
    "22 predict": Goal("the same of `predict` on a store", "start", most=3),
    "22 extract": Goal("the same of an unchanged `extract` of 64 images", "start", most=1.5),
    "19 transclip": Goal("TransCLIP, 50,000 rows x 1,000 classes: times as fast as the published loop", "inference",
                         least=3),
    "23 zero-shot": Goal("`fit --method zero-shot` on 20,000 classes: processor seconds", "commands", most=20),
    "23 memory": Goal("the same: memory in GiB, at most", "commands", most=2),
    "23 tip-adapter": Goal("`fit --method tip-adapter --shots 1` on 20,000 classes: memory in GiB, at most", "commands",
                           most=3),
    "24": Goal("`predict` by gda of 1,000,000 stored rows to CSV: processor seconds", "commands", most=15),
    "29": Goal("`fit` without a method, 100 classes x 16 shots: seconds on two cores", "commands", most=60),
    "30 cores": Goal("extraction, ViT-B/32, 500x375: of what the cores allow at decoding and encoding together",
                     "extract", least=0.97),
    "30 demo": Goal("extraction, demo model, 500x375: times as fast as the peers' loop", "extract", least=1.3),
    "32": Goal("extraction, ViT-B/32, 500x375, both in float32 where bfloat16 is slow: times as fast as the peers' "
               "loop", "extract", least=1.5),
    "19 stata": Goal("StatA, the same", "inference", least=3),
}
