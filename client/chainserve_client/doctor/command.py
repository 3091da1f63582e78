"""`chainserve doctor`: its options, and all that it looks at, one after the other."""

import argparse
import json
from collections.abc import AsyncIterator, Callable

from chainserve.errors import UsageError
from chainserve_client.doctor import machine
from chainserve_client.doctor.finding import Finding, Level


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its options."""
    parser = commands.add_parser("doctor", help="check this machine, and the way between it and a swarm")
    parser.add_argument("token", metavar="TOKEN", nargs="?", help="join token: look at this swarm as well")
    parser.add_argument("--model", help="see whether this model can be had here")
    parser.add_argument("--device", help="look at this one only: cpu, cuda, cuda:1, mps")
    parser.add_argument("--host", metavar="ADDRESS", help="where a server is to listen, as for chainserve-server")
    parser.add_argument("--port", type=int, metavar="PORT", help="and at which port")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def check(options: argparse.Namespace) -> None:
    """UsageError if the options do not go together."""
    if options.host is None and options.port is not None:
        raise UsageError("--port needs --host: where the server is to listen, 0.0.0.0 for all addresses")
    if options.port is not None and not 0 < options.port < 65535:
        raise UsageError(f"not a port: {options.port} (want 1 to 65534, as the DHT takes the next one)")


async def examine(options: argparse.Namespace) -> AsyncIterator[Finding]:
    """All findings, as they come."""
    yield machine.packages()
    if machine.can_serve():
        for finding in machine.devices(options.device):
            yield finding
    yield machine.memory()
    if options.model is None:
        yield machine.disk()
    elif machine.can_serve():
        from chainserve_client.doctor.model import model

        for finding in model(options.model):
            yield finding
    if options.host is not None and options.port is not None:
        yield machine.ports(options.host, options.port)
    if options.token is not None:
        from chainserve_client.doctor.swarm import swarm

        async for finding in swarm(options.token, host=options.host, port=options.port or 0):
            yield finding


async def run(options: argparse.Namespace, *, say: Callable[[str], None], with_colours: bool) -> int:
    """Say what is found; the exit status is 1 if something has failed."""
    check(options)
    findings = []
    async for finding in examine(options):
        findings.append(finding)
        if not options.json:
            say(finding.text(with_colours=with_colours))
    if options.json:
        say(to_json(findings))
    return int(any(finding.level is Level.FAILED for finding in findings))


def to_json(findings: list[Finding]) -> str:
    content = {
        "ok": not any(finding.level is Level.FAILED for finding in findings),
        "findings": [
            {
                "name": finding.name,
                "level": finding.level,
                "fact": finding.fact,
                "advice": finding.advice or None,
            }
            for finding in findings
        ],
    }
    return json.dumps(content, indent=2)
