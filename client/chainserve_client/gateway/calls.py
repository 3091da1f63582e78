"""How models write calls of tools, as grammars and when they are read, whole or as the text comes.

Two forms are common. Hermes, Qwen and many others write `<tool_call>`, an object with name and arguments, and
`</tool_call>`; Llama 3 writes nothing but the object, whose arguments are called parameters.
"""

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from chainserve_client.gateway.structured import checked, json_rule

NO_PARAMETERS: Mapping[str, Any] = {"properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class CallForm:
    """What stands around a call, and what its arguments are called."""

    begin: str
    end: str
    key: str
    is_known: bool  # whether the model's template tells of tools in this form


HERMES = CallForm("<tool_call>", "</tool_call>", "arguments", is_known=True)
LLAMA = CallForm("", "", "parameters", is_known=True)
DESCRIBED = CallForm("<tool_call>", "</tool_call>", "arguments", is_known=False)
"""For models whose template has no tools: they are told of the form by a message."""

NO_CALLS = CallForm("\0", "\0", "", is_known=False)
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""What usually stands before a call's arguments."""
FIRST_KEY = re.compile(r'\s*\{\s*"([^"\\]*)"')


def form_of(template: str | None) -> CallForm:
    """The form that a chat template teaches its model."""
    if template is None or "tools" not in template or "<function=" in template:
        return DESCRIBED
    if HERMES.begin in template:
        return HERMES
    return LLAMA if f'"{LLAMA.key}"' in template or f"'{LLAMA.key}'" in template else DESCRIBED


def grammar_of_calls(form: CallForm, functions: Sequence[Mapping[str, Any]], *, is_parallel: bool) -> str:
    """The grammar of one or, if `is_parallel`, several calls of these functions, and nothing else."""
    rules = []
    for number, function in enumerate(functions):
        head = json.dumps(f'{{"name": "{function["name"]}", "{form.key}": ')
        parameters = {"type": "object", **(function.get("parameters") or NO_PARAMETERS)}
        rules += [f'f{number}: {head} a{number} "}}"', f"a{number}: {json_rule(parameters)}"]
    either = " | ".join(f"f{number}" for number in range(len(functions)))
    around = (f'"{form.begin}\\n" ', f' "\\n{form.end}"') if form.begin else ("", "")
    several = ' ("\\n" call)*' if is_parallel and form.begin else ""
    call = f"call: {around[0]}({either}){around[1]}"
    return checked("\n".join((f"start: call{several}", call, *rules)), param="tools")


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of a call's arguments, which are JSON when they are complete."""

    index: int
    text: str


Part = Said | Called | Argued


class State(Enum):
    """Where in the text we are."""

    OUTSIDE = auto()
    HEAD = auto()  # in a call, before its arguments
    ARGUMENTS = auto()
    TAIL = auto()  # behind them


class CallReader:
    """Tells calls from other text, as that comes."""

    def __init__(
        self,
        form: CallForm,
        names: Collection[str],
        *,
        is_parallel: bool = True,
        new_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}",
    ) -> None:
        """What calls none of `names` is text. Of calls that are not to be parallel the first one counts."""
        self.num_calls = 0
        self._form = form
        self._names = names
        self._is_parallel = is_parallel
        self._new_id = new_id
        self._state = State.OUTSIDE
        self._held = ""  # not decided yet
        self._value = _ObjectEnd()
        self._num_scanned = 0  # of a call that has no marks
        self._is_told = False  # whether this call counts

    def push(self, text: str) -> list[Part]:
        """What is certain with this text."""
        self._held += text
        parts: list[Part] = []
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        if self._state is State.HEAD:
            called = self._whole(held)
            return [Said(self._form.begin + held)] if called is None else called
        is_said = self._state is State.OUTSIDE and (held.strip() or (held and not self.num_calls))
        return [Said(held)] if is_said else []

    def _advance(self, parts: list[Part]) -> bool:
        """Take one step through what is held; whether there may be another."""
        match self._state:
            case State.OUTSIDE:
                return self._outside(parts) if self._form.begin else self._outside_of_objects(parts)
            case State.HEAD:
                return self._in_head(parts)
            case State.ARGUMENTS:
                length = self._value.scan(self._held)
                if self._is_told and length:
                    parts.append(Argued(self.num_calls - 1, self._held[:length]))
                self._held = self._held[length:]
                if self._value.is_complete:
                    self._state = State.TAIL
                return self._value.is_complete
            case State.TAIL:
                end = self._form.end or "}"
                at = self._held.find(end)
                if at < 0:
                    return False
                self._held = self._held[at + len(end) :]
                self._state = State.OUTSIDE
                return True

    def _outside(self, parts: list[Part]) -> bool:
        begin = self._form.begin
        at = self._held.find(begin)
        if at >= 0:
            if said := self._held[:at].rstrip():
                parts.append(Said(said))
            self._held = self._held[at + len(begin) :]
            self._state = State.HEAD
            return True
        open_ = next((n for n in range(len(begin) - 1, 0, -1) if self._held.endswith(begin[:n])), 0)
        said = self._held[: len(self._held) - open_].rstrip()  # space before a call is no part of the answer
        if said:
            parts.append(Said(said))
            self._held = self._held[len(said) :]
        return False

    def _outside_of_objects(self, parts: list[Part]) -> bool:
        """Where a call has no marks it begins the answer, or follows another one."""
        rest = self._held.lstrip(" \n\t;" if self.num_calls else " \n\t")
        if rest.startswith("{"):
            self._held, self._state = rest, State.HEAD
            self._value, self._num_scanned = _ObjectEnd(), 0
            return True
        if rest:
            self._only_text(parts)
        return False

    def _only_text(self, parts: list[Part]) -> None:
        """Take what is held, and all that comes, for text."""
        parts.append(Said(self._held))
        self._held, self._state, self._form = "", State.OUTSIDE, NO_CALLS

    def _in_head(self, parts: list[Part]) -> bool:
        head = HEAD.match(self._held)
        if head is not None and head[1] in self._names:
            parts += self._begin(head[1])
            self._held = self._held[head.end() :]
            self._state, self._value = State.ARGUMENTS, _ObjectEnd()
            return True
        key = FIRST_KEY.match(self._held)
        if not self._form.begin and key is not None and key[1] not in ("name", HERMES.key, LLAMA.key):
            self._only_text(parts)
            return False
        body = self._body()
        if body is None:
            return False
        raw = self._form.begin + body + self._form.end
        self._held = self._held[len(body) + len(self._form.end) :]
        self._state = State.OUTSIDE
        called = self._whole(body)
        parts += [Said(raw)] if called is None else called
        return True

    def _body(self) -> str | None:
        """All that is inside a call, when it is complete."""
        if self._form.end:
            at = self._held.find(self._form.end)
            return None if at < 0 else self._held[:at]
        self._num_scanned += self._value.scan(self._held[self._num_scanned :])
        return self._held[: self._num_scanned] if self._value.is_complete else None

    def _whole(self, body: str) -> list[Part] | None:
        """What a call is told as whose fields stand in another order; None if it is no call."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or call.get("name") not in self._names:
            return None
        arguments = call.get(HERMES.key, call.get(LLAMA.key, {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        begun = self._begin(call["name"])
        return [*begun, Argued(self.num_calls - 1, text)] if begun else []

    def _begin(self, name: str) -> list[Part]:
        self._is_told = self._is_parallel or not self.num_calls
        if not self._is_told:
            return []
        self.num_calls += 1
        return [Called(self.num_calls - 1, self._new_id(), name)]


class _ObjectEnd:
    """Finds the end of a JSON object in a text that comes piece by piece."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self.is_complete = False

    def scan(self, text: str) -> int:
        """How many of these characters belong to it."""
        for at, character in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.is_complete = True
                    return at + 1
        return len(text)
