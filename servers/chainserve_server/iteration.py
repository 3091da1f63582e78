"""One iteration of an engine: a packed forward over steps of many sessions, and what goes on from there to whom."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import torch

from chainserve.errors import GrammarError, StepError
from chainserve.models.runner import Runner
from chainserve.models.wire import from_wire, to_wire
from chainserve.planning.profile import MAX_OUTPUTS
from chainserve.protocol.messages import Activations, Choice, FailureCode, Sampled, Step, WireTensor
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.slowdown import Pace
from chainserve_server.work import Batch, Failure, Forward, Keeping, Outcome, Outgoing, Work

Pack = Callable[[torch.Tensor], WireTensor]


def run_batch(runner: Runner, batch: Batch, *, pack: Pack = to_wire, pace: Pace | None = None) -> Outcome:
    """Run `batch` in one forward per span; one message per receiver. Called in the compute thread.

    `pack` makes bytes of activations for the next server; clients get theirs as they are. With a `pace`, what is
    quicker waits until its time is over.
    """
    outcome = Outcome([], [])
    for first in batch.firsts:
        if isinstance(first, Keeping):
            runner.cache.keep(first.session, first.pages)
            continue
        try:
            runner.cache.reorder(first.message.session, first.message.sources)
        except StepError as error:
            outcome.failures.append((SessionId(error.session), FailureCode.BAD_MESSAGE, str(error)))
        else:
            if first.receiver is not None:
                outcome.messages.append((first.receiver, first.message))
    for span, same_span in groupby(batch.works, key=lambda work: work.span):
        works = list(same_span)
        while works:
            began = time.perf_counter()
            try:
                outcome.messages.extend(run_works(runner, works, span, pack=pack, failures=outcome.failures))
            except StepError as error:  # raised before anything ran: go on without that session
                outcome.failures.append((SessionId(error.session), FailureCode.BAD_MESSAGE, str(error)))
                works = [work for work in works if work.step.session != error.session]
            else:
                forward = forward_of(works, span, seconds=time.perf_counter() - began)
                if pace is not None and (wait_s := pace(forward) - forward.seconds) > 0:
                    time.sleep(wait_s)
                    forward = replace(forward, seconds=time.perf_counter() - began)
                outcome.forwards.append(forward)
                break
    return outcome


def forward_of(works: list[Work], span: Span, *, seconds: float) -> Forward:
    """What to say of a forward that ran `works`."""
    num_tokens = [work.step.num_tokens for work in works]
    num_decode = num_tokens.count(1)
    num_outputs = sum(work.step.num_outputs for work in works if work.sampler is not None)
    num_drafts = sum(work.step.num_tokens for work in works if work.is_decoding and work.step.num_tokens > 1)
    return Forward(span, num_decode, sum(num_tokens) - num_decode, seconds, num_outputs, num_drafts)


def run_works(
    runner: Runner, works: list[Work], span: Span, *, pack: Pack, failures: list[Failure]
) -> list[tuple[PeerId, Outgoing]]:
    """One packed forward, and its outputs as one message per receiver; `works` come sorted by receiver.

    Sessions that cannot go on after it are added to `failures`.
    """
    rows = [rows_of_work(runner, work) for work in works]
    hidden = rows[0] if len(rows) == 1 else torch.cat(rows)
    outputs = runner.forward(hidden, [work.step for work in works], span)
    parts = outputs.split([work.step.num_tokens for work in works])
    pairs = list(zip(works, parts, strict=True))
    sampling = [pair for pair in pairs if pair[0].sampler is not None]
    messages: list[tuple[PeerId, Outgoing]] = sample(runner, sampling, failures)
    untold = [pair for pair in pairs if pair[0].sampler is None]
    for (receiver, is_tail), group in groupby(untold, key=lambda pair: (pair[0].receiver, pair[0].is_tail)):
        leaving = [outgoing(work, part) for work, part in group if not is_tail or work.step.num_outputs]
        if leaving:
            steps, tensors = zip(*leaving, strict=True)
            packed = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            messages.append((receiver, Activations(steps, to_wire(packed) if is_tail else pack(packed))))
    return messages


def rows_of_work(runner: Runner, work: Work) -> torch.Tensor:
    """What goes into the first block: (step.num_tokens, hidden size)."""
    if work.hidden is None:
        return runner.ends.embed(torch.tensor(work.step.ids, device=runner.device))
    return from_wire(work.hidden, dtype=runner.dtype, device=runner.device)


def sample(
    runner: Runner, pairs: list[tuple[Work, torch.Tensor]], failures: list[Failure]
) -> list[tuple[PeerId, Outgoing]]:
    """Choose the next tokens of sessions in token mode: one message per head, and then one per client."""
    choices: dict[PeerId, list[Choice]] = {}
    told: dict[PeerId, list[Choice]] = {}
    asked = [(work, rows[-work.step.num_outputs :]) for work, rows in pairs if work.step.num_outputs]
    for work, _ in pairs:
        assert work.sampler is not None
        work.sampler.take(work.step.start, work.step.ids)
    while asked:
        group: list[tuple[Work, torch.Tensor]] = []
        num_rows = 0
        while asked and (not group or num_rows + len(asked[0][1]) <= MAX_OUTPUTS):
            group.append(asked.pop(0))
            num_rows += len(group[-1][1])
        logits = runner.ends.logits(torch.cat([rows for _, rows in group]))
        likeliest = logits.float().argmax(dim=-1).tolist()
        first = 0
        for work, rows in group:
            assert work.sampler is not None
            assert work.head is not None
            step, end = work.step, first + len(rows)
            try:
                choice = work.sampler.choose(
                    logits[first:end],
                    start=step.start + step.num_tokens - len(rows),
                    drafts=step.ids[len(step.ids) - len(rows) + 1 :],
                    likeliest=likeliest[first:end],
                )
            except GrammarError as error:
                failures.append((step.session, FailureCode.BAD_GRAMMAR, str(error)))
                continue
            finally:
                first = end
            choices.setdefault(work.head, []).append(choice)
            told.setdefault(work.receiver, []).append(choice)
    return [(peer, Sampled(tuple(made))) for by_peer in (choices, told) for peer, made in by_peer.items()]


def outgoing(work: Work, rows: torch.Tensor) -> tuple[Step, torch.Tensor]:
    """What of a step's outputs leaves this server: all of them, or from the tail the last ones asked for."""
    step = work.step
    if not work.is_tail or step.num_outputs == step.num_tokens:
        return step, rows
    start = step.start + step.num_tokens - step.num_outputs
    return replace(step, start=start, num_tokens=step.num_outputs), rows[-step.num_outputs :]
