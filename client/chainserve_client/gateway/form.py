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

    def logprobs(self, text: TextModel) -> LogprobsForm:
        """A writer for one choice."""

    def whole(self, text: str) -> Choice:
        """The text of a choice that is complete."""

    def first(self) -> Choice | None:
        """What a choice begins with in a stream, if with anything."""

    def delta(self, text: str) -> Choice:
        """More text of a choice in a stream."""

    def last(self) -> Choice:
        """What a choice ends with in a stream."""
