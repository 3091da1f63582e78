"""A program that behaves like a server of a family, as far as the parent can see, within milliseconds.

`--model` says what it does, step by step: a JSON list of words, or of pairs of a word and its argument.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from chainserve.errors import UsageError
from chainserve_server.standard_input import StandardInput

PROGRAM = (sys.executable, str(Path(__file__).resolve()))
TOKEN = "chainserve1.of-the-first"
SERVE: list[Any] = ["pid", "token", "online", "serve"]


def model(*steps: Any) -> tuple[str, str]:
    return "--model", json.dumps(steps)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--join")
    parser.add_argument("--leave-on-eof", action="store_true")
    options, _ = parser.parse_known_args()
    told_to_leave = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told_to_leave.set())
    standard_input = StandardInput(leave_on_eof=options.leave_on_eof)
    for step in json.loads(options.model):
        match step:
            case "pid":
                say(f"pid {os.getpid()}")
            case "arguments":
                say(f"arguments {json.dumps(sys.argv[1:])}")
            case "token" if options.join is None:
                say("\n" + TOKEN)
            case "token":
                try:
                    say(f"joins {standard_input.token()}")
                except UsageError as error:
                    sys.stderr.write(f"chainserve-server: {error}\n")
                    return 2
            case "online":
                say("chainserve-server 0.1.0 has joined swarm fake\nchainserve-server 0.1.0 is online\n  model   fake")
            case "serve":
                told_to_leave.wait()
                say("leaving the swarm")
            case "ignore":
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                say("ignores signals")
            case ["say", text]:
                say(text)
            case ["err", text]:
                sys.stderr.write(f"{text}\n")
            case "orphan":
                say(f"orphan {subprocess.Popen(['sleep', '60'], stdin=subprocess.DEVNULL, start_new_session=True).pid}")
            case ["exit", status]:
                return int(status)
            case _:
                raise AssertionError(step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
