"""The reference in docs is what the code says now, and links in docs lead somewhere."""

import re
from pathlib import Path

import pytest
from project_files import PROJECT, reference

DOCS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def test_the_reference_is_what_the_code_says_now() -> None:
    script = reference()
    stale = [name for name, text in script.pages().items() if (script.TARGET / name).read_text() != text]
    assert stale == [], "run scripts/reference.py"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    targets = [target for target, _ in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_metrics_in_the_reference_are_those_that_are_shown() -> None:
    from chainserve_client.gateway.metrics import GatewayMetrics

    found = reference().metrics(reference().METRICS["The gateway"])
    endings = {"counter": "_total", "info": "_info"}
    shown = {family.name + endings.get(family.type, "") for family in GatewayMetrics().families()}
    assert {metric.name for metric in found} == shown
