"""Calls of tools in what models write: read whole and in pieces, and forced by a grammar."""

import json
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from served_in_memory import ALPHABET, VOCAB, text_bundle

from chainserve_client.gateway.calls import (
    DESCRIBED,
    HERMES,
    LLAMA,
    Argued,
    Called,
    CallForm,
    CallReader,
    Part,
    Said,
    form_of,
    grammar_of_calls,
)
from chainserve_client.gateway.errors import ApiError

NAMES = ("look_up", "add")
ADD = '{"a": 1, "b": {"c": "}</tool_call>{"}}'
HERMES_CALL = f'<tool_call>\n{{"name": "add", "arguments": {ADD}}}\n</tool_call>'
LLAMA_CALL = f'{{"name": "add", "parameters": {ADD}}}'
CASES: list[tuple[CallForm, str, str | None, list[tuple[str, str]]]] = [
    (HERMES, "Hello, world.", "Hello, world.", []),
    (HERMES, " a < b and <tool", " a < b and <tool", []),
    (HERMES, HERMES_CALL, None, [("add", ADD)]),
    (HERMES, f"Let me see.\n\n{HERMES_CALL}", "Let me see.", [("add", ADD)]),
    (HERMES, f"{HERMES_CALL}\n{HERMES_CALL}\n", None, [("add", ADD), ("add", ADD)]),
    (HERMES, '<tool_call>{"arguments": {}, "name": "add"}</tool_call>', None, [("add", "{}")]),
    (HERMES, '<tool_call>\n{"name": "add"}\n</tool_call>', None, [("add", "{}")]),
    (HERMES, '<tool_call>{"name": "none", "arguments": {}}</tool_call>.', "...", []),
    (HERMES, "<tool_call>\nadd(1)\n</tool_call>", "...", []),
    (HERMES, '<tool_call>\n{"name": "ad', "...", []),
    (HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": [1', None, [("add", '{"a": [1')]),
    (LLAMA, LLAMA_CALL, None, [("add", ADD)]),
    (LLAMA, f" {LLAMA_CALL}; {LLAMA_CALL}", None, [("add", ADD), ("add", ADD)]),
    (LLAMA, '{"parameters": {}, "name": "look_up"}', None, [("look_up", "{}")]),
    (LLAMA, '{"answer": 4, "name": "add"} is JSON', "...", []),
    (LLAMA, '{"name": "Ada", "parameters": {}}, I said', "...", []),
    (LLAMA, f"I call {LLAMA_CALL}", "...", []),
    (LLAMA, "", "", []),
]


def told(parts: Sequence[Part]) -> tuple[str, list[tuple[str, str]]]:
    """The text, and the calls with their arguments."""
    calls = [part for part in parts if isinstance(part, Called)]
    assert [call.index for call in calls] == list(range(len(calls)))
    arguments = [part for part in parts if isinstance(part, Argued)]
    written = ["".join(part.text for part in arguments if part.index == call.index) for call in calls]
    said = "".join(part.text for part in parts if isinstance(part, Said))
    return said, list(zip((call.name for call in calls), written, strict=True))


@pytest.mark.parametrize(("form", "text", "said", "calls"), CASES)
def test_calls_are_told_from_text(form: CallForm, text: str, said: str | None, calls: list[tuple[str, str]]) -> None:
    reader = CallReader(form, NAMES)
    expected = text if said == "..." else said or ""
    assert told([*reader.push(text), *reader.finish()]) == (expected, calls)
    assert reader.num_calls == len(calls)


@given(case=st.sampled_from(CASES), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_how_the_text_is_cut_changes_nothing(
    case: tuple[CallForm, str, str | None, list[tuple[str, str]]], sizes: list[int]
) -> None:
    form, text, _, _ = case
    whole = CallReader(form, NAMES)
    expected = told([*whole.push(text), *whole.finish()])
    reader, parts, rest, at = CallReader(form, NAMES), list[Part](), text, 0
    while rest:
        size = sizes[at % len(sizes)]
        parts += reader.push(rest[:size])
        rest, at = rest[size:], at + 1
    assert told([*parts, *reader.finish()]) == expected
    assert Said("") not in parts


def test_arguments_come_as_they_are_written() -> None:
    numbers = count()
    reader = CallReader(HERMES, NAMES, new_id=lambda: f"id{next(numbers)}")
    assert reader.push('<tool_call>\n{"name": "add", "argum') == []
    assert reader.push('ents": {"a"') == [Called(0, "id0", "add"), Argued(0, '{"a"')]
    assert reader.push(": 1") == [Argued(0, ": 1")]
    assert reader.push("}}\n</tool_call>") == [Argued(0, "}")]


def test_only_the_first_call_counts_where_calls_are_not_parallel() -> None:
    reader = CallReader(HERMES, NAMES, is_parallel=False)
    other = '<tool_call>{"arguments": {}, "name": "add"}</tool_call>'
    assert told([*reader.push(f"{HERMES_CALL}\n{HERMES_CALL}{other}"), *reader.finish()]) == ("", [("add", ADD)])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, DESCRIBED),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", DESCRIBED),
        ("{% if tools %}<tools>{{ tools | tojson }}</tools> answer in <tool_call></tool_call>{% endif %}", HERMES),
        ('{% if tools %}{"name": function, "parameters": values}{% endif %}', LLAMA),
        ("{% if tools %}<tool_call><function=NAME></function></tool_call>{% endif %}", DESCRIBED),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", DESCRIBED),
    ],
)
def test_a_template_shows_how_its_model_calls(template: str | None, form: CallForm) -> None:
    assert form_of(template) == form


