"""Grammars over tokens, and answers that are held to them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from chainserve.errors import GrammarError, NoGrammarsError, RequestError
from chainserve.models.grammars import NUM_KEPT, Grammars
from chainserve.models.sampling import TokenSampler
from chainserve.protocol.messages import Choice
from chainserve.protocol.sampling import MAX_GRAMMAR_BYTES, Sampling
from chainserve.protocol.text import NoText, TextBundle
from chainserve.types import SessionId

TOKENS = ["<end>", *'{}[]":, abeflrstu01234\n', '{"', '"}', '":', "ab"]
IDS = {token: number for number, token in enumerate(TOKENS)}
END = IDS["<end>"]
VOCAB = len(TOKENS) + 3  # models often have more ids than their tokenizer
ANYTHING = "start: /(.|\\n)*/"
OBJECT = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
SCHEMA = "start: %json " + json.dumps({**OBJECT, "x-guidance": {"whitespace_flexible": False}})
NUM_PROMPT = 3
SAMPLING = Sampling(num_prompt_tokens=NUM_PROMPT, end_tokens=(END,), grammar=SCHEMA)


def bundle(**changes: Any) -> TextBundle:
    letters = {"Ġ" if token == " " else "Ċ" if token == "\n" else token: number for token, number in IDS.items()}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    usual: dict[str, Any] = {
        "tokenizer": tokenizer.to_str(),
        "chat_template": None,
        "special_tokens": {},
        "end_tokens": (END,),
        "vocab_size": VOCAB,
        "max_position": None,
    }
    return TextBundle(**(usual | changes))


GRAMMARS = Grammars(bundle)


def ids_of(*tokens: str) -> list[int]:
    return [IDS[token] for token in tokens]


def allowed(grammar: str, *tokens: str, ends: Sequence[int] = (END,)) -> list[str]:
    flags = GRAMMARS.compile(grammar).allowed(ids_of(*tokens), ends=ends)
    return [TOKENS[number] for number in flags.nonzero().flatten().tolist()]


def test_what_may_come_next_is_what_the_grammar_allows() -> None:
    assert allowed(SCHEMA) == ["{"]  # as the tokenizer would write what is certain
    assert allowed(SCHEMA, *'{"a":') == ["f", "t"]
    assert allowed(SCHEMA, *'{"a":true') == ["}"]
    assert allowed("start: /[ab{]+/", "a") == ["<end>", "{", "a", "b", "ab"]


def test_an_end_comes_where_the_grammar_may_end_and_must_where_nothing_else_can() -> None:
    assert "<end>" not in allowed(SCHEMA, *'{"a":')
    assert allowed(SCHEMA, *'{"a":true}') == ["<end>"]
    assert allowed("start: /a*/") == ["<end>", "a"]


def test_a_token_that_ends_this_answer_only_may_be_one_of_its_text_too() -> None:
    assert allowed("start: /aa?b/", "a", ends=(END, IDS["b"])) == ["a", "b", "ab"]
    assert allowed("start: /aa?b/", "a", "b", ends=(END, IDS["b"])) == ["<end>", "b"]


def test_an_end_token_of_the_model_that_the_request_does_not_count_never_comes() -> None:
    assert allowed("start: /a*/", ends=(IDS["b"],)) == ["a", "b"]


def test_a_matcher_goes_back_and_to_other_answers() -> None:
    matcher = GRAMMARS.compile(SCHEMA)
    answers = ['{"a', '{"', "", '{"a"', '{"a":true}', "{", '{"a":fal']
    for answer in answers:
        fresh = GRAMMARS.compile(SCHEMA).allowed(ids_of(*answer), ends=(END,))
        assert torch.equal(matcher.allowed(ids_of(*answer), ends=(END,)), fresh)


def test_an_answer_outside_its_grammar_is_an_error() -> None:
    with pytest.raises(GrammarError, match="doesn't satisfy"):
        allowed(SCHEMA, "}")
    with pytest.raises(GrammarError, match="nothing can follow"):
        allowed("start: start")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('start: %json {"type": "objectt"}', "Invalid type"),
        ('start: %json {"type": "array", "uniqueItems": true}', "Unimplemented keys"),
        ('start: %json {"$ref": "http://other/schema"}', "not present"),
        ('start: %json {"type": "string", "minLength": 3, "maxLength": 2}', "Unsatisfiable"),
        ("start: %json " + '{"items": ' * 200 + "{}" + "}" * 200, "recursion limit"),
        ('start: "a', "lexer error"),
        ("no grammar", "."),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_words(grammar: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        GRAMMARS.compile(grammar)


def test_a_server_that_cannot_follow_grammars_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, reason in (
        (NoText("it is slow"), "it is slow"),
        (bundle(end_tokens=()), "no token that ends"),
        (bundle(tokenizer=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str()), "cannot follow"),
    ):
        with pytest.raises(NoGrammarsError, match=reason):
            Grammars(lambda text=text: text).compile(SCHEMA)  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(NoGrammarsError, match="pip install"):
        Grammars(bundle).compile(SCHEMA)


def test_the_tokenizer_is_read_once_and_only_the_last_grammars_are_kept() -> None:
    read: list[int] = []
    grammars = Grammars(lambda: read.append(1) or bundle())  # type: ignore[func-returns-value]
    for number in range(NUM_KEPT + 1):
        grammars.compile(f'start: "{"a" * (number + 1)}"')
    assert read == [1]
    assert grammars.known('start: "a"') is None
    assert grammars.known('start: "aa"') is not None


def test_a_sampling_says_what_grammar_it_takes() -> None:
    with pytest.raises(RequestError, match="end token"):
        replace(SAMPLING, end_tokens=())
    for grammar in ("", "é" * (MAX_GRAMMAR_BYTES // 2 + 1)):
        with pytest.raises(GrammarError, match="bytes"):
            replace(SAMPLING, grammar=grammar)
    with pytest.raises(RequestError, match="surrogate"):
        replace(SAMPLING, grammar="\ud800")


class Chooser:
    """The tail of one session over a model whose logits depend on the position only."""

    def __init__(self, sampling: Sampling, *, max_tokens: int = 40, seed: int = 0) -> None:
        matcher = None if sampling.grammar is None else GRAMMARS.compile(sampling.grammar)
        self.sampler = TokenSampler(SessionId(bytes(16)), sampling, max_tokens=max_tokens, matcher=matcher)
        self.logits = torch.randn(80, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
        self.ids = [1] * NUM_PROMPT

    def step(self, start: int, drafts: Sequence[int] = ()) -> Choice:
        """The choice behind all tokens from `start` on, and drafts."""
        ids = [*self.ids[start:], *drafts]
        self.sampler.take(start, ids)
        first = start + len(ids) - 1 - len(drafts)
        rows = self.logits[first : first + 1 + len(drafts)]
        choice = self.sampler.choose(rows, start=first, drafts=drafts, likeliest=rows.argmax(-1).tolist())
        self.ids += choice.ids
        return choice

    def finish(self) -> list[int]:
        while not self.step(len(self.ids) - 1).is_last:
            pass
        return self.ids[NUM_PROMPT:]


def answer(sampling: Sampling, *, seed: int = 0) -> list[int]:
    chooser = Chooser(sampling, seed=seed)
    first = chooser.step(0)
    return list(first.ids) if first.is_last else chooser.finish()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 2.0, "top_k": 2},
        {"temperature": 1.0, "top_p": 0.3, "min_p": 0.2},
        {"repetition_penalty": 1.3, "frequency_penalty": 1.0},
        {"logit_bias": ((END, 1e4), (IDS["]"], 1e4))},
    ],
)
def test_every_way_to_choose_stays_in_the_grammar(change: dict[str, Any], seed: int) -> None:
    tokens = answer(replace(SAMPLING, **change), seed=seed)
    assert tokens[-1] == END
    text = "".join(TOKENS[token] for token in tokens[:-1])
    assert text in ('{"a":true}', '{"a":false}')


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 50), cut=st.integers(1, 8), drafts=st.lists(st.integers(0, len(TOKENS) - 1), max_size=4))
def test_drafts_and_replays_change_nothing(seed: int, cut: int, drafts: list[int]) -> None:
    grammar = "start: %json " + json.dumps({"type": "array", "items": {"type": ["integer", "string"]}, "maxItems": 3})
    sampling = replace(SAMPLING, grammar=grammar, temperature=1.0, seed=seed)
    expected = answer(sampling, seed=seed)
    drafted = Chooser(sampling, seed=seed)
    choice = drafted.step(0)
    while not choice.is_last:
        at = len(drafted.ids) - NUM_PROMPT
        room = 40 - len(drafted.ids)
        guess = (expected[at : at + 2] + drafts) if at % 2 else drafts
        choice = drafted.step(len(drafted.ids) - 1, guess[: max(0, room)])
    assert drafted.ids[NUM_PROMPT:] == expected
    replayed = Chooser(sampling, seed=seed)
    replayed.ids += expected[: min(cut, len(expected) - 1)]
    kept = NUM_PROMPT - 1  # of the prompt, cached: the tail does not see it
    if not replayed.step(kept).is_last:
        replayed.finish()
    assert replayed.ids[NUM_PROMPT:] == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_of_everything_changes_nothing(temperature: float) -> None:
    plain = replace(SAMPLING, grammar=None, temperature=temperature, logit_bias=((END, -1e4),))
    chooser = Chooser(plain)
    chooser.logits[:, len(TOKENS) :] = -1e4  # ids that stand for no text are in no grammar
    chooser.step(0)
    held = Chooser(replace(plain, grammar=ANYTHING))
    held.logits = chooser.logits
    held.step(0)
    assert held.finish() == chooser.finish()


def test_log_probabilities_are_the_models_own() -> None:
    sampling = replace(SAMPLING, num_logprobs=2)
    chooser = Chooser(sampling)
    choice = chooser.step(0)
    row = torch.log_softmax(chooser.logits[NUM_PROMPT - 1], dim=-1)
    [logprobs] = choice.logprobs
    assert logprobs.chosen == pytest.approx(float(row[choice.ids[0]]))
    assert [token for token, _ in logprobs.likeliest] == row.topk(2).indices.tolist()
