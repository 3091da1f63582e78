"""A family of servers: one log, one Ctrl-C, and nobody left behind. The servers are fakes."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from fake_server import PROGRAM, SERVE, TOKEN, model

from chainserve.swarm.token import JoinToken
from chainserve_server.family import Family, ServerFailedError, describe_end
from chainserve_server.family_options import Child

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

READY_S = 20.0
FOREVER_S = 1000.0
JOIN = ("--join", "-")


class Log:
    """What a family says, to be waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._grown = asyncio.Condition()
        self._notifiers: set[asyncio.Task[None]] = set()

    def say(self, text: str) -> None:
        self.lines.append(text)
        notifier = asyncio.get_running_loop().create_task(self._notify())
        self._notifiers.add(notifier)
        notifier.add_done_callback(self._notifiers.discard)

    async def _notify(self) -> None:
        async with self._grown:
            self._grown.notify_all()

    async def until(self, pattern: str, *, times: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines match in full."""
        async with asyncio.timeout(READY_S), self._grown:
            while len(found := self.matches(pattern)) < times:
                await self._grown.wait()
        return found

    def matches(self, pattern: str) -> list[re.Match[str]]:
        return [match for line in self.lines if (match := re.fullmatch(pattern, line))]


@asynccontextmanager
async def family(
    *models: Sequence[Any], log: Log, joins: bool = True, **options: Any
) -> AsyncIterator[tuple[Family, "asyncio.Task[int]"]]:
    """A running family whose servers are named a, b, ... and do the steps of `models`; killed at the end."""
    children = [
        Child(name, (*model(*steps), *(JOIN if i and joins else ()), "--leave-on-eof"))
        for i, (name, steps) in enumerate(zip("abcdef", models, strict=False))
    ]
    running = Family(children, program=PROGRAM, **{"say": log.say, "leave_s": FOREVER_S, **options})
    task = asyncio.create_task(running.run())
    try:
        yield running, task
    finally:
        running.interrupt()
        running.interrupt()
        with suppress(Exception, asyncio.CancelledError):
            await asyncio.wait_for(task, READY_S)


async def done(task: "asyncio.Task[int]") -> int:
    return await asyncio.wait_for(asyncio.shield(task), READY_S)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def pids(log: Log, *, number: int) -> dict[str, int]:
    """Process ids of the servers by their names, once they are online."""
    await log.until(r"\[(.*)\] chainserve-server .* is online", times=number)
    return {match[1]: int(match[2]) for match in log.matches(r"\[(.*)\] pid (\d+)")}


async def test_every_line_is_marked_with_its_server() -> None:
    log = Log()
    steps = [["say", "hello"], ["err", "1%\r50%\r100%"], ["err", "caf\u00e9"], ["say", ""], ["say", "x" * 100_000]]
    async with family([*steps, ["exit", 0]], ["pid", "serve"], log=log, joins=False) as (_, task):
        with pytest.raises(ServerFailedError):
            await done(task)
    assert "[a] hello" in log.lines
    assert "[a] 100%" in log.lines
    assert "[a] café" in log.lines
    assert "[a]" not in log.lines
    assert sum(line.count("x") for line in log.lines) == 100_000
    assert all(line.startswith(("[a] ", "[b] ")) for line in log.lines)


async def test_the_first_ones_token_is_shown_once_alone_and_given_to_the_others() -> None:
    log = Log()
    steps = ["token", "token", "online", "serve"]
    async with family(steps, ["token", "online", ["say", TOKEN], "serve"], SERVE, log=log) as (running, task):
        await log.until(r"\[(.*)\] chainserve-server .* is online", times=3)
        assert log.lines.count(TOKEN) == 1
        assert {match[1] for match in await log.until(rf"\[(.*)\] joins {re.escape(TOKEN)}", times=2)} == {"b", "c"}
        running.interrupt()
        assert await done(task) == 0
    assert log.lines.count(TOKEN) == 1


async def test_a_token_that_is_given_goes_to_all() -> None:
    log = Log()
    child = Child("a", (*model(*SERVE), *JOIN, "--leave-on-eof"))
    running = Family([child], program=PROGRAM, say=log.say, token="chainserve1.given")
    task = asyncio.create_task(running.run())
    await log.until(r"\[a\] joins chainserve1\.given")
    running.interrupt()
    assert await done(task) == 0
    assert "chainserve1.given" not in log.lines


async def test_an_error_before_it_has_joined_ends_all_and_is_what_is_said() -> None:
    log = Log()
    broken = [["err", "a warning"], ["err", "chainserve-server: no device cuda:7"], ["exit", 2]]
    async with family(SERVE, ["token", *broken], SERVE, log=log) as (_, task):
        with pytest.raises(ServerFailedError) as caught:
            await done(task)
    assert str(caught.value) == "[b] no device cuda:7"
    assert "[b] a warning" in log.lines
    assert not any("no device" in line for line in log.lines)  # it is said at the end, once
    assert not any("leaving, within" in line for line in log.lines)


@pytest.mark.parametrize("status", [0, 1])
async def test_an_end_without_a_word_is_told_by_its_status(status: int) -> None:
    async with family(["token", ["exit", status]], SERVE, log=Log()) as (_, task):
        with pytest.raises(ServerFailedError, match=rf"^\[a\] ended with status {status} before it had joined$"):
            await done(task)


async def test_a_death_later_is_one_line_and_the_others_go_on() -> None:
    log = Log()
    async with family(SERVE, SERVE, SERVE, log=log) as (_, task):
        pid = await pids(log, number=3)
        os.kill(pid["b"], signal.SIGKILL)
        await log.until(r"\[b\] was killed by SIGKILL; those that go on: a, c")
        os.kill(pid["a"], signal.SIGTERM)
        await log.until(r"\[a\] ended with status 0; those that go on: c")
        assert is_alive(pid["c"])
        assert not task.done()
        os.kill(pid["c"], signal.SIGKILL)
        assert await done(task) == 1
    assert log.lines[-1] == "[c] was killed by SIGKILL; no server is left"


async def test_an_end_is_noticed_though_something_else_holds_the_pipes() -> None:
    log = Log()
    async with family(["token", "online", "orphan", ["exit", 3]], log=log) as (_, task):
        assert await done(task) == 1
    assert log.lines[-1] == "[a] ended with status 3; no server is left"
    os.kill(int(log.matches(r"\[a\] orphan (\d+)")[0][1]), signal.SIGKILL)


async def test_an_interrupt_lets_all_leave() -> None:
    log = Log()
    async with family(SERVE, SERVE, log=log) as (running, task):
        await pids(log, number=2)
        running.interrupt()
        assert await done(task) == 0
    assert {match[1] for match in log.matches(r"\[(.*)\] leaving the swarm")} == {"a", "b"}
    assert not any("ended with" in line for line in log.lines)


async def test_an_interrupt_before_they_have_joined_is_a_clean_end() -> None:
    log = Log()
    async with family(["pid", "serve", ["exit", 130]], log=log) as (running, task):
        await log.until(r"\[a\] pid \d+")
        running.interrupt()
        assert await done(task) == 0


@pytest.mark.parametrize("again", [False, True], ids=["after a while", "at once"])
async def test_who_does_not_leave_is_killed(again: bool) -> None:
    log = Log()
    steps = ["pid", "token", "ignore", "online", "serve"]
    async with family(SERVE, steps, log=log, leave_s=FOREVER_S if again else 0.2) as (running, task):
        pid = await pids(log, number=2)
        running.interrupt()
        await log.until(r"\[a\] leaving the swarm")
        if again:
            assert is_alive(pid["b"])
            running.interrupt()
        assert await done(task) == 1
        assert not is_alive(pid["b"])
    assert "[b] was killed by SIGKILL" in log.lines


async def test_when_the_log_can_go_nowhere_all_leave() -> None:
    log = Log()

    def say(text: str) -> None:
        log.say(text)
        if "is online" in text:
            raise BrokenPipeError

    async with family(SERVE, SERVE, log=log, say=say) as (_, task):
        with pytest.raises(BrokenPipeError):
            await done(task)
    assert not any(is_alive(int(match[1])) for match in log.matches(r"\[.*\] pid (\d+)"))


async def test_a_cancelled_family_leaves() -> None:
    log = Log()
    async with family(SERVE, SERVE, log=log) as (_, task):
        pid = await pids(log, number=2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await done(task)
        assert not any(map(is_alive, pid.values()))


def test_ends_have_words() -> None:
    assert describe_end(3) == "ended with status 3"
    assert describe_end(-9) == "was killed by SIGKILL"


class Command:
    """`chainserve-server` as a process of its own, whose children are fakes."""

    def __init__(self, *arguments: str) -> None:
        code = f"import sys, chainserve_server.cli as c; sys.exit(c.main(sys.argv[1:], program={PROGRAM!r}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, pattern: str, *, times: int = 1) -> list[re.Match[str]]:
        assert self.process.stdout is not None
        while len(found := self.matches(pattern)) < times:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()
            self.lines.append(line.rstrip("\n"))
        return found

    def matches(self, pattern: str) -> list[re.Match[str]]:
        return [match for line in self.lines if (match := re.fullmatch(pattern, line))]

    def end(self, text: str = "") -> tuple[int, str]:
        """Wait for its end; exit status and what it wrote to stderr."""
        out, err = self.process.communicate(text, timeout=READY_S)
        self.lines += out.splitlines()
        return self.process.returncode, err

    def children(self) -> list[int]:
        return [int(match[1]) for match in self.matches(r"\[.*\] pid (\d+)")]

    def close(self) -> None:
        for pid in self.children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def token() -> str:
    peer = "QmfFdxdN9ommd6kRHgQYXTKVNVFyuZacm2SbRKfAaMbs8s"
    return JoinToken("s", bytes(32), (f"/ip4/127.0.0.1/tcp/1/p2p/{peer}",), None).encode()


@pytest.fixture
def serving() -> Iterator[Command]:
    """A command with three servers that are online."""
    with Command(*model(*SERVE), "--num-servers", "3", "--memory", "1GB") as command:
        command.until(r"\[\d\] chainserve-server .* is online", times=3)
        yield command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_at_the_command_lets_all_leave(serving: Command, number: signal.Signals) -> None:
    children = serving.children()
    assert len({os.getsid(pid) for pid in (*children, serving.process.pid)}) == 4  # a terminal reaches only the parent
    serving.process.send_signal(number)
    assert serving.end() == (0, "")
    assert len(serving.matches(r"\[\d\] leaving the swarm")) == 3
    assert serving.lines.count(TOKEN) == 1
    assert not any(map(is_alive, children))


def test_a_second_ctrl_c_kills_at_once() -> None:
    with Command(
        *model("pid", "token", "ignore", "online", "serve"), "--num-servers", "2", "--memory", "1GB"
    ) as command:
        command.until(r"\[\d\] chainserve-server .* is online", times=2)
        command.process.send_signal(signal.SIGINT)
        command.until("leaving, within 15 s; Ctrl-C again ends all servers at once")
        assert all(map(is_alive, command.children()))
        command.process.send_signal(signal.SIGINT)
        assert command.end() == (1, "")
        assert not any(map(is_alive, command.children()))


async def test_no_server_outlives_a_parent_that_was_killed(serving: Command) -> None:
    serving.process.kill()
    async with asyncio.timeout(READY_S):
        while any(map(is_alive, serving.children())):
            await asyncio.sleep(0.02)


def test_what_keeps_a_server_from_starting_is_one_line_and_status_2() -> None:
    steps = model(["err", "chainserve-server: no model is called x"], ["exit", 2])
    with Command(*steps, "--devices", "cuda:3,cpu", "--port", "9000") as command:
        status, error = command.end()
    assert status == 2
    assert re.fullmatch(r"chainserve-server: \[(cuda:3|cpu)\] no model is called x\n", error)
    assert command.lines == []


def test_what_cannot_be_is_refused_before_anything_starts() -> None:
    with Command(*model("pid"), "--num-servers", "2", "--blocks", "0:10") as command:
        assert command.end() == (
            2,
            "chainserve-server: --blocks 0:10 is for one server: leave it out, and the swarm chooses\n",
        )
    with Command(*model("pid"), "--devices", "cpu", "--join", "nonsense") as command:
        status, error = command.end()
        assert status == 2
        assert "not a join token" in error
    assert command.lines == []


def test_each_server_is_told_its_own(tmp_path: Path) -> None:
    arguments = ["--num-servers", "2", "--memory", "2GB,1GB", "--port", "9000", "--identity", str(tmp_path / "key")]
    with Command(*model("arguments", *SERVE), *arguments, "--swarm", "home") as command:
        shown = command.until(r"\[(\d)\] arguments (.*)", times=2)
    told = {match[1]: " ".join(json.loads(match[2])[2:]) for match in shown}
    assert told == {
        "1": f"--swarm home --memory 2GB --port 9000 --identity {tmp_path}/key --leave-on-eof",
        "2": f"--swarm home --memory 1GB --port 9002 --identity {tmp_path}/key.1 --join - --leave-on-eof",
    }


def test_a_token_may_come_from_standard_input(token: str) -> None:
    with Command(*model("token", ["exit", 1]), "--devices", "cpu", "--join", "-") as command:
        status, _ = command.end(token[:20] + token[20:] + "\n")
        assert command.matches(rf"\[cpu\] joins {re.escape(token)}")
        assert status == 2


@pytest.mark.parametrize("written", ["", "\n"])
def test_standard_input_without_a_token_is_an_error(written: str) -> None:
    done = subprocess.run(
        [*PROGRAM, *model("token"), *JOIN], input=written, capture_output=True, text=True, timeout=READY_S, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "chainserve-server: no join token on standard input: --join - reads one line from there\n"


def test_a_token_needs_no_end_of_line() -> None:
    done = subprocess.run(
        [*PROGRAM, *model("token"), *JOIN], input="abc", capture_output=True, text=True, timeout=READY_S, check=True
    )
    assert done.stdout == "joins abc\n"


async def test_in_json_every_line_says_its_server_and_the_token_may_be_kept_elsewhere() -> None:
    log, kept = Log(), Log()

    def said(message: str, **more: str) -> list[str]:
        return ["say", json.dumps({"message": message, "level": "info", "logger": "chainserve-server", **more})]

    steps = [["err", "not JSON"], said("a fact", time="now"), said(TOKEN), ["say", "[]"], "serve"]
    async with family(steps, log=log, as_json=True, keep_token=kept.say) as (running, task):
        await log.until(r".*a fact.*")
        await kept.until(re.escape(TOKEN))
        running.interrupt()
        await done(task)
    lines = [json.loads(line) for line in log.lines]
    assert TOKEN not in [line["message"] for line in lines]
    [fact] = [line for line in lines if line["message"] == "a fact"]
    assert (fact["server"], fact["time"]) == ("a", "now")
    [other] = [line for line in lines if line["message"] == "not JSON"]
    assert (other["server"], other["level"]) == ("a", "info")


async def test_in_json_too_an_error_before_it_has_joined_is_what_is_said() -> None:
    log = Log()
    line = {"message": "no device cuda:7", "level": "error", "logger": "chainserve-server"}
    async with family([["err", json.dumps(line)], ["exit", 2]], log=log, as_json=True) as (_, task):
        with pytest.raises(ServerFailedError, match=r"\[a\] no device cuda:7"):
            await done(task)
