"""What an iteration does in token mode: embed at the head, choose at the tail, keep what is certain."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from chainserve.models.sampling import TokenSampler
from chainserve.models.wire import Int8Wire, from_wire, to_wire
from chainserve.planning.profile import MAX_OUTPUTS
from chainserve.protocol.messages import INT8, Activations, Choice, Sampled, Step
from chainserve.protocol.sampling import Sampling
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.iteration import run_batch
from chainserve_server.work import Batch, Item, Keeping, Work, choose_batch, cut_prompt, leading_work

NEXT, HEAD, CLIENT = PeerId("next"), PeerId("head"), PeerId("client")
SPAN = Span(0, 4)
VOCAB = 7


class Runner:
    """Embeds a token as its number, adds one, and finds the token of that number the likeliest."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        self.kept: list[tuple[SessionId, tuple[bytes, ...]]] = []
        self.rows_of_logits: list[int] = []
        self.cache = SimpleNamespace(keep=lambda session, pages: self.kept.append((session, pages)))
        self.ends = SimpleNamespace(embed=lambda ids: ids[:, None].float().expand(-1, 2), logits=self._logits)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows_of_logits.append(len(hidden))
        return -(torch.arange(VOCAB) - hidden[:, :1] % VOCAB).abs()

    def forward(self, hidden: torch.Tensor, steps: list[Step], span: Span) -> torch.Tensor:
        return hidden + 1


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "big"))


def tail_work(number: int, ids: tuple[int, ...], *, start: int = 0, num_outputs: int = 1) -> Work:
    """A step of tokens at a tail, whose hidden states are the tokens."""
    step = Step(session(number), 0, start, len(ids), num_outputs, ids=ids)
    hidden = to_wire(torch.tensor(ids)[:, None].float().expand(-1, 2))
    sampler = TokenSampler(step.session, Sampling(num_prompt_tokens=1), max_tokens=100)
    return Work(step, SPAN, hidden, CLIENT, is_tail=True, sampler=sampler, head=HEAD)


def run(runner: Runner, works: list[Work], firsts: list[Any] | None = None) -> list[Any]:
    outcome = run_batch(cast(Any, runner), Batch(firsts or [], works))
    assert outcome.failures == []
    return outcome.messages


def test_the_head_embeds_tokens() -> None:
    step = Step(session(1), 0, 0, 3, 1, ids=(4, 5, 6))
    [(receiver, message)] = run(Runner(), [Work(step, SPAN, None, NEXT, is_tail=False)])
    assert receiver == NEXT
    assert isinstance(message, Activations)
    assert message.steps == (step,)
    assert torch.frombuffer(bytearray(message.tensor.data), dtype=torch.float32).tolist() == [5, 5, 6, 6, 7, 7]


def test_the_tail_tells_the_heads_and_then_the_clients_in_one_message_each() -> None:
    messages = run(
        Runner(), [tail_work(1, (2,), start=5), tail_work(2, (1, 3), start=0), tail_work(3, (1,), num_outputs=0)]
    )
    choices = (Choice(session(1), 6, (3,), is_last=False), Choice(session(2), 2, (4,), is_last=False))
    assert messages == [(HEAD, Sampled(choices)), (CLIENT, Sampled(choices))]


def test_drafts_are_verified_where_they_stand() -> None:
    right, wrong = tail_work(1, (2, 3, 4), start=5, num_outputs=3), tail_work(2, (2, 3, 5), start=5, num_outputs=3)
    [(_, sampled), _] = run(Runner(), [right, wrong])
    assert [choice.ids for choice in sampled.choices] == [(3, 4, 5), (3, 4)]


def test_logits_are_computed_in_pieces_that_memory_is_kept_for() -> None:
    runner = Runner()
    works = [tail_work(number, (1, 2, 3), start=4, num_outputs=3) for number in range(50)]
    [(_, sampled), _] = run(runner, works)
    assert [choice.session for choice in sampled.choices] == [session(number) for number in range(50)]
    assert max(runner.rows_of_logits) <= MAX_OUTPUTS
    assert sum(runner.rows_of_logits) == 150
    assert len(runner.rows_of_logits) == 3


def test_what_goes_on_to_a_server_is_packed_and_what_goes_to_a_client_is_not() -> None:
    def work(number: int, *, is_tail: bool) -> Work:
        return Work(Step(session(number), 0, 0, 1, 1), SPAN, to_wire(torch.ones(1, 2)), CLIENT, is_tail=is_tail)

    works = [work(1, is_tail=False), work(2, is_tail=False), work(3, is_tail=True)]
    messages = run_batch(cast(Any, Runner()), Batch([], works), pack=Int8Wire()).messages
    assert [(len(message.steps), message.tensor.dtype) for _, message in messages] == [(2, INT8), (1, "float32")]
    for _, message in messages:
        arrived = from_wire(message.tensor, dtype=torch.float32, device=torch.device("cpu"))
        assert torch.equal(arrived, torch.full((len(message.steps), 2), 2.0))


def test_steps_of_both_modes_run_in_one_forward() -> None:
    hidden_step = Step(session(9), 0, 0, 1, 1)
    other = Work(hidden_step, SPAN, to_wire(torch.ones(1, 2)), CLIENT, is_tail=True)
    messages = run(Runner(), [tail_work(1, (2,)), other])
    assert [(peer, type(message)) for peer, message in messages] == [
        (HEAD, Sampled),
        (CLIENT, Sampled),
        (CLIENT, Activations),
    ]


def test_pages_are_kept_behind_the_steps_before() -> None:
    keeping = Keeping(session(1), (b"page",))
    first, second = tail_work(1, (1,)), tail_work(1, (2,), start=1)
    assert leading_work([first, keeping, second]) == [first]
    runner = Runner()
    run(runner, [], [keeping])
    assert runner.kept == [(session(1), (b"page",))]


@given(st.integers(1, 100), st.integers(1, 40))
def test_a_prompt_is_cut_into_chunks_that_follow_each_other(num_tokens: int, size: int) -> None:
    ids = tuple(range(num_tokens))
    whole = Work(Step(session(1), 0, 7, num_tokens, 1, ids=ids), SPAN, None, NEXT, is_tail=False)
    queue: deque[Item] = deque([whole])
    chunks = []

    def chunk_tokens(rest: Work) -> int:
        assert rest.prompt_tokens == num_tokens  # what the size was chosen for stays what it is chosen for
        return size

    while queue:
        cut_prompt(queue, chunk_tokens)
        [work] = choose_batch({session(1): queue}, max_tokens=1024)
        queue.remove(work)
        chunks.append(work.step)
    assert [token for step in chunks for token in step.ids] == list(ids)
    assert [step.start for step in chunks] == [7 + sum(s.num_tokens for s in chunks[:at]) for at in range(len(chunks))]
    assert all(step.num_tokens == len(step.ids) <= size for step in chunks)
    assert [step.num_outputs for step in chunks] == [0] * (len(chunks) - 1) + [1]


def test_neither_drafts_nor_activations_are_cut() -> None:
    drafted = Work(Step(session(1), 0, 7, 9, 9, ids=tuple(range(9))), SPAN, None, NEXT, is_tail=False)
    activations = replace(tail_work(1, tuple(range(1, 6))), sampler=None)
    for work in (drafted, activations):
        queue: deque[Item] = deque([work])
        cut_prompt(queue, lambda _: 2)
        assert list(queue) == [work]
    cut_prompt(deque(), lambda _: 2)
