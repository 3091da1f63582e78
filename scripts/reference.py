#!/usr/bin/env python3
"""Write docs/reference from the code: commands from their parsers, the Python API and metrics from the source.

Run it after changing any of these; a test compares what it would write with what is there.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
TARGET = PROJECT / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py: change the code, and run that. -->\n"
API = {
    "Client": "blocking",
    "AsyncClient": "client",
    "Parameters": "parameters",
    "Generation": "generation",
    "Piece": "generation",
    "RemoteModelForCausalLM": "model",
}
METRICS = {
    "Servers": "servers/chainserve_server/metrics.py",
    "The gateway": "client/chainserve_client/gateway/metrics.py",
}
KINDS = {
    "gauge": "gauge",
    "gauges": "gauge",
    "counter": "counter",
    "counters": "counter",
    "histograms": "histogram",
    "InfoMetricFamily": "info",
}


def pages() -> dict[str, str]:
    """The pages by their file names."""
    return {"commands.md": commands(), "python.md": python(), "metrics.md": metrics_page()}


def commands() -> str:
    from chainserve_client import cli
    from chainserve_server import cli as server_cli

    lines = [NOTE, "# Commands"]
    lines += _command("chainserve-server", server_cli.build_parser())
    for action in cli.build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, parser in action.choices.items():
                parser.description = parser.description or f"{(helps[name] or '').capitalize()}."
                lines += _command(f"chainserve {name}", parser)
    return "\n".join(lines) + "\n"


def _command(name: str, parser: argparse.ArgumentParser) -> list[str]:
    lines = ["", f"## {name}", "", parser.description or "", "", "| option | what |", "|---|---|"]
    for action in parser._actions:
        if "--help" not in action.option_strings and "--version" not in action.option_strings:
            shown = _shown(action).replace("|", "\\|")
            lines.append(f"| `{shown}` | {_help(action)} |")
    if parser.epilog:
        lines += ["", "```", parser.epilog, "```"]
    return lines


def _shown(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"[{value}]" if action.nargs == "?" else str(value)
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def _help(action: argparse.Action) -> str:
    needed = "; needed" if action.required and action.option_strings else ""
    return (action.help or "").replace("%%", "%").replace("|", "\\|") + needed


def python() -> str:
    lines = [NOTE, "# Python", "", "`from chainserve_client import ...`"]
    for name, module in API.items():
        tree = ast.parse((PROJECT / "client" / "chainserve_client" / f"{module}.py").read_text())
        [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        lines += ["", f"## {name}", "", _text(found)]
        if fields := list(_fields(found)):
            lines += ["", "| field | type | |", "|---|---|---|", *fields]
        for node in found.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                lines += _function(node)
    return "\n".join(lines) + "\n"


def _fields(found: ast.ClassDef) -> Iterator[str]:
    """Rows of the annotated fields, with the text that stands below them."""
    for node, after in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            told = after.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            what = " ".join(str(told.value).split()) if told else ""
            default = f" = {ast.unparse(node.value)}" if node.value and isinstance(node.value, ast.Constant) else ""
            kind = ast.unparse(node.annotation).replace("|", "\\|")
            yield f"| `{node.target.id}` | `{kind}{default}` | {what} |"


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    is_property = any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)
    given = "" if is_property else f"({re.sub(r'^(self|cls)(, )?', '', ast.unparse(node.args))})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    return ["", f"### {node.name}", "", "```python", f"{prefix}{node.name}{given}{returns}", "```", "", _text(node)]


def _text(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The docstring; indented parts and those that are code become code."""
    paragraphs = (ast.get_docstring(node) or "").split("\n\n")
    is_code = re.compile(r"^(async with|with|from|import) ")
    return "\n\n".join(f"```python\n{one}\n```" if is_code.match(one) else one for one in paragraphs)


def metrics_page() -> str:
    lines = [NOTE, "# Metrics", "", "What `/metrics` shows, beside what Prometheus's library tells of every process."]
    for title, path in METRICS.items():
        lines += ["", f"## {title}", "", "| name | kind | labels | what |", "|---|---|---|---|"]
        for metric in metrics(path):
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.what} |")
    return "\n".join(lines) + "\n"


class Metric(NamedTuple):
    """As it stands in the source."""

    name: str
    kind: str
    labels: tuple[str, ...]
    what: str


def metrics(path: str) -> list[Metric]:
    """Those that a file of the project makes, in their order."""
    tree = ast.parse((PROJECT / path).read_text())
    constants = dict(_constants(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind, values, common = KINDS.get(node.func.id, ""), node.args, ()
        elif isinstance(node, ast.Tuple):  # of a loop over several of the same kind
            kind, values, common = "histogram", node.elts, constants.get("MODEL", ())
        else:
            continue
        match values:
            case [ast.Constant(value=str(name)), ast.Constant(value=str(what)), *more] if kind and " " in what:
                ending = {"counter": "_total", "info": "_info"}.get(kind, "")
                labels = _labels(more[0], constants) if more else ()
                found.append((node.lineno, Metric(name + ending, kind, (*common, *labels), what)))
    return [metric for _, metric in sorted(found)]


def _constants(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Tuples of words at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            with suppress(ValueError):
                yield ast.unparse(node.targets[0]), ast.literal_eval(node.value)


def _labels(node: ast.expr, constants: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    match node:
        case ast.Constant(value=str(label)):
            return (label,)
        case ast.Tuple(elts=parts):
            return tuple(label for part in parts for label in _labels(part, constants))
        case ast.Starred(value=inner):
            return _labels(inner, constants)
        case ast.Name(id=name):
            return constants.get(name, ())
    return ()


def main() -> int:
    TARGET.mkdir(exist_ok=True)
    for name, text in pages().items():
        (TARGET / name).write_text(text)
        print(f"wrote {(TARGET / name).relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
