"""The bodies of answers, whole and as events of a stream."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from chainserve.types import Chain
from chainserve_client.client import AsyncClient
from chainserve_client.gateway.asked import Asked
from chainserve_client.gateway.form import Choice, Form, Scored
from chainserve_client.generation import Generation, Piece

DONE = b"data: [DONE]\n\n"


class Answer:
    """What one request is answered, in the form of its endpoint."""

    def __init__(self, form: Form, asked: Asked, client: AsyncClient) -> None:
        self._form = form
        self._asked = asked
        self._ends = frozenset() if asked.options.get("ignore_end") else client.text.end_tokens
        self._head = {"id": f"{form.id_prefix}-{secrets.token_hex(12)}", "created": int(time.time())}
        self._model = asked.model
        prompts = [prompt for prompt in asked.prompts for _ in range(asked.num_choices)]
        self._logprobs = [form.logprobs(client.text) for _ in prompts]
        self._writers = [form.writer(client.text, prompt) for prompt in prompts]

    def whole(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """All choices, which come prompt by prompt."""
        choices = []
        for index, generation in enumerate(generations):
            scored = list(zip(generation.tokens, generation.logprobs, strict=False))
            choice = self._choice(index, self._writers[index].whole(generation.text), scored)
            choices.append(self._ended(index, choice, generation))
        return {**self._body(self._form.whole_object, choices), "usage": self._usage(generations)}

    def first(self, index: int) -> bytes:
        """How a choice begins."""
        choice = self._writers[index].first()
        return b"" if choice is None else self._event([self._choice(index, choice)])

    def piece(self, index: int, piece: Piece) -> bytes:
        """More of a choice; nothing if there is nothing to tell."""
        scored = [] if piece.logprobs is None else [(piece.token, piece.logprobs)]
        parts = self._writers[index].more(piece.text)
        if not parts and self._shown(scored):
            parts = [self._writers[index].empty()]
        choices = [self._choice(index, part, () if at else scored) for at, part in enumerate(parts)]
        return b"".join(self._event([choice]) for choice in choices)

    def last(self, index: int, generation: Generation) -> bytes:
        """How a choice ends."""
        writer = self._writers[index]
        parts = [*writer.rest(), writer.empty()]
        *choices, last = (self._choice(index, part) for part in parts)
        return b"".join(self._event([each]) for each in (*choices, self._ended(index, last, generation)))

    def usage(self, generations: Sequence[Generation]) -> bytes:
        """The event before the last, for who wants it."""
        if not self._asked.with_usage:
            return b""
        return event({**self._body(self._form.chunk_object, []), "usage": self._usage(generations)})

    def _choice(self, index: int, choice: Choice, scored: Scored = ()) -> Choice:
        shown = self._shown(scored)
        logprobs = self._logprobs[index].write(shown) if shown else None
        return {"index": index, **choice, "logprobs": logprobs, "finish_reason": None}

    def _shown(self, scored: Scored) -> Scored:
        """Without the end token, which is no part of the text."""
        return [(token, logprobs) for token, logprobs in scored if token not in self._ends]

    def _ended(self, index: int, choice: Choice, generation: Generation) -> Choice:
        report = {"chainserve": report_of(generation)} if self._asked.with_report else {}
        return {**choice, "finish_reason": self._writers[index].reason(generation.finish_reason), **report}

    def _event(self, choices: Sequence[Choice]) -> bytes:
        usage = {"usage": None} if self._asked.with_usage else {}
        return event({**self._body(self._form.chunk_object, choices), **usage})

    def _body(self, kind: str, choices: Sequence[Choice]) -> dict[str, Any]:
        return {**self._head, "object": kind, "model": self._model, "choices": list(choices)}

    def _usage(self, generations: Sequence[Generation]) -> dict[str, int]:
        """Prompts count once, however many choices there are of each."""
        num_prompt = sum(each.num_prompt_tokens for each in generations[:: self._asked.num_choices])
        num_answered = sum(len(each.tokens) for each in generations)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_answered,
            "total_tokens": num_prompt + num_answered,
        }


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def route(chain: Chain) -> str:
    """'PEER 0:15, PEER 15:30', as a header has it."""
    return ", ".join(f"{hop.peer} {hop.span}" for hop in chain.hops)


def hop_times(generation: Generation) -> str:
    """'PEER queue=1.2 compute=30.5, ...' in milliseconds, as a header has it."""
    times = generation.hop_times
    return ", ".join(
        f"{each.peer} queue={1000 * each.queue_s:.1f} compute={1000 * each.compute_s:.1f}" for each in times
    )


def report_of(generation: Generation) -> dict[str, Any]:
    """Where a choice was made, and how fast."""
    return {
        "route": [{"peer": hop.peer, "blocks": [hop.span.start, hop.span.end]} for hop in generation.chain.hops],
        "hops": [
            {"peer": each.peer, "queue_s": round(each.queue_s, 4), "compute_s": round(each.compute_s, 4)}
            for each in generation.hop_times
        ],
        "queue_s": round(generation.waited_s, 4),
        "first_token_s": round(generation.first_token_s, 4),
        "total_s": round(generation.total_s, 4),
        "tokens_per_s": round(generation.tokens_per_second, 2),
        "recoveries": [
            {"peer": recovery.peer, "reason": recovery.reason, "stall_s": round(recovery.stall_s, 4)}
            for recovery in generation.recoveries
        ],
    }
