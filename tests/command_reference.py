"""Writes docs/commands.md from the parser of the command line.

python tests/command_reference.py
"""

import argparse
import html
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

from multibox.cli import arguments
from multibox.config import Config, flatten
from multibox.recipes import RECIPES

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
TOP = """# Command line

This page is made from the program: `multibox VERB --help` shows the same. `multibox --version`
prints the version.
"""
TRAIN = """
multibox train --data FOLDER [OPTIONS]
multibox train RECIPE --data FOLDER [OPTIONS]
"""
RECIPES_TOP = """
### Values of the recipes

The defaults above are those of the original SSD300. A recipe stands for these options:

| recipe | options |
|---|---|
"""
# Sections of the configuration, as headings.
HEADINGS = {
    "config.data options": "Data",
    "config.augmentation options": "Augmentation",
    "config.optimizer options": "Optimizer",
    "config.schedule options": "Schedule",
    "config.run options": "Run",
    "config options": "Network",
}


def reference() -> str:
    """Returns the page."""
    with warnings.catch_warnings():
        # It is deprecated, but nothing else lists what a parser knows. `constraints.txt` pins tyro.
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(
            arguments._Verb,
            prog="multibox",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    verbs = _subparsers(parser)
    parts = [TOP, "\n| verb | what it does |\n|---|---|\n"]
    for name, verb in verbs.items():
        parts.append(f"| [`{name}`](#{name}) | {_text(_paragraphs(verb)[0])} |\n")
    for name, verb in verbs.items():
        parts.append(f"\n## {name}\n\n")
        parts.append("".join(f"{_text(each)}\n\n" for each in _paragraphs(verb)))
        if name == "train":
            parts.append(f"```text{TRAIN}```\n")
            # Its defaults are those of a `Config`, which needs a network only.
            recipe = _subparsers(verb)["ssd300-vgg16-voc0712"]
            parts += _tables(recipe, flatten(Config(network="")))
            parts.append(RECIPES_TOP)
            parts += [f"| `{name}` | {_values(name)} |\n" for name in RECIPES]
        else:
            places = [action.metavar for action in _actions(verb) if not action.option_strings]
            words = " ".join(str(place) for place in places)
            parts.append(f"```text\nmultibox {name} {words} [OPTIONS]\n```\n".replace("  ", " "))
            parts += _tables(verb, {})
    return "".join(parts)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, Any]:
    for action in parser._actions:
        if isinstance(action.choices, dict):
            return action.choices
    return {}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.dest != "help")


def _paragraphs(parser: argparse.ArgumentParser) -> list[str]:
    return [" ".join(each.split()) for each in (parser.description or "").split("\n\n")]


def _text(text: str) -> str:
    """Returns a help text as Markdown that fits into the cell of a table."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _tables(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> Iterator[str]:
    """Yields a table for each group of arguments, with its heading."""
    head = "\n| argument | default | meaning |\n|---|---|---|\n"
    for number, group in enumerate(parser._action_groups):
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions and group.title in HEADINGS:
            yield f"\n### {HEADINGS[group.title]}\n"
            if group.description and group.title != "config options":
                yield f"\n{_text(group.description)}\n"
            yield head
        elif number == 0:
            # The arguments without a name, and below them the options.
            yield head
        yield from (_row(action, defaults) for action in actions)


def _row(action: argparse.Action, defaults: dict[str, Any]) -> str:
    found = re.fullmatch(r"(.*?)\s*\((default: (.*)|required)\)", action.help or "", re.DOTALL)
    assert found is not None, action
    meaning, _, default = found.groups()
    field = action.dest.rpartition(".")[2].replace("-", "_")
    if field in defaults and default is not None:
        default = _shown(defaults[field]) or repr(defaults[field])
    if default is None or (default == "''" and field == "network"):
        shown = "required"
    elif default in ("", "''", "()", "None"):
        shown = ""
    else:
        bare = default.strip("'")
        shown = {"True": "yes", "False": "no"}.get(bare, f"`{bare}`")
    names = [f"`{name}`" for name in action.option_strings] or [f"`{action.metavar}`"]
    if action.option_strings and action.metavar:
        names[-1] = f"{names[-1][:-1]} {_metavar(action)}`"
    return f"| {', '.join(names)} | {shown} | {_text(meaning)} |\n"


def _metavar(action: argparse.Action) -> str:
    # None stands for the absence of the option.
    return str(action.metavar).replace("{None,", "{").replace("{None}|", "")


def _values(name: str) -> str:
    """Returns the options that turn a default configuration into a recipe."""
    default = flatten(Config(network=""))
    words = []
    for field, value in flatten(RECIPES[name]()).items():
        if value != default[field]:
            flag = field.replace("_", "-")
            words.append(f"--no-{flag}" if value is False else f"--{flag} {_shown(value)}".rstrip())
    return ", ".join(f"`{word}`" for word in words)


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return "" if value is True else str(value)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
