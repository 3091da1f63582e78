"""The OpenAPI description, from the schemas that requests are checked by."""

from collections.abc import Mapping
from typing import Any

from chainserve import __version__
from chainserve_client.gateway.schema import Schema

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
GETS = {
    "/v1/models": "the models that the swarm serves",
    "/v1/models/{name}": "one model",
    "/healthz": "whether the gateway runs",
    "/readyz": "whether some model has all its blocks served",
}


def description(requests: Mapping[str, Schema]) -> dict[str, Any]:
    """What the gateway answers, with the schema of each request's body by its path."""
    paths: dict[str, Any] = {path: {"get": _operation(summary, path)} for path, summary in GETS.items()}
    for path, schema in requests.items():
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {**_operation("generate", path), "requestBody": body}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "chainserve gateway", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(summary: str, path: str) -> dict[str, Any]:
    error = {"description": "what is wrong", "content": {"application/json": {"schema": ERROR}}}
    answer = {"description": "the answer", "content": {"application/json": {"schema": {"type": "object"}}}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    parameters = {"parameters": [name]} if "{name}" in path else {}
    return {"summary": summary, "responses": {"200": answer, "default": error}, **parameters}
