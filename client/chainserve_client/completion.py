"""`chainserve completion`: scripts that complete commands and options in a shell."""

import argparse

SHELLS = ("bash", "zsh", "fish")


def complete(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of a shell; paths are completed where an option takes one."""
    import shtab

    files = ("FILE",)
    for action in _actions(parser):
        if action.metavar in files:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell=shell)
    return script


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All options of the parser and of its commands."""
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _actions(command)
    return found
