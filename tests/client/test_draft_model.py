"""A draft model says the same whatever it was asked before, and says why where it cannot draft."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import pytest
import torch
from served_in_memory import text_bundle

from chainserve.errors import ModelNotFoundError
from chainserve.models.resolve import resolve
from chainserve.models.text import text_of
from chainserve.protocol.sampling import Sampling
from chainserve.protocol.text import TextBundle
from chainserve_client.draft_model import CACHE_TOKENS, DraftModel
from chainserve_client.text_model import TextModel

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m"
PROMPT = [504, 3575, 282, 4649, 314]
GREEDY = Sampling(num_prompt_tokens=len(PROMPT), max_drafts=8)
DRAWN = replace(GREEDY, temperature=0.8, top_p=0.9, seed=5, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def draft() -> Iterator[DraftModel]:
    made = DraftModel.load(MODEL, dtype=torch.float32)  # in fewer bits tokens hang on how many are computed at once
    yield made
    made.close()


def following(draft: DraftModel, sampling: Sampling, *asked: Sequence[int], max_tokens: int = 64) -> list[list[int]]:
    """Eight drafts after each of these, one request's."""
    drafting = draft.begin(sampling, max_tokens=max_tokens)
    assert drafting is not None
    try:
        return [list(islice(drafting._draft.following(ids), 8)) for ids in asked]
    finally:
        drafting._draft.close()


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_drafts_hang_on_the_tokens_before_them_only(draft: DraftModel, sampling: Sampling) -> None:
    [alone] = following(draft, sampling, PROMPT)
    first = alone[0]
    other = [*PROMPT, first, alone[1] + 1]
    [after_other] = following(draft, sampling, other)
    assert following(draft, sampling, PROMPT, [*PROMPT, first], other, PROMPT) == [
        alone,
        following(draft, sampling, [*PROMPT, first])[0],
        after_other,
        alone,
    ]
    assert following(draft, sampling, [*PROMPT, first])[0][:-1] == alone[1:]
    assert draft.runner.cache.reserved == 0


def test_it_ends_where_its_room_does_and_before_tokens_that_it_does_not_know(draft: DraftModel) -> None:
    assert [len(drafts) for drafts in following(draft, GREEDY, PROMPT, max_tokens=len(PROMPT) + 2)] == [3]
    assert following(draft, GREEDY, [*PROMPT, draft.vocab_size]) == [[]]


def test_requests_without_drafts_or_room_do_without(draft: DraftModel) -> None:
    assert draft.begin(replace(GREEDY, max_drafts=0), max_tokens=10) is None
    assert draft.begin(GREEDY, max_tokens=CACHE_TOKENS + 1) is None


def test_it_fits_models_of_the_same_tokens_only(draft: DraftModel) -> None:
    draft.check_fits(TextModel(MODEL, cast(TextBundle, text_of(resolve(MODEL)))))
    other: Any = text_bundle()
    with pytest.raises(ModelNotFoundError, match=f"{MODEL} cannot draft for other: they share"):
        draft.check_fits(TextModel("other", other))
