"""What goes wrong, as OpenAI's API says it."""

import math
from typing import Any

from chainserve.errors import (
    ChainserveError,
    GrammarError,
    NoPlaceError,
    PromptTooLongError,
    ProtocolError,
    RequestError,
    SessionRefusedError,
)
from chainserve.protocol.messages import FailureCode

RETRY_S = 5.0
"""When nobody knows how long a place would have to be waited for."""


class ApiError(ChainserveError):
    """A request that is answered with an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_s = retry_s

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, alone or as an event of a stream."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_s)))}


def model_not_found(name: str) -> ApiError:
    message = f"the model {name!r} does not exist in this swarm: see /v1/models"
    return ApiError(message, status=404, param="model", code="model_not_found")


def context_exceeded(num_prompt_tokens: int, max_tokens: int, *, limit: int) -> ApiError:
    """A prompt, or what was asked for after it, that is longer than the model's context."""
    message = (
        f"the model's context is {limit} tokens; this takes {num_prompt_tokens} for the prompt and {max_tokens} for "
        f"the answer: shorten the prompt or lower max_tokens"
    )
    return ApiError(message, code="context_length_exceeded")


def api_error(error: ChainserveError) -> ApiError:
    """What a request is told of an error of the swarm or of its own."""
    match error:
        case ApiError():
            return error
        case PromptTooLongError():
            return ApiError(str(error), code="context_length_exceeded")
        case GrammarError():
            return ApiError(str(error), code="invalid_grammar")
        case RequestError():
            return ApiError(str(error))
        case SessionRefusedError(code=FailureCode.NO_GRAMMARS):
            return ApiError(str(error), status=501, kind="server_error", code="grammars_unavailable")
        case NoPlaceError():
            retry_s = error.wait_s if error.wait_s is not None else RETRY_S
            return ApiError(str(error), status=429, kind="rate_limit_error", code="swarm_full", retry_s=retry_s)
        case ProtocolError():
            return ApiError(str(error), status=502, kind="server_error", code="bad_server")
        case _:
            return ApiError(str(error), status=503, kind="server_error", code="swarm_unavailable", retry_s=RETRY_S)
