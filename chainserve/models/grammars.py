"""Grammars over a model's tokens: which tokens may come next, by llguidance.

A grammar is a text in llguidance's form of Lark. Servers compile it with the model's own tokenizer, and each session
follows it with a matcher of its own.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chainserve.errors import GrammarError, NoGrammarsError
from chainserve.protocol.text import NoText, TextBundle

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NUM_KEPT = 32
"""Grammars that stay compiled: requests of one application mostly share theirs."""
MAX_LEXER_STATES = 50_000
"""Of one grammar, at one to two kilobytes each."""
MAX_ERROR_CHARS = 400
NOTHING_FOLLOWS = "nothing can follow by the grammar, not even an end"


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: "LLMatcher", *, model_ends: Collection[int]) -> None:
        self._matcher = matcher
        self._model_ends = model_ends
        self._taken: list[int] = []

    def fork(self) -> "Matcher":
        """Another one at the beginning."""
        return Matcher(self._matcher.deep_copy(), model_ends=self._model_ends)

    def allowed(self, answer: Sequence[int], *, ends: Collection[int]) -> Tensor:
        """Which tokens may follow `answer` (vocab,); those that end it, `ends`, only where the grammar may end.

        The answer may be shorter than the last one, or another. GrammarError if it is not in the grammar, if nothing
        can follow, or if finding out takes too much.
        """
        self._go_to(list(answer))
        may_end = self._matcher.is_accepting()
        flags = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        self._check()
        allowed = flags != 0
        for token in {*self._model_ends, *ends}:  # a token that ends this answer may be one of the text as well
            if token in ends and may_end:
                allowed[token] = True
            elif token in self._model_ends:
                allowed[token] = False
        if not allowed.any():
            raise GrammarError(NOTHING_FOLLOWS)
        return allowed

    def _go_to(self, answer: list[int]) -> None:
        """Stand behind these tokens."""
        if answer[: len(self._taken)] != self._taken:
            self._matcher.reset()
            self._taken = []
        for token in answer[len(self._taken) :]:
            if not self._matcher.consume_token(token):
                self._check()
                raise GrammarError("the answer so far is not in the grammar")
            self._taken.append(token)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_short(self._matcher.get_error()))


class Grammars:
    """Compiles grammars for one model. Use it from one thread at a time, but for `known`."""

    def __init__(self, read_text: Callable[[], TextBundle | NoText]) -> None:
        """`read_text` gives the model's tokenizer, once; it may take seconds."""
        self._read_text = read_text
        self._tokenizer: LLTokenizer | None = None
        self._ends: tuple[int, ...] = ()
        self._kept: OrderedDict[str, Matcher] = OrderedDict()

    def known(self, grammar: str) -> Matcher | None:
        """A matcher for a grammar that is compiled already."""
        kept = self._kept.get(grammar)
        return None if kept is None else kept.fork()

    def compile(self, grammar: str) -> Matcher:
        """A matcher for a grammar; it may take a second, and the first one the time to read the tokenizer.

        GrammarError if it is malformed, asks for what cannot be enforced, or is too large; NoGrammarsError if this
        server can enforce none for this model.
        """
        if (known := self.known(grammar)) is not None:
            return known
        tokenizer = self._tokenizer or self._read_tokenizer()
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        made = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not made.is_error():
            made.compute_logit_bias()  # the first mask is the slowest: not in a step that others wait for
        if made.is_error():
            raise GrammarError(_short(made.get_error()))
        matcher = Matcher(made, model_ends=self._ends)
        self._kept[grammar] = matcher
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return matcher.fork()

    def _read_tokenizer(self) -> "LLTokenizer":
        try:
            from llguidance import LLTokenizer
        except ModuleNotFoundError:
            raise NoGrammarsError("llguidance is not installed: pip install 'chainserve[server]'") from None
        text = self._read_text()
        if isinstance(text, NoText):
            raise NoGrammarsError(f"no tokenizer to follow a grammar with: {text.reason}")
        if not text.end_tokens:
            raise NoGrammarsError("the model names no token that ends an answer")
        try:
            made = LLTokenizer(text.tokenizer, n_vocab=text.vocab_size, eos_token=list(text.end_tokens))
        except ValueError as error:
            raise NoGrammarsError(f"llguidance cannot follow this model's tokenizer: {_short(str(error))}") from None
        self._tokenizer, self._ends = made, text.end_tokens
        return made


def _short(text: str) -> str:
    """What the library says is wrong, on one line."""
    words = " ".join(text.replace("<non-verbose/>", "").split())[:MAX_ERROR_CHARS]
    return NOTHING_FOLLOWS if words.startswith("NoExtension") else words
