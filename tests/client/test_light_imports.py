"""What a client without a model imports: neither torch nor transformers, hivemind or numpy."""

import subprocess
import sys
from pathlib import Path

import pytest

FORBIDDING = Path(__file__).parent / "forbidding.py"
LIGHT = (
    "chainserve_client",
    "chainserve_client.bench.client_process",
    "chainserve_client.bench.command",
    "chainserve_client.bench.endpoint",
    "chainserve_client.bench.options",
    "chainserve_client.bench.processes",
    "chainserve_client.cli",
    "chainserve_client.dispatch",
    "chainserve_client.doctor.command",
    "chainserve_client.doctor.machine",
    "chainserve_client.doctor.swarm",
    "chainserve_client.join",
    "chainserve_client.network",
    "chainserve_client.opening",
    "chainserve_client.parameters",
    "chainserve_client.blocking",
    "chainserve_client.client",
    "chainserve_client.generation",
    "chainserve_client.gateway.app",
    "chainserve_client.gateway.command",
    "chainserve_client.gateway.metrics",
    "chainserve_client.health.page",
    "chainserve_client.health.watch",
    "chainserve_client.lifeline",
    "chainserve_client.token_command",
    "chainserve_client.token_session",
    "chainserve_client.status",
    "chainserve_client.text",
    "chainserve_client.text_model",
    "chainserve_client.token_bytes",
    "chainserve.protocol.text",
    "chainserve.swarm.light",
    "chainserve.swarm.plan_codec",
    "chainserve.swarm.plans",
    "chainserve.swarm.records",
    "chainserve.swarm.sealed",
    "chainserve.swarm.view",
    "chainserve.transport.calling_back",
    "chainserve.transport.direct",
    "chainserve.transport.exchange",
    "chainserve.transport.exposition",
    "chainserve.transport.links",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FORBIDDING), *arguments], capture_output=True, text=True, timeout=50, check=False
    )


def test_a_client_without_a_model_imports_nothing_heavy() -> None:
    done = run(*LIGHT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["torch", "chainserve.swarm.hivemind", "chainserve.models.source"])
def test_what_is_heavy_is_noticed(module: str) -> None:
    done = run(module)
    assert done.returncode == 1
    assert "is forbidden here" in done.stderr
