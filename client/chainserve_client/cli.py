"""`chainserve`: talk to a swarm, look at it, serve it to others and plan one, from the terminal."""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

from chainserve import __version__
from chainserve.errors import ChainserveError, UsageError
from chainserve.runtime.cores import free_idle_cores
from chainserve.runtime.loops import quickest_loop
from chainserve_client import plan_command, token_command
from chainserve_client.bench import options as bench_options
from chainserve_client.colours import wants_colours
from chainserve_client.completion import SHELLS, complete
from chainserve_client.doctor import command as doctor_command
from chainserve_client.examples import TOKEN_HELP, add_examples
from chainserve_client.gateway import command as gateway_command
from chainserve_client.parameters import GenerationOptions, Parameters

if TYPE_CHECKING:
    from chainserve_client.client import AsyncClient
    from chainserve_client.generation import Generation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; errors users can do something about are one line and exit status 2."""
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    free_idle_cores()
    try:
        if options.command in ("gateway", "health"):
            gateway_command.check(options)  # before a token may have to be waited for
        if getattr(options, "token", None) == "-":
            options.token = sys.stdin.readline().strip()
            if not options.token:
                raise UsageError("no join token on standard input")
        if options.command == "plan":
            print(plan_command.run(options))
            return 0
        if options.command == "completion":
            print(complete(build_parser(), options.shell))
            return 0
        with asyncio.Runner(loop_factory=quickest_loop()) as runner:
            return runner.run(COMMANDS[options.command](options)) or 0
    except ChainserveError as error:
        print(f"chainserve: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"chainserve: this takes {error.name}: pip install 'chainserve[client-full]'", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        print(file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chainserve",
        description="Talk to a chainserve swarm, look at it, serve it to others, or plan one.",
    )
    parser.add_argument("--version", action="version", version=f"chainserve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("token", metavar="TOKEN", help=TOKEN_HELP)
    common.add_argument("--model", help="which of the swarm's models, or where this machine has it")
    common.add_argument("--draft-model", metavar="MODEL", help="a smaller model of its family, on this machine, drafts")
    common.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="at most so many (256)")
    common.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    common.add_argument("--top-p", type=float, metavar="P", help="only the likeliest that make up P")
    common.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest")
    common.add_argument("--seed", type=int, help="equal seeds draw equal tokens")
    common.add_argument("--stop", action="append", metavar="TEXT", help="end before TEXT; may be repeated")
    common.add_argument(
        "--timeout",
        dest="timeout_s",
        type=float,
        metavar="SECONDS",
        help="give up after so long, waiting included (600)",
    )
    common.add_argument("--json", action="store_true", help="print each answer as a line of JSON, when it is complete")
    chat = commands.add_parser("chat", parents=[common], help="hold a conversation")
    chat.add_argument("message", metavar="MESSAGE", nargs="?", help="ask this and exit")
    chat.add_argument("--system", metavar="TEXT", help="what the model is told first")
    generate = commands.add_parser("generate", parents=[common], help="continue a text")
    generate.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    status = commands.add_parser("status", help="show who is in a swarm, what they hold, and their plan")
    status.add_argument("token", metavar="TOKEN", help=TOKEN_HELP)
    status.add_argument("--json", action="store_true", help="print everything as JSON")
    plan_command.add_parser(commands)
    gateway_command.add_parser(commands)
    token_command.add_parser(commands)
    doctor_command.add_parser(commands)
    bench_options.add_parser(commands)
    completion = commands.add_parser("completion", help="print what completes these commands in a shell")
    completion.add_argument("shell", choices=SHELLS, help="which shell")
    add_examples({"": parser, **commands.choices})
    return parser


def generation_options(options: argparse.Namespace) -> GenerationOptions:
    """Those that were given; the others keep the client's defaults."""
    names = GenerationOptions.__annotations__
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    return cast(GenerationOptions, given)


async def generate(options: argparse.Namespace) -> None:
    """Continue one text."""
    async with await connect(options) as client:
        report(await show(client, client.encode(options.prompt), options), options)


async def chat(options: argparse.Namespace) -> None:
    """Answer one message, or converse until the end of input."""
    async with await connect(options) as client:
        messages = [{"role": "system", "content": options.system}] if options.system else []
        while True:
            if options.message is not None:
                message = options.message
            else:
                message = await asyncio.to_thread(input, "" if options.json else "> ")
            messages.append({"role": "user", "content": message})
            answer = await show(client, client.encode_chat(messages), options)
            report(answer, options)
            if options.message is not None:
                return
            messages.append({"role": "assistant", "content": answer.text})


