"""What is served over HTTP: the page, its files, the state as JSON, and the stream of what is new."""

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from aiohttp import web

from chainserve.errors import SwarmError
from chainserve_client.health.hub import MAX_LISTENERS
from chainserve_client.health.watch import Watch

API = "/api/v1/"
"""What lies below shows the swarm's inside, and takes a key where the gateway has keys."""
IDLE_S = 10.0
"""After which a stream without news says that it is still there."""
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
)
SAMPLE_FIELDS = ("at", "load", "tokens_per_s", "num_waiting", "num_online")


class HealthPage:
    """The routes of the page over what is watched."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._files = {
            file.name: file.read_bytes()
            for file in files("chainserve_client.health").joinpath("assets").iterdir()
            if file.name.rpartition(".")[2] in TYPES
        }

    def add_to(self, app: web.Application) -> None:
        """Serve the page from this application, too."""
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/assets/{name}", self._asset),
                web.get(API + "state", self._state),
                web.get(API + "plan", self._plan),
                web.get(API + "events", self._events),
                web.get(API + "history", self._history),
                web.get(API + "stream", self._stream),
            ]
        )
        app.on_shutdown.append(self._end)

    async def _index(self, _: web.Request) -> web.Response:
        return self._file("index.html")

    async def _asset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        return self._file(name)

    def _file(self, name: str) -> web.Response:
        kind = TYPES[name.rpartition(".")[2]]
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8", headers=HEADERS)

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response(self._watch.state, headers=HEADERS)

    async def _plan(self, _: web.Request) -> web.Response:
        return web.json_response({"models": self._watch.plans_json()}, headers=HEADERS)

    async def _events(self, _: web.Request) -> web.Response:
        return web.json_response({"events": self._watch.events_json()}, headers=HEADERS)

    async def _history(self, _: web.Request) -> web.Response:
        samples = [sample.to_json() for sample in self._watch.history.samples()]
        return web.json_response({"fields": SAMPLE_FIELDS, "samples": samples}, headers=HEADERS)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """All that is known, and from then on what is new."""
        if len(self._watch.hub) >= MAX_LISTENERS:
            raise SwarmError(f"{MAX_LISTENERS} pages are open already: close one, or ask {API}state now and then")
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        response.headers["Cache-Control"] = "no-store"
        with self._watch.hub.listening() as listener:
            await response.prepare(request)
            await response.write(b"".join(self._watch.welcome()))
            async for news in listener.news(idle_s=IDLE_S):
                await response.write(news)
        return response

    async def _end(self, _: web.Application) -> None:
        self._watch.hub.end()
