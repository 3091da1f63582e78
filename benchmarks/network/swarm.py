"""A swarm of server processes on hosts that were made: started, asked, hurt, and stopped whatever happens."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chainserve.errors import ChainserveError, JoinError
from chainserve_server.local import LocalServer, LocalSwarm
from network import server_at
from network.asking import status_at
from network.emulation import Hosts
from network.settings import CLIENT, Policy, Setting, environment_of, server_options

COMMAND = (sys.executable, "-P", "-m", "chainserve_client.cli")
LOOK_S = 1.0
STABLE_S = 5.0
"""A plan has to be followed for so long: the first ones are made before all servers and links are known."""
STATUS_S = 30.0

Say = Callable[[str], None]


class SwarmNotReadyError(ChainserveError):
    """A swarm that does not come to serve the whole model."""


class BenchFailedError(ChainserveError):
    """The load command ended without a report."""


def is_served(status: Mapping[str, Any], *, num_servers: int) -> bool:
    """Whether all servers follow one plan for all of them, and hold what it says."""
    if len(status["models"]) != 1:
        return False
    (model,) = status["models"]
    plan, servers = model["plan"], {server["peer"]: server for server in status["servers"]}
    if not plan or not plan.get("is_settled") or model["missing_blocks"]:
        return False
    if not len(servers) == len(plan["servers"]) == plan["num_followers"] == num_servers:
        return False
    return all(
        planned["peer"] in servers
        and servers[planned["peer"]]["epoch"] == plan["epoch"]
        and servers[planned["peer"]]["blocks"] == planned["blocks"]
        and (planned["blocks"] is None or servers[planned["peer"]]["state"] == "online")
        for planned in plan["servers"]
    )


class NetworkSwarm:
    """Servers, one a host; leaving the `with` block stops them all."""

    def __init__(self, hosts: Hosts, setting: Setting, policy: Policy, folder: Path, *, profiles: Path) -> None:
        self._hosts = hosts
        self._setting = setting
        self._policy = policy
        self._folder = folder
        self._local = LocalSwarm(
            setting.model,
            folder,
            environment=environment_of(setting, profiles),
            program=[str(Path(server_at.__file__))],
            is_warm=True,
        )
        self.at: dict[str, LocalServer] = {}  # by host, those that run
        self.host_of: dict[str, str] = {}  # by peer, those that have ever run

    @property
    def token(self) -> str:
        return self._local.token

    def start(self, say: Say) -> dict[str, Any]:
        """Start all servers; returns the status once all is served. SwarmNotReadyError if that takes too long."""
        began_s = time.monotonic()
        for host in self._setting.servers:
            self.launch(host)  # the second one waits for the token of the first
        return self.wait(began_s + self._setting.start_s, say)

    def launch(self, host: str) -> None:
        """Start a server on a host, which joins the others, if there are any."""
        place = [server_at.NAMESPACE, self._hosts.namespace(host), "--host", self._hosts.address(host)]
        self.at[host] = self._local.launch("auto", [*place, *server_options(self._setting, host, self._policy)])

    def wait(self, deadline_s: float, say: Say) -> dict[str, Any]:
        """Until one plan has been followed by all for a while; the status then."""
        epoch, since_s = None, time.monotonic()
        while True:
            self._check_alive()
            status = self.status()
            now_s = time.monotonic()
            if not is_served(status, num_servers=len(self.at)):
                epoch = None
            elif (new := status["models"][0]["plan"]["epoch"]) != epoch:
                epoch, since_s = new, now_s
                say(f"plan {epoch} is followed")
            elif now_s - since_s >= STABLE_S:
                self.host_of |= {server.peer: host for host, server in self.at.items()}
                return status
            if now_s > deadline_s:
                raise SwarmNotReadyError(f"the swarm does not serve all blocks: {json.dumps(brief(status))}")
            time.sleep(LOOK_S)

    def _check_alive(self) -> None:
        for host, server in self.at.items():
            if server.process.poll() is not None:
                said = server.output().strip()[-2000:]
                raise SwarmNotReadyError(f"{host} ended with {server.process.returncode}: {said}")

    def status(self) -> dict[str, Any]:
        """What the client's host sees of the swarm; nothing of one that cannot be joined yet."""
        try:
            return status_at(self._hosts.namespace(CLIENT), self.token, timeout_s=STATUS_S)
        except (TimeoutError, JoinError):
            return {"models": [], "servers": []}

    def bench(self, options: list[str], *, timeout_s: float) -> dict[str, Any]:
        """Send load from the client's host; BenchFailedError if no report comes of it."""
        words = self._hosts.command(CLIENT, [*COMMAND, "bench", self.token, *options])
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except BaseException:  # whatever ends us, too: it goes on by itself otherwise
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        try:
            report: dict[str, Any] = json.loads(output)
        except ValueError:
            raise BenchFailedError(f"chainserve bench ended with {process.returncode} and said: {output}") from None
        return report

    def kill(self, host: str) -> None:
        """End a server without warning."""
        server = self.at.pop(host)
        self.host_of[server.peer] = host
        server.process.kill()
        server.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._local.close()


def brief(status: Mapping[str, Any]) -> dict[str, Any]:
    """Of a status, what matters for whether it serves."""
    return {
        "servers": [[server["state"], server["blocks"], server["epoch"]] for server in status["servers"]],
        "plans": [model["plan"] and model["plan"].get("epoch") for model in status["models"]],
        "missing": [model["missing_blocks"] for model in status["models"]],
    }


@dataclass
class Killing:
    """Kills a server at random every so often, and starts it again; not the first, whose address is in the token."""

    swarm: NetworkSwarm
    every_s: float
    again_after_s: float
    chance: random.Random
    log: list[dict[str, Any]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        began_s = time.monotonic()
        first = next(iter(self.swarm.at))
        while not self._over.wait(self.every_s - self.again_after_s):
            host = self.chance.choice([name for name in self.swarm.at if name != first])
            if not self.swarm.at[host].has_joined:
                continue
            self.swarm.kill(host)
            self.log.append({"host": host, "at_s": round(time.monotonic() - began_s, 1)})
            if self._over.wait(self.again_after_s):
                return
            self.swarm.launch(host)
