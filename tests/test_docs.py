"""What the documentation tells people to type is typed here: every page from top to bottom, in a folder of its own.

A page may count on what `prepared` has, unless it makes it itself. Models that would have to be downloaded are
replaced by the demo model, see `at_home`. A fence that cannot run here says so (```sh no-run) behind a comment with
the reason, and stands in `NOT_RUN`; its commands and options must exist all the same.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from onceclip.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
NOT_RUN = {"docs/clusters.md": 4, "docs/configuration.md": 1, "docs/encoders.md": 3, "docs/extending.md": 4,
           "docs/many-runs.md": 1, "docs/paper.md": 2, "docs/performance.md": 2, "docs/remote.md": 1,
           "docs/retrieval.md": 1, "docs/sources.md": 1, "docs/text.md": 1}  # pages and their numbers of such fences
FENCE = re.compile(r"^(?P<before>[^\n]*\n)?\n?```(?P<language>\w+)(?P<mark>[^\n]*)\n(?P<text>.*?)^```$",
                   re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"[|<>&;$`]")
pytestmark = pytest.mark.checkout


@dataclass(frozen=True)
class Fence:
    """A block of commands or of Python. file: its name where it is one that a user is to write."""

    language: str
    runs: bool
    reason: bool
    text: str

    @property
    def file(self) -> str | None:
        named = re.match(r"# ([\w-]+\.(?:py|toml|csv|json))\n", self.text)
        return named[1] if named else None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell fence, joined where they go on, without comments."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line for line in (re.sub(r"(^|\s+)#.*", "", each) for each in lines) if line.strip()]


def fences(page: str) -> list[Fence]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Fence(each["language"], "no-run" not in each["mark"], "<!--" in (each["before"] or ""), each["text"])
            for each in FENCE.finditer(text) if each["language"] in ("sh", "python", "toml", "csv", "json")]


def commands(page: str) -> list[str]:
    return [command for each in fences(page) if each.language == "sh" for command in each.commands]


def at_home(command: str) -> str:
    """The command with the model that is always there: MODEL --pretrained TAG and names of hubs become demo.

    Sweeps take two seeds and one order of classes, whatever number is written.
    """
    command = re.sub(r"--seeds \d+-\d+", "--seeds 1-2", command)
    command = re.sub(r"--orders \d+-\d+", "--orders 1", command)
    command = re.sub(r"--model (?:hf-hub|transformers):\S+|--model \S+ --pretrained \S+", "--model demo", command)
    return re.sub(r"--encoder \S+", "--encoder demo", command)


@pytest.fixture(scope="session")
def prepared(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things that pages speak of; not to be changed."""
    import onceclip

    root = tmp_path_factory.mktemp("prepared") / "things"
    shutil.copytree(pets, root)
    store = onceclip.open_store(str(root / "pets.zarr"))
    onceclip.fit(store, onceclip.RunSpec("tip-adapter", 16)).classifier.save(root / "pets-adapter")
    onceclip.sweep(store, methods=["zero-shot", "tip-adapter", "gda"], shots=[1, 4], seeds=[1, 2, 3],
                   out=root / "results", select=None)
    rows = store.rows()
    np.savez(root / "features.npz", embedding=store.embeddings(rows), label=store.column("label")[rows],
             split=np.array(["train", "val", "test"])[store.column("split")[rows]], class_names=list(store.classes),
             text=store.text("default").embedding)
    (root / "cupl.json").write_text(json.dumps({name: [f"a {name} in the grass.", f"a drawing of a {name}."]
                                                for name in store.classes}))
    (root / "scenes.txt").write_text("".join(f"a {one} and a {other}.\n" for one in store.classes
                                             for other in store.classes))
    keys = store.column("key")[rows].tolist()
    (root / "labels.csv").write_text("key,label\n" + "".join(
        f"{key},{name}\n" for key in keys for name in {key.split("/")[0], store.classes[0]}))
    list_in_other_ways(root)
    return root


def list_in_other_ways(root: Path) -> None:
    """The pets as a manifest, a split file, tar archives and a list of scans; and some films."""
    files = sorted((root / "pets").glob("*/*.jpg"))
    names = {path: str(path.relative_to(root / "pets")) for path in files}
    classes = sorted({path.parent.name for path in files})
    (root / "pets.csv").write_text("path,label\n" + "".join(f"{names[path]},{path.parent.name}\n" for path in files))
    items = [[names[path], classes.index(path.parent.name), path.parent.name] for path in files]
    (root / "split_zhou_OxfordPets.json").write_text(json.dumps(
        {"train": items[::2], "val": items[1::4], "test": items[3::4]}))
    shutil.copytree(root / "pets", root / "oxford_pets" / "images")
    shutil.copytree(root / "pets", root / "scans")
    (root / "scans" / "index.txt").write_text("".join(f"p{number // 2} {path.parent.name} {names[path]}\n"
                                                      for number, path in enumerate(files)))
    for number in range(10):
        with tarfile.open(root / f"pets-{number:03d}.tar", "w") as archive:
            for path in files[number::10]:
                archive.add(path, names[path])
    for kind in ("walking", "sleeping"):
        for number in range(2):
            film(root / "films" / kind / f"{number}.mp4", np.random.default_rng([number, len(kind)]))


