"""The HTTP side: routes, request ids, keys, CORS, and every error in OpenAI's form."""

import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from aiohttp import web

from chainserve.errors import ChainserveError, GrammarError
from chainserve.runtime.hosts import is_loopback
from chainserve.transport.exposition import PATH as METRICS_PATH
from chainserve.transport.exposition import metrics_page
from chainserve_client.gateway.answering import answer_stream, answer_whole, streams_of
from chainserve_client.gateway.answers import Answer
from chainserve_client.gateway.chat import Chat
from chainserve_client.gateway.completions import Completions
from chainserve_client.gateway.errors import ApiError, api_error, model_not_found
from chainserve_client.gateway.form import Form
from chainserve_client.gateway.keys import Keys
from chainserve_client.gateway.metrics import HUNG_UP, GatewayMetrics
from chainserve_client.gateway.models import Models
from chainserve_client.gateway.openapi import description
from chainserve_client.health.page import API, HealthPage

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 8 * 2**20
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
request_id: ContextVar[str] = ContextVar("request_id")
"""Of the request that this task answers."""
FORMS: dict[str, Form] = {"/v1/chat/completions": Chat(), "/v1/completions": Completions()}


class Gateway:
    """Answers requests over the models of one swarm."""

    def __init__(
        self,
        models: Models,
        *,
        keys: Keys | None = None,
        cors_origins: Sequence[str] = (),
        max_wait_s: float | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        page: HealthPage | None = None,
        is_local: bool = False,
    ) -> None:
        """Without `keys` everybody may use it. A request waits for a place for `max_wait_s` at most.

        A `page` shows the swarm at `/`. If it `is_local` it answers under names of this machine only: the owner of
        another name could let that lead here, and a web page of theirs in a browser here would read what it likes.
        """
        self._is_local = is_local
        self._models = models
        self._keys = keys
        self._cors_origins = cors_origins
        self._max_wait_s = max_wait_s
        self._metrics = GatewayMetrics()
        self._began = int(time.time())
        self.app = web.Application(
            client_max_size=max_body_bytes,
            middlewares=[self._metrics.count, self._with_errors, self._with_host, self._with_cors, self._with_key],
        )
        self.app.on_response_prepare.append(self._add_headers)
        self.app.add_routes(
            [
                web.get("/v1/models", self._list_models),
                web.get("/v1/models/{name:.+}", self._show_model),
                *(web.post(path, self._answer(form)) for path, form in FORMS.items()),
                web.get("/openapi.json", self._describe),
                web.get(METRICS_PATH, metrics_page(self._metrics.families)),
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
            ]
        )
        if page is not None:
            page.add_to(self.app)

    def _answer(self, form: Form) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            asked = form.read(_parse(await request.read()))
            client = await self._models.client(asked.model)
            streams = await streams_of(client, form, asked, max_wait_s=self._max_wait_s)
            streams = self._metrics.watched(request, client.model.name, streams)
            answer = Answer(form, asked, client)
            try:
                if asked.is_stream:
                    return await answer_stream(request, streams, answer)
                return await answer_whole(streams, answer)
            except GrammarError as error:
                raise ApiError(str(error), param=asked.grammar_param, code="invalid_grammar") from error

        return handle

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model(name) for name in self._models.names()]})

    async def _show_model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._models.names():
            raise model_not_found(name)
        return web.json_response(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "chainserve"}

    async def _describe(self, _: web.Request) -> web.Response:
        return web.json_response(description({path: form.schema for path, form in FORMS.items()}))

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readiness(self, _: web.Request) -> web.Response:
        self._models.check()
        return web.json_response({"status": "ready"})

    @web.middleware
    async def _with_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request an id, and whatever is raised OpenAI's form."""
        given = request.headers.get("x-request-id", "")
        request_id.set(given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}")
        try:
            return await handler(request)
        except ChainserveError as error:
            return _response(api_error(error))
        except web.HTTPException as error:
            return _response(_http_error(request, error))
        except Exception as error:
            if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                return web.Response(status=int(HUNG_UP))  # for the metrics: nobody else hears of it
            logger.exception("request %s failed", request_id.get())
            return _response(ApiError("the gateway failed; its log has the reason", status=500, kind="server_error"))

    @web.middleware
    async def _with_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        name = request.url.host or ""
        if self._is_local and not (is_loopback(name) or name.endswith(".localhost")):
            message = f"this gateway serves its own machine only, not as {name!r}: see --api-keys and --no-auth"
            raise ApiError(message, status=421, code="wrong_host")
        return await handler(request)

    @web.middleware
    async def _with_cors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS" and self._allowed_origin(request) is not None:
            headers = {
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", ""),
                "Access-Control-Max-Age": "600",
            }
            return web.Response(status=204, headers=headers)
        return await handler(request)

    @web.middleware
    async def _with_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._keys is not None and request.path.startswith(API):
            self._keys.check(request.headers.get("Authorization"))
        if self._keys is None or not request.path.startswith(("/v1/", METRICS_PATH)):
            return await handler(request)
        with self._keys.admit(request.headers.get("Authorization")):
            return await handler(request)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-request-id"] = request_id.get()
        if (origin := self._allowed_origin(request)) is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "*"
            response.headers["Vary"] = "Origin"

    def _allowed_origin(self, request: web.Request) -> str | None:
        if request.path.startswith(API):  # the swarm's inside is for its own page
            return None
        origin = request.headers.get("Origin")
        return origin if origin is not None and {origin, "*"} & set(self._cors_origins) else None


def _parse(body: bytes) -> object:
    """JSON, without the numbers that it does not know."""
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _response(error: ApiError) -> web.Response:
    return web.json_response(error.body, status=error.status, headers=error.headers)


def _http_error(request: web.Request, error: web.HTTPException) -> ApiError:
    """What aiohttp refuses by itself."""
    match error:
        case web.HTTPNotFound():
            return ApiError(f"there is no {request.path} here: see /openapi.json", status=404, code="not_found")
        case web.HTTPMethodNotAllowed():
            wanted = " or ".join(sorted(error.allowed_methods))
            return ApiError(f"{request.path} takes {wanted}, not {error.method}", status=405, code="method_not_allowed")
        case web.HTTPRequestEntityTooLarge():
            return ApiError(f"the body is too large: {error.text}", status=413, code="body_too_large")
        case _:
            return ApiError(error.reason, status=error.status)
