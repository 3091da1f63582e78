"""The phases of a session, without a network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.errors import ProtocolError
from chainserve.protocol.codec import decode, encode
from chainserve.protocol.fields import Limits
from chainserve.protocol.messages import (
    Activations,
    Close,
    Failed,
    FailureCode,
    Opened,
    Reorder,
    Stalled,
    Step,
    WireTensor,
)
from chainserve.protocol.sampling import Sampling
from chainserve.protocol.session import ClientSession, Phase
from chainserve.types import Chain, Hop, PeerId, SessionId, Span

ID = SessionId(bytes(16))
HEAD = PeerId("head")


def opened(num_lanes: int = 1, max_tokens: int = 100) -> ClientSession:
    chain = Chain((Hop(HEAD, Span(0, 4)),))
    session = ClientSession(ID, chain, model="m", client=PeerId("me"), num_lanes=num_lanes, max_tokens=max_tokens)
    session.receive(Opened(ID))
    return session


def output(lane: int, start: int, num_tokens: int = 1) -> Activations:
    step = Step(ID, lane, start, num_tokens, num_tokens)
    return Activations((step,), WireTensor("float32", (num_tokens, 1), bytes(4 * num_tokens)))


def test_a_prompt_is_followed_by_one_output_and_then_by_steps_of_one_token() -> None:
    session = opened()
    [[chunk]] = session.step([7], [1], chunk_tokens=64)
    assert chunk.step == Step(ID, 0, 0, 7, 1)
    assert session.phase is Phase.STEPPING
    [got] = session.receive(output(0, 6))
    assert (got.lane, got.tensor.shape) == (0, (1, 1))
    assert session.phase is Phase.IDLE
    [[chunk]] = session.step([1], [1], chunk_tokens=64)
    assert chunk.step == Step(ID, 0, 7, 1, 1, sequence=1)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=4), st.integers(1, 50))
def test_chunks_cover_every_token_once_and_carry_just_the_outputs_asked_for(
    lanes: list[tuple[int, int]], chunk_tokens: int
) -> None:
    session = opened(num_lanes=len(lanes))
    num_tokens = [num for num, _ in lanes]
    num_outputs = [min(num, outputs) for num, outputs in lanes]
    messages = session.step(num_tokens, num_outputs, chunk_tokens=chunk_tokens)
    assert all(sum(chunk.step.num_tokens for chunk in message) <= chunk_tokens for message in messages)
    chunks = [chunk for message in messages for chunk in message]
    rows = [row for chunk in chunks for row in range(chunk.first, chunk.first + chunk.step.num_tokens)]
    assert rows == list(range(sum(num_tokens)))
    for lane, outputs in enumerate(num_outputs):
        assert sum(chunk.step.num_outputs for chunk in chunks if chunk.step.lane == lane) == outputs


def test_of_a_message_for_many_sessions_it_takes_its_own_rows() -> None:
    session = opened()
    session.step([7], [2], chunk_tokens=64)
    other, own = Step(SessionId(b"another session."), 0, 1, 1, 1), Step(ID, 0, 5, 2, 2)
    [got] = session.receive(Activations((other, own), WireTensor("float16", (3, 1), b"aabbcc")))
    assert (got.tensor.shape, bytes(got.tensor.data)) == ((2, 1), b"bbcc")


def test_outputs_may_come_lane_by_lane() -> None:
    session = opened(num_lanes=2)
    session.step([3, 5], [1, 2], chunk_tokens=64)
    session.receive(output(1, 3))
    session.receive(output(0, 2))
    assert session.phase is Phase.STEPPING
    session.receive(output(1, 4))
    assert session.phase is Phase.IDLE


@pytest.mark.parametrize("wrong", [output(0, 5), output(0, 7), output(1, 6), output(0, 6, 2)], ids=str)
def test_an_output_nobody_asked_for_is_a_fault_of_the_peer(wrong: Activations) -> None:
    session = opened()
    session.step([7], [1], chunk_tokens=64)
    with pytest.raises(ProtocolError, match="not asked for"):
        session.receive(wrong)


def test_no_step_before_the_last_one_is_done() -> None:
    session = opened()
    session.step([7], [1], chunk_tokens=64)
    with pytest.raises(ProtocolError, match="stepping, not idle"):
        session.step([1], [1], chunk_tokens=64)


def test_a_lane_does_not_outgrow_what_was_reserved() -> None:
    with pytest.raises(ValueError, match="101 of 100"):
        opened().step([101], [1], chunk_tokens=64)


def test_reordered_lanes_take_their_sources_lengths() -> None:
    session = opened(num_lanes=2)
    session.step([3, 5], [0, 0], chunk_tokens=64)
    assert session.reorder([1, 1]) == Reorder(ID, (1, 1), sequence=2)
    assert session.lengths == [5, 5]


def test_a_truncated_lane_goes_on_from_there() -> None:
    session = opened()
    session.step([7], [0], chunk_tokens=64)
    session.truncate([4])
    [[chunk]] = session.step([1], [1], chunk_tokens=64)
    assert chunk.step.start == 4


def test_a_failure_ends_the_session_whatever_its_phase_and_the_first_one_counts() -> None:
    session = opened()
    session.step([7], [1], chunk_tokens=64)
    first = Failed(ID, HEAD, FailureCode.PEER_LOST, "gone")
    session.receive(first)
    session.receive(Failed(ID, HEAD, FailureCode.INTERNAL, "later"))
    assert (session.phase, session.failure) == (Phase.OVER, first)
    assert session.receive(output(0, 6)) == []
    assert session.close() is None


def test_closing_is_said_once() -> None:
    session = opened()
    assert session.close() == Close(ID)
    assert session.close() is None


def test_in_token_mode_too_servers_can_be_asked_who_holds_up_a_step() -> None:
    chain = Chain((Hop(HEAD, Span(0, 4)),))
    sampling, ids = Sampling(num_prompt_tokens=3), (1, 2, 3)
    session = ClientSession(
        ID, chain, model="m", client=PeerId("me"), num_lanes=1, max_tokens=9, sampling=sampling, ids=ids
    )
    session.receive(Opened(ID))
    assert decode(encode(session.stalled()), Limits()) == Stalled(ID, 0)