def film(path: Path, random: np.random.Generator) -> None:
    """Write a video of two noisy seconds."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        frames = [av.VideoFrame.from_ndarray(random.integers(0, 256, (48, 48, 3), np.uint8), format="rgb24")
                  for _ in range(50)]
        for packet in [packet for frame in [*frames, None] for packet in stream.encode(frame)]:
            container.mux(packet)


def lay_out(page: str, prepared: Path, folder: Path) -> None:
    """Put what a page counts on into a folder: what it does not make itself before it uses it."""
    for thing in sorted(prepared.iterdir()):
        uses = [line for line in commands(page) if re.search(rf"(?<![\w./-]){re.escape(thing.name)}(?![\w.-])", line)]
        made = uses and (re.search(rf"(--out|onceclip (extract|import|compact) \S+) {re.escape(thing.name)}(?![\w.-])",
                                   uses[0]))
        if thing.is_dir() and not made:
            shutil.copytree(thing, folder / thing.name)
        elif not made:
            shutil.copy(thing, folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(each.runs for each in fences(page))])
def test_a_page_runs_from_top_to_bottom(page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        request: pytest.FixtureRequest) -> None:
    if any("hf://" in each.text or "hf-dataset:" in each.text for each in fences(page) if each.runs):
        request.getfixturevalue("hub")
    lay_out(page, prepared, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for fence in fences(page):
        if not fence.runs:
            continue
        if fence.file:
            Path(fence.file).write_text(fence.text, encoding="utf-8")
        elif fence.language == "python":
            exec(compile(fence.text, page, "exec"), names)
        elif fence.language == "sh":
            for command in fence.commands:
                type_in(at_home(command))


def type_in(command: str) -> None:
    """Run one line. A command of ours runs in this process, also behind a pipe or into a file."""
    if re.match(r"\s*(make|pip|npm|apt-get) ", command):
        return  # looked at by the tests below
    feeding, _, line = command.rpartition(" | onceclip ")
    line, _, target = (f"onceclip {line}" if feeding else command).partition(" > ")
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    variables, words = {}, [found for word in shlex.split(line)
                            for found in (sorted(glob(word)) if "*" in word and word in bare else [word])]
    while "=" in words[0]:
        name, _, variables[name] = words.pop(0).partition("=")
    if words[0] != "onceclip" or SHELL.search(bare):
        shell(command)
        return
    given = shell(feeding).stdout if feeding else b""
    result = CliRunner(env=variables).invoke(main, words[1:], input=given, prog_name="onceclip")
    assert result.exit_code == 0, f"{command}\n{result.output}{result.exception!r}"
    if target:
        Path(target).write_bytes(result.stdout_bytes)


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    ours = f'onceclip() {{ "{sys.executable}" -m onceclip "$@"; }}\n'
    return subprocess.run(["bash", "-euo", "pipefail", "-c", ours + command], check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_commands_and_options_that_exist(page: str) -> None:
    for command in commands(page):
        for part in re.findall(r"(?:^|[|;&]\s*|\s)onceclip ((?:--config \S+ )?[a-z]+[^|;&]*)", command):
            words = [word for word in shlex.split(part, comments=True) if word != "--config" and ".toml" not in word]
            options = {option for parameter in main.commands[words[0]].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options | {"--help"}, command


def test_the_picture_of_the_report_is_of_the_results_that_the_readme_shows() -> None:
    with Image.open(ROOT / "docs" / "report.png") as picture:
        table = picture.text["Table"]  # written by docs/report_picture.py
    assert table in (ROOT / "README.md").read_text(encoding="utf-8"), "run `make demo` and docs/report_picture.py"


def test_what_pages_install_and_make_exists() -> None:
    settings, makefile = (ROOT / "setup.cfg").read_text(), (ROOT / "Makefile").read_text()
    text = "\n".join(command for page in PAGES for command in commands(page))
    targets = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))
    assert targets
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()
    extras = {name for names in re.findall(r"onceclip\[([\w,-]+)\]", text) for name in names.split(",")}
    assert extras
    assert {name for name in extras if not re.search(rf"^{name} =$", settings, re.MULTILINE)} == set()


def test_fences_that_do_not_run_are_few_and_say_why() -> None:
    silent = [(page, each) for page in PAGES for each in fences(page) if not each.runs]
    assert Counter(page for page, _ in silent) == NOT_RUN
    assert [(page, each.text) for page, each in silent if not each.reason] == []
    unknown = {word for page in PAGES for word in re.findall(r"^```(\w*)", (ROOT / page).read_text(), re.MULTILINE)}
    assert unknown <= {"", "sh", "python", "text", "toml", "csv", "json", "yaml"}


def test_every_command_and_option_stands_in_the_command_page() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(zip(*[iter(re.split(r"^## (\w+)$", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    for name, command in main.commands.items():
        options = [option for parameter in command.params if isinstance(parameter, click.Option)
                   for option in parameter.opts]
        assert [each for each in options if each not in sections[name]] == [], f"{name}: run `make docs`"


def test_every_page_is_listed_and_every_link_leads_somewhere() -> None:
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"
               and f"({page.removeprefix('docs/')})" not in listed]
    assert missing == []
    for page in PAGES:
        here = (ROOT / page).parent
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
        dead = [link for link in links if "://" not in link and not (here / link).exists()]
        assert dead == [], page
