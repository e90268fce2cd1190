"""How help is laid out: commands and options in groups, and what few need only with `--help-all`."""

from __future__ import annotations

from functools import cached_property
from textwrap import wrap
from typing import Any

import click

COMMANDS = {
    "Begin": ("demo",),
    "Store": ("extract", "text", "import", "info", "verify"),
    "Fit and compare": ("methods", "fit", "sweep", "incremental", "evaluate", "report", "table", "compare", "draws"),
    "Use": ("predict", "suggest", "retrieve"),
    "Share": ("export", "compact"),
}
_EVERYDAY, _STORED, _TEST_TIME, _STUDY, _SPEED, _CLUSTERS, _EXPERT, _EVERYWHERE = OPTION_GROUPS = (
    "Everyday", "What is stored", "Test time", "For a study", "Speed", "Clusters", "Expert", "Of every command")
_SHORTENED = (_EXPERT, _STUDY, _TEST_TIME, _CLUSTERS)  # in this order, where help is long
# By name, whichever command has the option; what is not named here is for every day.
OPTIONS = {name: group for group, names in {
    _STORED: "views view-scale view-seed views-for ten-crop preproj tokens layer-statistics dtype exif",
    _TEST_TIME: "inference inference-set batches effective-classes balanced dirichlet inference-seed orders save "
                "coverage set-kind",
    _STUDY: "draws long-tail natural-prior label-noise missing support bank captions join inputs curves "
            "keep-predictions log multi-label",
    _SPEED: "device precision compile batch-size decode workers stream narrow",
    _CLUSTERS: "scheduler local-workers part",
    _EXPERT: "preprocess cache-dir allow-random unit-rows decode-timeout retry-bad split-seed view-scale view-seed "
             "views-for class-weights search from-row strict prompts-form waffle truncate",
    _EVERYWHERE: "json config help help-all"}.items() for name in names.split()}
# What one command means otherwise than the others by an option's name, or has many of.
OF_COMMANDS = {(command, name): group for command, groups in {
    "text": {_EVERYDAY: "captions", _EXPERT: "seed"},
    "incremental": {_EVERYDAY: "orders"},
    "sweep": {_TEST_TIME: "batch-size"},
    "evaluate": {_TEST_TIME: "batch-size masks overwrite"},
    "predict": {_TEST_TIME: "views"},
    "retrieve": {_STUDY: "pooling rerank phrases normalize train negatives seed epochs learning-rate save map"},
}.items() for group, names in groups.items() for name in names.split()}
LINES = 96  # two screens
_NARROW = 80  # columns of such a screen


class GroupedCommand(click.Command):
    """A command whose help has its options in groups, with the names alone of those that few need if it is long."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        *params, last = super().get_params(context)
        return [*params, self._help_all, last]

    @cached_property
    def _help_all(self) -> click.Option:
        return click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all,
                            help="Show this message with all options explained.")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups; the last ones in short where all of them do not fit on two screens."""
        shortened: tuple[str, ...] = ()
        while not context.meta.get(_ALL) and self._lines(context, shortened) > LINES and shortened != _SHORTENED:
            shortened = _SHORTENED[:len(shortened) + 1]
        self._write_groups(context, formatter, shortened)

    def _lines(self, context: click.Context, shortened: tuple[str, ...]) -> int:
        """Lines of the whole help on a narrow terminal."""
        formatter = click.HelpFormatter(width=_NARROW)
        self.format_usage(context, formatter)
        self.format_help_text(context, formatter)
        self._write_groups(context, formatter, shortened)
        return formatter.getvalue().count("\n")

    def _group(self, name: str) -> str:
        return OF_COMMANDS.get((str(self.name), name)) or OPTIONS.get(name, _EVERYDAY)

    def _write_groups(self, context: click.Context, formatter: click.HelpFormatter, shortened: tuple[str, ...]) -> None:
        for group in OPTION_GROUPS:
            rows = [record for option in self.get_params(context) if isinstance(option, click.Option)
                    and self._group(max(option.opts, key=len).lstrip("-")) == group
                    and (record := option.get_help_record(context))]
            if rows and group in shortened:
                with formatter.section(f"{group} (--help-all explains them)"):
                    names = ", ".join(first.split()[0] for first, _ in rows)
                    for line in wrap(names, formatter.width - 2 * formatter.current_indent, break_on_hyphens=False):
                        formatter.write_text(line)
            elif rows:
                with formatter.section(group):
                    formatter.write_dl(rows)


_ALL = "onceclip.help_all"


def _show_all(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[_ALL] = True
        click.echo(context.get_help())
        context.exit()


def all_explained(context: click.Context) -> str:
    """The help of a command with every option explained."""
    context.meta[_ALL] = True
    return context.get_help()


def grouped(command: click.Command) -> click.Command:
    """The same command with its options in groups."""
    if type(command) is not click.Command:
        return command
    values: dict[str, Any] = {name: getattr(command, name) for name in (
        "context_settings", "callback", "params", "help", "epilog", "short_help", "hidden", "deprecated")}
    return GroupedCommand(command.name, **values)


def write_commands(group: click.Group, context: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group, in groups of their own."""
    width = max(map(len, group.commands))
    for title, names in COMMANDS.items():
        with formatter.section(title):
            formatter.write_dl([(name.ljust(width),
                                 group.commands[name].get_short_help_str(formatter.width - width - 6))
                                for name in names])