async def status(options: argparse.Namespace) -> None:
    """Show the live view, and the plan that is followed."""
    check_token(options.token)

    from chainserve_client.status import read_status, to_json, to_text

    current = await read_status(options.token)
    print(to_json(current) if options.json else to_text(current))


async def token(options: argparse.Namespace) -> int:
    """Show what a token holds; 1 if nobody can join with it now."""
    found = await token_command.read_token(options.token)
    print(token_command.to_json(found) if options.json else token_command.to_text(found))
    return int(not found.is_good)


async def bench(options: argparse.Namespace) -> int:
    """Show what requests took; 1 if some were not answered."""
    from chainserve_client.bench.command import bench as run_bench

    bench_options.check(options)
    if options.token is not None:
        check_token(options.token)
    done = await run_bench(options, terminal=sys.stderr if sys.stderr.isatty() else None)
    print(done.text)
    return done.status


async def doctor(options: argparse.Namespace) -> int:
    """Say what is found; 1 if something has failed."""
    return await doctor_command.run(
        options, say=lambda text: print(text, flush=True), with_colours=wants_colours(sys.stdout)
    )


async def gateway(options: argparse.Namespace) -> None:
    """Serve the API until interrupted, and the health page."""
    await _serve(options, "serving at", "/v1")


async def health(options: argparse.Namespace) -> None:
    """Serve the health page until interrupted; it is the gateway under another name."""
    await _serve(options, "health page at", "/")


async def _serve(options: argparse.Namespace, what: str, path: str) -> None:
    check_token(options.token)
    has_ended = gateway_command.end_of_input(is_watched=options.leave_on_eof)
    async with gateway_command.serving(options) as url:
        print(json.dumps({"url": f"{url}{path}"}) if options.json else f"{what} {url}{path}", flush=True)
        await until_terminated(has_ended)


async def until_terminated(terminated: asyncio.Event) -> None:
    """Wait for SIGTERM, or what else sets the event; Ctrl-C cancels."""
    with suppress(NotImplementedError):  # on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await terminated.wait()


async def api_key(options: argparse.Namespace) -> None:
    """Make a key, and say what belongs into the file of keys."""
    from chainserve_client.gateway.keys import new_key

    key, table = new_key(options.name)
    if options.json:
        print(json.dumps({"name": options.name, "key": key, "toml": table}))
        return
    print(f"key, shown this once: {key}", file=sys.stderr)
    print(table, end="")


async def connect(options: argparse.Namespace) -> "AsyncClient":
    Parameters.parse(generation_options(options))
    check_token(options.token)

    from chainserve_client.client import AsyncClient

    return await AsyncClient.connect(options.token, model=options.model, draft_model=options.draft_model)


def check_token(text: str) -> None:
    """TokenError, before anything slow is imported, if this leads to no swarm."""
    from chainserve.swarm.token import JoinToken

    JoinToken.decode(text, now=time.time())


async def show(client: "AsyncClient", prompt: list[int], options: argparse.Namespace) -> "Generation":
    """Print an answer as it comes, or as JSON once it has."""
    stream = client.stream(prompt, **generation_options(options))
    async with aclosing(stream):
        async for piece in stream:
            if not options.json:
                print(piece.text, end="", flush=True)
    print(answer_json(stream.result) if options.json else "", flush=True)
    return stream.result


def answer_json(answer: "Generation") -> str:
    """An answer on one line: its text, and what the gateway says of one."""
    from chainserve_client.gateway.answers import report_of

    content = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.num_prompt_tokens,
        "tokens": list(answer.tokens),
    }
    return json.dumps(content | report_of(answer))


def report(answer: "Generation", options: argparse.Namespace) -> None:
    """Say how long the answer took and where it ran, and which servers were lost on the way."""
    if options.json:
        return
    for recovery in answer.recoveries:
        print(
            f"[lost {recovery.peer[-6:]}, went on after {recovery.stall_s:.1f} s: {recovery.reason}]", file=sys.stderr
        )
    print(
        f"[{len(answer.tokens)} tokens, {answer.tokens_per_second:.1f} tokens/s, "
        f"first after {answer.first_token_s:.2f} s, over {answer.chain}]",
        file=sys.stderr,
    )


COMMANDS: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, int | None]]] = {
    "chat": chat,
    "generate": generate,
    "status": status,
    "gateway": gateway,
    "health": health,
    "api-key": api_key,
    "token": token,
    "doctor": doctor,
    "bench": bench,
}


if __name__ == "__main__":
    sys.exit(main())
