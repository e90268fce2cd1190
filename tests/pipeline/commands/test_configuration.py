"""Options from files and variables, and what shells complete."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from onceclip.cli import main

Run = Callable[..., Any]


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "runs.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "behind it"])
def test_a_file_gives_arguments_lists_tables_and_flags(file_of: Run, run_json: Run, store_path: Path, tmp_path: Path,
                                                       before: bool) -> None:
    path = file_of(f"""
        [sweep]
        stores = ["{store_path}"]
        methods = ["zero-shot", "tip-adapter"]
        shots = [1, "all"]
        seeds = "1-3"
        out = "{tmp_path / 'results'}"
        dry-run = true
        grid.beta = [1, 2.5]
        [extract]
        view_scale = [0.2, 1]
        """)
    command = ("--config", path, "sweep") if before else ("sweep", "--config", path)
    assert run_json(*command)["runs"] == 2 * 3 * (1 + 2)


def test_the_command_line_wins_over_variables_and_these_over_the_file(file_of: Run, run_json: Run, store_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of('[fit]\nmethod = "tip-adapter"\nshots = 4\nseed = 7\nset = { alpha = 0.5, beta = 2 }\n')
    row = run_json("--config", path, "fit", store_path)
    assert (row["shots"], row["seed"], row["hyperparameters"]) == (4, 7, {"alpha": 0.5, "beta": 2.0})
    monkeypatch.setenv("ONCECLIP_FIT_SHOTS", "2")
    monkeypatch.setenv("ONCECLIP_FIT_SET", "alpha=3 beta=4")
    row = run_json("--config", path, "fit", store_path)
    assert (row["shots"], row["seed"], row["hyperparameters"]) == (2, 7, {"alpha": 3.0, "beta": 4.0})
    assert run_json("--config", path, "fit", store_path, "--shots", "1")["shots"] == 1
    monkeypatch.setenv("ONCECLIP_CONFIG", str(path))
    assert run_json("fit", store_path)["seed"] == 7


def test_a_file_is_read_only_if_it_is_named(file_of: Run, run_json: Run, store_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    file_of("[fit]\nseed = 7\n").rename(file_of("").with_name("onceclip.toml"))
    monkeypatch.chdir(file_of("").parent)
    assert run_json("fit", store_path, "--method", "zero-shot")["seed"] == 1


@pytest.mark.parametrize(("text", "words"), [
    ("[swep]\nshots = 1\n", "did you mean '[sweep]'"),
    ("[sweep]\nshot = 1\n", "did you mean 'shots'"),
    ("shots = 1\n", "stands in no table"),
    ("[sweep\n", "is not a TOML file"),
    ("[fit]\nstream = 'yes'\n", "give true or false"),
    ("[fit]\nmethod = true\n", "give a text"),
    ("[fit]\nshots = { gda = 1 }\n", "is a table"),
])
def test_what_a_file_cannot_say_is_one_line_with_its_name(file_of: Run, run: Run, text: str, words: str) -> None:
    for command in (("--config", file_of(text), "fit"), ("fit", "--config", file_of(text))):
        result = run(*command)
        assert result.exit_code == 1
        line, = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert words in line
        assert "runs.toml" in line


def test_a_bad_value_names_the_file_or_the_variable_that_it_came_from(file_of: Run, run: Run, store_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of("[fit]\nshots = 'two'\n")
    result = run("--config", path, "fit", store_path)
    assert (result.exit_code, f"(from {path})" in result.stderr) == (2, True)
    monkeypatch.setenv("ONCECLIP_FIT_SHOTS", "three")
    result = run("--config", path, "fit", store_path)
    assert (result.exit_code, "(from the variable ONCECLIP_FIT_SHOTS)" in result.stderr) == (2, True)
    result = run("--config", path, "fit", store_path, "--shots", "four")
    assert "(from" not in result.stderr
    assert run("--config", path.with_name("missing.toml"), "fit").exit_code == 2


def test_a_misspelt_variable_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCECLIP_FIT_SHOT", "4")
    monkeypatch.setenv("ONCECLIP_OF_MY_OWN", "4")
    result = run("methods", "gda", "--json")
    assert result.exit_code == 0
    assert result.stderr == "Warning: the variable ONCECLIP_FIT_SHOT belongs to no option (docs/configuration.md)\n"


@pytest.mark.checkout
def test_the_page_names_every_argument_that_a_file_can_give() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
    names = {str(each.name) for command in main.commands.values() for each in command.params
             if isinstance(each, click.Argument)}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_option_of_every_command_has_a_variable_of_its_own() -> None:
    options = [(command, option) for command in main.commands.values() for option in command.params
               if isinstance(option, click.Option) and option.name != "config"]
    names = [option.envvar for _, option in options]
    assert len(set(names)) == len(names) > 80
    for command, option in options:
        assert option.envvar is not None
        assert option.envvar.startswith(f"ONCECLIP_{str(command.name).upper()}_")
        assert "--" + option.envvar.split("_", 2)[2].replace("_", "-").lower() in option.opts
    assert ("extract", "ONCECLIP_EXTRACT_MODEL") in {(command.name, option.envvar) for command, option in options}


def complete(words: list[str]) -> list[tuple[str, str]]:
    """What the shell is told about the last of these words: kind and text."""
    shell = click.shell_completion.BashComplete(main, {}, "onceclip", "_ONCECLIP_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(words[:-1], words[-1])]


def test_shells_complete_commands_options_methods_and_paths() -> None:
    assert ("plain", "sweep") in complete(["s"])
    assert complete(["fit", "store.zarr", "--class-w"]) == [("plain", "--class-weights")]
    assert complete(["fit", "store.zarr", "--method", "tip-adapter-"]) == [("plain", "tip-adapter-f")]
    assert complete(["sweep", "store.zarr", "--methods", "gda,tip-adapter-"]) == [("plain", "gda,tip-adapter-f")]
    assert complete(["methods", "zero-"]) == [("plain", "zero-shot")]
    assert [kind for kind, _ in complete(["fit", "pe"])] == ["file"]
    assert [kind for kind, _ in complete(["fit", "--out", "pe"])] == ["dir"]


def test_the_names_that_shells_complete_are_those_of_the_methods_and_strategies() -> None:
    from onceclip.adapters import METHODS
    from onceclip.adapters.inference import INFERENCES

    assert {name for _, name in complete(["fit", "--method", ""])} == set(METHODS)
    assert {name for _, name in complete(["evaluate", "--inference", ""])} == set(INFERENCES)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(elsewhere: Path, shell: str) -> None:
    done = subprocess.run([sys.executable, "-c", "from onceclip.cli import main; main(prog_name='onceclip')"],
                          cwd=elsewhere, env={**os.environ, "_ONCECLIP_COMPLETE": f"{shell}_source"},
                          capture_output=True, text=True, check=False)
    # bash of old systems is refused by click, with a warning; the script is printed all the same.
    assert done.returncode == 0
    assert "onceclip" in done.stdout


def test_completion_imports_neither_torch_nor_zarr(process: Run) -> None:
    code = ("import os, sys; os.environ |= {'_ONCECLIP_COMPLETE': 'zsh_complete', 'COMP_WORDS': "
            "'onceclip fit --method zero-', 'COMP_CWORD': '3'}\n"
            "from onceclip.cli import main\n"
            "try:\n    main(prog_name='onceclip')\nexcept SystemExit: pass\n"
            "print(sorted({'torch', 'zarr', 'numpy'} & set(sys.modules)))")
    lines = process("-c", code).stdout.splitlines()
    assert lines[1] == "zero-shot"
    assert lines[-1] == "[]"


def test_a_file_that_is_nested_too_deep_is_one_line(file_of: Run, run: Run) -> None:
    done = run("--config", file_of("a = " + "[" * 100_000), "methods")
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "is not a TOML file" in done.stderr


def test_names_with_commas_are_quoted_on_the_command_line_and_plain_in_a_file(file_of: Run, run: Run,
                                                                              place: Path) -> None:
    for given in (["--classes", 'disc,"maillot, tank suit"'],
                  ["--config", file_of('[evaluate]\nclasses = ["disc", "maillot, tank suit"]\n')]):
        done = run("evaluate", "adapter", "store.zarr", *given)
        assert "no class 'maillot, tank suit' in store.zarr" in done.stderr


def test_a_file_may_begin_with_the_mark_that_editors_of_windows_write(file_of: Run, run_json: Run,
                                                                      store_path: Path) -> None:
    path = file_of("\ufeff[fit]\nseed = 7\nmethod = 'zero-shot'\n")
    assert run_json("--config", path, "fit", store_path)["seed"] == 7
