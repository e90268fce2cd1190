"""onceclip beside the thirty lines that many people write: open_clip in a loop, then scikit-learn.

Both label the 1,797 digits of the demo with the shipped model; processor seconds of whole processes, and accuracy.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from bench.measure import Row, bench, make_row
from bench.processes import used
from onceclip.pipeline.commands.demo import write_digits

# What stands in many repositories: all images are encoded in every run, and one split is drawn by a seed.
SCRIPT = '''
import json, sys
from pathlib import Path
import numpy as np, open_clip, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

root, model_folder, shots, seeds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
model.eval()
classes = sorted(folder.name for folder in root.iterdir())
files = [(file, number) for number, name in enumerate(classes) for file in sorted((root / name).iterdir())]
features = []
with torch.inference_mode():
    for start in range(0, len(files), 64):
        batch = torch.stack([preprocess(Image.open(file)) for file, _ in files[start:start + 64]])
        features.append(model.encode_image(batch, normalize=True))
features, labels = torch.cat(features).numpy(), np.array([number for _, number in files])
found = []
for seed in range(seeds):
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    test, rest = order[:len(order) * 3 // 10], order[len(order) * 3 // 10:]
    train = np.concatenate([rest[labels[rest] == number][:shots] for number in range(len(classes))])
    probe = LogisticRegression(max_iter=1000).fit(features[train], labels[train])
    found.append(float((probe.predict(features[test]) == labels[test]).mean()))
print(json.dumps(found))
'''
_MODEL = Path(__file__).parent.parent / "pipeline" / "encoders" / "demo_model"


@bench("script", small={"seeds": 1, "repeats": 1})
@click.option("--shots", default=4)
@click.option("--seeds", default=5)
@click.option("--repeats", default=3)
def command(shots: int, seeds: int, repeats: int) -> Iterator[Row]:
    """The usual script and ours: a first run, and one more after twenty new images."""
    script, ours = "script: open_clip and scikit-learn", "ours: extract and fit"
    seconds: dict[str, dict[str, list[float]]] = {when: {script: [], ours: []} for when in ("first", "again", "fit")}
    accuracy: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "thirty.py"
        file.write_text(SCRIPT, encoding="utf-8")
        for turn in range(repeats):
            root, store = Path(place) / f"digits-{turn}", os.path.join(place, f"{turn}.zarr")
            write_digits(root)
            new = sorted(root.glob("*/*"))[::90]
            kept = [(path, Path(place) / f"{turn}-{path.parent.name}-{path.name}") for path in new]
            for path, aside in kept:
                shutil.move(path, aside)
            extract = ["extract", str(root), store, "--model", "demo"]
            fit = ["fit", store, "--method", "gda", "--shots", str(shots)]
            usual = [str(file), str(root), str(_MODEL), str(shots), str(seeds)]
            for when in seconds:
                if when == "again":
                    for path, aside in kept:
                        shutil.move(aside, path)
                seconds[when][script].append(used(usual, module=False).processor)
                seconds[when][ours].append(used(fit).processor if when == "fit" else
                                           used(extract).processor + used(fit).processor)
        told = subprocess.run([sys.executable, *usual], capture_output=True, text=True, check=True)
        accuracy = json.loads(told.stdout)
        results = os.path.join(place, "results")
        used(["sweep", store, "--methods", "zero-shot,gda,lp++", "--shots", str(shots), "--seeds", f"1-{seeds}",
              "--out", results, "--local-workers", "1"])
        rows = [json.loads(line) for line in (Path(results) / "results.jsonl").read_text().splitlines()]
    means = {method: statistics.fmean(row["accuracy"] for row in rows if row["method"] == method)
             for method in ("zero-shot", "gda", "lp++")}
    for when, title in (("first", "first run"), ("again", "again, with 20 new images"),
                        ("fit", "again, with another setting")):
        yield make_row(f"1,797 digits, {shots} shots: processor seconds, {title}", {"shots": shots, "when": when},
                       seconds[when], [ours], accuracy_of_the_script=statistics.fmean(accuracy), accuracies=means)
