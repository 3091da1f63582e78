"""Token mode as the head sees it: which tokens a session has, and the step that it goes on with.

The tail chooses tokens and tells the head at the same time as the client; so the client's distance is not in the loop.
It is where the client drafts by a model of its own: then the head waits for that.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from chainserve.planning.speculation import Speculation
from chainserve.protocol.messages import Choice, Drafts, Step
from chainserve.types import SessionId
from chainserve_server.drafts import LONGEST, PromptLookup

KEPT_AFTER = 2
"""Answers of the tail: before the second, the step behind the prompt has made every server keep the prompt's pages."""

ExtraSeconds = Callable[[int], float]


class HeadTokens:
    """One session's tokens, and how it goes on."""

    def __init__(
        self,
        session: SessionId,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        max_drafts: int,
        drafts_by_client: bool = False,
        extra_s: ExtraSeconds,  # by how many seconds so many drafts make a step longer
        clock: Callable[[], float],
    ) -> None:
        self.num_cached: int | None = None  # tokens that nobody has to compute; None: not known yet
        self.num_answers = 0  # of the tail, so far
        self._num_emitted = 0  # steps that have gone on to the next server
        self._fed_end = 0  # position up to which tokens were given to the engine
        self._emitted_end = 0  # and up to which they have left it
        self._session = session
        self._max_tokens = max_tokens
        self._max_drafts = max_drafts
        self._known = PromptLookup()
        self._known.extend(prompt)
        self._drafts: list[int] = []  # what may follow the last step's first token, sent or not
        self._match = 0  # tokens before them that were there before
        self._speculation = Speculation(extra_s)
        self._by_client = Speculation(extra_s) if drafts_by_client else None
        self._awaits_drafts = False
        self._given: Drafts | None = None  # by the client, for what the tail has chosen or will have
        self._checked = self._speculation  # whose drafts the last step held
        self._clock = clock
        self._began_s: float | None = None
        self._num_sent = 0  # drafts of the last step

    @property
    def ids(self) -> list[int]:
        """All tokens that are certain."""
        return self._known.ids

    def first_step(self, num_cached: int) -> Step:
        """The prompt, but for what every server has cached."""
        self.num_cached = num_cached
        start = min(num_cached, len(self.ids) - 1)
        self._fed_end = len(self.ids)
        return Step(self._session, 0, start, len(self.ids) - start, 1, ids=tuple(self.ids[start:]))

    def number(self, step: Step) -> Step:
        """The step with its number, as it goes on to the next server."""
        self._num_emitted += 1
        self._emitted_end = step.start + step.num_tokens
        return replace(step, sequence=self._num_emitted - 1)

    def is_computing(self, num_tokens: int) -> bool:
        """Whether the first tokens of the prompt are on their way to be cached everywhere."""
        return self.num_answers < KEPT_AFTER and (self.num_cached is None or self.num_cached < num_tokens)

    @property
    def last_sequence(self) -> int:
        """Number of the step whose outputs come next: the last one that has gone on, or one that waits here still."""
        return self._num_emitted - (self._emitted_end == self._fed_end)

    def expects(self, choice: Choice) -> bool:
        """Whether these tokens are the next ones, and as many as can be."""
        end = choice.start + len(choice.ids)
        return self._fed_end > 0 and choice.start == len(self.ids) and end <= self._max_tokens + 1

    def next_step(self, choice: Choice) -> Step | None:
        """Take what the tail has chosen, and go on with it; None after the last token, or if drafts are to come."""
        self._learn(choice)
        self.num_answers += 1
        self._known.extend(choice.ids)
        if choice.is_last or len(self.ids) > self._max_tokens:
            return None
        self._awaits_drafts = self._by_client is not None
        return self._go_on()

    def takes(self, drafts: Drafts) -> bool:
        """Whether drafts for there can be: for the next step, or early, for what the tail is about to choose."""
        is_due = drafts.start == len(self.ids) if self._awaits_drafts else drafts.start > len(self.ids)
        return self._by_client is not None and is_due and len(drafts.ids) <= self._max_drafts

    def drafted(self, drafts: Drafts) -> Step | None:
        """Take the client's drafts, and go on with them if they were waited for."""
        self._given = drafts
        return self._go_on() if self._awaits_drafts else None

    def _go_on(self) -> Step | None:
        """The next step, unless the client's drafts for it are still to come."""
        given: tuple[int, ...] = ()
        if self._awaits_drafts:
            if self._given is None or self._given.start != len(self.ids):
                return None
            given, self._given, self._awaits_drafts = self._given.ids, None, False
        room = min(self._max_drafts, self._max_tokens - len(self.ids))
        if given and self._by_client is not None:
            self._checked, self._drafts, self._match = self._by_client, list(given[:room]), LONGEST
        else:
            self._checked = self._speculation
            self._drafts, self._match = self._known.propose(room) if room else ([], 0)
        self._num_sent = self._checked.num_drafts(match=self._match, most=len(self._drafts))
        start = len(self.ids) - 1
        ids = (self.ids[-1], *self._drafts[: self._num_sent])
        self._fed_end = start + len(ids)
        self._emitted_end = start
        self._began_s = self._clock()
        return Step(self._session, 0, start, len(ids), len(ids), ids=ids)

    def _learn(self, choice: Choice) -> None:
        """See how the last step's drafts did, and how long it took."""
        if self._began_s is None:
            return
        for speculation in (self._speculation, self._by_client):
            if speculation is not None:
                speculation.took(self._clock() - self._began_s, num_drafts=self._num_sent)
        compared = self._drafts[: max(self._num_sent, 1)]  # one that was not sent is compared too
        pairs = zip(compared, choice.ids, strict=False)
        num_right = next((at for at, (draft, token) in enumerate(pairs) if draft != token), None)
        if num_right is None:
            num_right = min(len(compared), len(choice.ids))
            self._checked.verified(self._match, num_right, num_wrong=0)
        else:
            self._checked.verified(self._match, num_right, num_wrong=1)
