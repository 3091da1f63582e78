"""Grammars compiled beside what a server does: one at a time, in a thread that no step waits for."""

import asyncio
import logging
from collections.abc import Callable

from chainserve.errors import ChainserveError, NoGrammarsError
from chainserve.models.grammars import Grammars, Matcher
from chainserve.runtime.background import in_background

logger = logging.getLogger(__name__)

MAX_WAITING = 64
"""Grammars that may wait for their turn."""

Compiled = Matcher | ChainserveError
Compile = Callable[[str, Callable[[Compiled], None]], None]
"""Compiles a grammar and calls back with a matcher, or with what is wrong, at once or later."""


class GrammarQueue:
    """Compiles for the sessions of one server; call it on its event loop."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def compile(self, grammar: str, done: Callable[[Compiled], None]) -> None:
        """Call `done` with a matcher, or with the error that says why there is none."""
        if (known := self._grammars.known(grammar)) is not None:
            done(known)
        elif len(self._tasks) >= MAX_WAITING:
            done(NoGrammarsError(f"{MAX_WAITING} other grammars wait to be compiled"))
        else:
            task = asyncio.create_task(self._compile(grammar, done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _compile(self, grammar: str, done: Callable[[Compiled], None]) -> None:
        result: Compiled
        async with self._turn:
            try:
                result = await in_background(lambda: self._grammars.compile(grammar))
            except ChainserveError as error:
                result = error
            except (OSError, ValueError) as error:  # may pass, as when the tokenizer has to be downloaded
                logger.warning("the tokenizer cannot be read: %s", error)
                result = NoGrammarsError(f"the tokenizer's files cannot be read: {error}")
        done(result)
