"""What the two endpoints differ in: how they are asked, and the shape of their answers."""

from collections.abc import Sequence
from typing import Any, Protocol

from chainserve.protocol.messages import Logprobs
from chainserve_client.client import AsyncClient
from chainserve_client.gateway.asked import Asked
from chainserve_client.gateway.schema import Schema
from chainserve_client.text_model import TextModel

Choice = dict[str, Any]
Scored = Sequence[tuple[int, Logprobs]]
"""Tokens with their log-probabilities."""


class LogprobsForm(Protocol):
    """Writes the log-probabilities of one choice, from its first token on."""

    def write(self, scored: Scored) -> dict[str, Any]:
        """Those of the next tokens."""


class Writer(Protocol):
    """Writes the text of one choice."""

    def whole(self, text: str) -> Choice:
        """All of it, when it is complete."""

    def first(self) -> Choice | None:
        """What it begins with in a stream, if with anything."""

    def more(self, text: str) -> list[Choice]:
        """What of a stream is certain with this text, maybe nothing."""

    def rest(self) -> list[Choice]:
        """What was held back, when no more text comes."""

    def empty(self) -> Choice:
        """A part of a stream with no text."""

    def reason(self, reason: str) -> str:
        """Why it ended, after all its text, if it came to its end for this reason."""


class Form(Protocol):
    """One endpoint."""

    schema: Schema
    id_prefix: str
    whole_object: str
    chunk_object: str
    default_max_tokens: int

    def read(self, body: object) -> Asked:
        """What is asked for; ApiError names the field at fault."""

    def encode(self, client: AsyncClient, prompt: Any) -> list[int]:
        """The tokens of one of the prompts."""

    def grammar(self, client: AsyncClient, prompt: Any) -> str | None:
        """What the answer to it has to be in, if in anything."""

    def logprobs(self, text: TextModel) -> LogprobsForm:
        """A writer for one choice."""

    def writer(self, text: TextModel, prompt: Any) -> Writer:
        """A writer for one choice of the answers to this prompt."""