FUNCTIONS = [
    {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    {"name": "look_up"},
]
END = VOCAB - 1


def accepts(grammar: str, text: str) -> bool:
    """Whether a text is in a grammar."""
    tokenizer = LLTokenizer(text_bundle().tokenizer, n_vocab=VOCAB, eos_token=[END])
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return bool(matcher.consume_tokens([ALPHABET.index(letter) for letter in text]) and matcher.is_accepting())


@pytest.mark.parametrize("form", [HERMES, LLAMA, DESCRIBED])
def test_the_grammar_of_calls_takes_calls_that_can_be_read_and_nothing_else(form: CallForm) -> None:
    def call(name: str, arguments: str) -> str:
        body = f'{{"name": "{name}", "{form.key}": {arguments}}}'
        return f"<tool_call>\n{body}\n</tool_call>" if form.begin else body

    grammar = grammar_of_calls(form, FUNCTIONS, is_parallel=True)
    assert accepts(grammar, call("add", '{"a": 12}'))
    assert accepts(grammar, call("look_up", "{}"))
    for wrong in (
        "hello",
        "",
        call("add", "{}"),
        call("add", '{"a": "1"}'),
        call("other", "{}"),
        call("look_up", "[]"),
    ):
        assert not accepts(grammar, wrong)
    two = call("add", '{"a": 1}') + "\n" + call("look_up", "{}")
    assert accepts(grammar, two) == bool(form.begin)
    assert not accepts(grammar_of_calls(form, FUNCTIONS, is_parallel=False), two)
    reader = CallReader(form, ("add", "look_up"))
    assert told([*reader.push(call("add", '{"a": 12}')), *reader.finish()]) == ("", [("add", '{"a": 12}')])


def test_tools_that_are_too_large_are_refused() -> None:
    large = {"name": "add", "parameters": {"enum": ["x" * 1000] * 100}}
    with pytest.raises(ApiError, match="bytes") as caught:
        grammar_of_calls(HERMES, [large], is_parallel=True)
    assert caught.value.code == "schema_too_large"
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(ApiError, match="deeply"):
        grammar_of_calls(HERMES, [{"name": "add", "parameters": deep}], is_parallel=True)
    assert json.loads(ADD)["b"]["c"] == "}</tool_call>{"
