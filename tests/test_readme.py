"""What the documentation tells people to type is run here."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_python_example_of_the_readme_runs(store_path, tmp_path, monkeypatch, capsys):
    shutil.copytree(store_path, tmp_path / "pets.zarr")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    exec(compile(example, "README.md", "exec"), {})
    accuracy, names = capsys.readouterr().out.splitlines()
    assert 0 <= float(accuracy) <= 1
    assert names.startswith("[")


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/sources.md", marks=pytest.mark.checkout)])
def test_a_page_names_only_commands_and_options_that_exist(page):
    from onceclip.cli import main

    lines = [line for block in blocks(ROOT / page, "sh") for line in block.splitlines()]
    commands = [line.split("#")[0].split("| ")[-1].split() for line in lines if "onceclip " in line]
    assert len(commands) >= 4
    for _, name, *words in commands:
        options = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.checkout
def test_the_method_of_the_extending_page_works(store_path):
    import onceclip

    example = next(each for each in blocks(ROOT / "docs" / "extending.md", "python") if "NearestMean" in each)
    names = {}
    exec(compile(example, "extending.md", "exec"), names)
    store = onceclip.open_store(str(store_path))
    method = names["NearestMean"](alpha=5)
    assert 0 <= onceclip.evaluate(method.fit(onceclip.make_task(store, shots=2)), store)["accuracy"] <= 1


@pytest.mark.checkout
def test_the_source_of_the_extending_page_works(tmp_path, monkeypatch):
    from onceclip.pipeline.sources import SourceOptions, open_source

    example = next(each for each in blocks(ROOT / "docs" / "extending.md", "python") if "my_source.py" in each)
    (tmp_path / "my_source.py").write_text(example)
    (tmp_path / "index.txt").write_text("p1 healthy a.png\np2 ill b.png\n")
    monkeypatch.chdir(tmp_path)
    records = open_source("my_source:scans", SourceOptions(root=str(tmp_path))).records
    assert [(each.key, each.label, each.group) for each in records] == [("a.png", "healthy", "p1"),
                                                                        ("b.png", "ill", "p2")]


@pytest.mark.checkout
def test_every_command_and_option_stands_in_the_command_page():
    from onceclip.cli import main

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(zip(*[iter(re.split(r"^## (\w+)$", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    for name, command in main.commands.items():
        for option in (option for parameter in command.params for option in parameter.opts if option[0] == "-"):
            assert option in sections[name], f"{name} {option}: run `make docs`"
