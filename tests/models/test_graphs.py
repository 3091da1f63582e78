"""Forwards over tables of rows: on a GPU as CUDA graphs; elsewhere Triton's interpreter runs the same kernels."""

from functools import partial

import pytest
import torch
from tiny_models import (
    FAMILIES,
    WINDOW,
    A,
    B,
    C,
    TinyChain,
    assert_close,
    embeddings,
    expected_hidden,
    last_hidden,
    random_ids,
    random_model,
)
from torch import Tensor

from chainserve.models.attention import Masks, _plain
from chainserve.models.graphs import Graphs
from chainserve.models.lean import run_family
from chainserve.models.rows import Rows, table_of

pytest.importorskip("triton", reason="Triton has no build for this platform")

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
BACKEND = "inductor" if HAS_GPU else "eager"  # which takes what is to be compiled, and runs it as it is
WITHOUT_GRAPHS = ("mixtral", "qwen3-moe", "gpt-oss") if HAS_GPU else ()
"""Families whose experts are chosen by the host."""
TRIED = FAMILIES if HAS_GPU else ("gemma2",)  # with windows and caps; the interpreter takes half a minute for it


def with_graphs(family: str) -> TinyChain:
    chain = TinyChain(random_model(FAMILIES[family]).to(DEVICE))
    for runner in chain.runners:
        runner._graphs = Graphs(partial(run_family, runner._base), backend=BACKEND)
        if HAS_GPU:
            runner.warm_up()
    return chain


def sequence(length: int, room: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values (1, 2, room, dim) of a sequence, of which the first `length` are set."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(1, 2, room, 16, generator=generator), torch.randn(1, 2, room, 24, generator=generator)
    for part in parts:
        part[:, :, length:] = float("nan")  # what is not there must not count
    keys, values = (part.to(DEVICE) for part in parts)
    return keys, values


@pytest.mark.parametrize(
    ("window", "softcap", "with_sinks"), [(None, None, False), (5, None, False), (None, 2.0, False), (40, None, True)]
)
def test_rows_are_stored_and_attend_each_to_its_own_sequence(
    window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    from chainserve.models.row_kernels import row_attention

    sequences = [sequence(70, 100, seed=1), sequence(0, 3, seed=2)]
    owners, positions = [0, 0, 1], [70, 71, 0]  # two tokens of one sequence, and the first of another
    query, new_keys, new_values = (
        torch.randn(1, heads, 4, dim).to(DEVICE) for heads, dim in ((6, 16), (2, 16), (2, 24))
    )
    sinks = torch.randn(6).to(DEVICE) if with_sinks else None
    addresses = [torch.tensor([part.data_ptr() for part in sequences[owner]]) for owner in owners]
    table = table_of(positions, [sequences[owner][0].shape[2] for owner in owners], addresses)
    table = torch.cat([table, torch.zeros(len(table), 1, dtype=torch.int64)], dim=1).to(DEVICE)  # a row not there
    out = row_attention(
        query,
        Rows(new_keys, table, 0),
        Rows(new_values, table, 0),
        scaling=0.3,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    assert out.shape == (1, 4, 6, 24)
    assert not out[0, 3].any()
    for row, (owner, position) in enumerate(zip(owners, positions, strict=True)):
        keys, values = sequences[owner]
        assert torch.equal(keys[0, :, position], new_keys[0, :, row])
        first = 0 if window is None else max(0, position + 1 - window)
        seen = slice(first, position + 1)
        expected = _plain(
            query[:, :, row : row + 1],
            keys[:, :, seen],
            values[:, :, seen],
            Masks(),
            scaling=0.3,
            window=None,
            softcap=softcap,
            sinks=sinks,
        )
        torch.testing.assert_close(out[:, row : row + 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("family", TRIED)
def test_decode_steps_and_drafts_equal_the_whole_model(family: str) -> None:
    chain = with_graphs(family)
    model = chain.model
    ids = {
        session: random_ids(14 if session == A else 7, seed=seed).to(DEVICE) for seed, session in enumerate((A, B, C))
    }
    hidden = {session: embeddings(model, tokens) for session, tokens in ids.items()}
    outputs: dict[bytes, list[Tensor]] = {session: [] for session in ids}
    for session in ids:
        chain.open(session)
    batches = [  # (session, start, end): first prompts, which take memory, then steps of one and of more tokens
        [(A, 0, 8)],
        [(B, 0, 6), (C, 0, 1)],
        [(A, 8, 9)],
        [(A, 9, 14), (B, 6, 7), (C, 1, 2)],
    ]
    for batch in batches:
        parts = chain.run(*((session, start, hidden[session][start:end]) for session, start, end in batch))
        for (session, *_), part in zip(batch, parts, strict=True):
            outputs[session].append(part)
    assert len(ids[A]) > WINDOW  # or the windows would not be seen
    for session in ids:
        given = torch.cat(outputs[session])
        expected = expected_hidden(model, ids[session][: len(given)])
        assert_close(last_hidden(model, given), expected)
    for runner in chain.runners:
        assert runner._graphs is not None
        assert (runner._graphs.failure is not None) == (family in WITHOUT_GRAPHS)


def test_without_a_compiler_forwards_go_on_without_graphs() -> None:
    chain = TinyChain(random_model(FAMILIES["llama"]))
    chain.open(A)
    for runner in chain.runners:
        runner._graphs = Graphs(partial(run_family, runner._base), backend="no such compiler")
    ids = random_ids(3, seed=1)
    hidden = embeddings(chain.model, ids)
    parts = [chain.run((A, at, hidden[at : at + 1]))[0] for at in range(3)]
    expected = expected_hidden(chain.model, ids)
    assert_close(last_hidden(chain.model, torch.cat(parts)), expected)
    for runner in chain.runners:
        assert runner._graphs is not None
        assert "no such compiler" in str(runner._graphs.failure)
