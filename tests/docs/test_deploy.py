"""What deploy/ asks for exists: metrics and their labels, options, files."""

import json
import re
import shlex
from pathlib import Path

import pytest
from project_files import PROJECT, reference

from chainserve_client.cli import build_parser
from chainserve_server.cli import build_parser as build_server_parser

DEPLOY = PROJECT / "deploy"
PROMETHEUS = {"le", "instance", "job"}
WORDS = {"sum", "max", "rate", "increase", "by", "histogram_quantile"}


def queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def known() -> dict[str, set[str]]:
    """Labels of each series by its name, a histogram's apart."""
    script = reference()
    series = {}
    for metric in (metric for path in script.METRICS.values() for metric in script.metrics(path)):
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        series |= {metric.name + ending: {*metric.labels} for ending in endings}
    return series


@pytest.mark.parametrize("query", queries())
def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(query: str) -> None:
    series, plain = known(), query.replace("$__rate_interval", "")
    grouped = [label.strip() for group in re.findall(r"by \(([^)]*)\)", plain) for label in group.split(",")]
    names = set(re.findall(r"[a-z_]{2,}", re.sub(r"by \([^)]*\)", "", plain))) - WORDS
    assert names <= series.keys()
    labels = set.union(*(series[name] for name in names))
    assert set(grouped) <= labels | PROMETHEUS


def test_the_dashboard_shows_what_its_legends_name() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.search(r"by \(([^)]*)\)", target["expr"])
            assert legend <= ({*re.split(r",\s*", kept[1])} if kept else PROMETHEUS), panel["title"]


def commands(path: Path) -> list[list[str]]:
    """Command lines of a unit or an image."""
    text = path.read_text()
    lines = [line.split("=", 1)[1] for line in text.splitlines() if line.startswith("ExecStart=")]
    if path.name == "Dockerfile":
        entries = re.findall(r"^ENTRYPOINT (\[.*\])\nCMD (\[.*\])", text, re.MULTILINE)
        lines += [shlex.join([*json.loads(entry), *json.loads(more)]) for entry, more in entries]
    return [[word for word in shlex.split(line) if word != "$CHAINSERVE_OPTIONS"] for line in lines]


@pytest.mark.parametrize("name", ["chainserve-server.service", "chainserve-gateway.service", "Dockerfile"])
def test_commands_are_such_that_there_are(name: str) -> None:
    found = commands(DEPLOY / name)
    assert found
    for program, *words in found:
        if Path(program).name == "chainserve":
            assert build_parser().parse_args(words).token == "-"
        elif "--help" not in words:
            build_server_parser().parse_args(["--model", "m", *words])


def test_what_the_image_copies_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (PROJECT / name).exists(), name
