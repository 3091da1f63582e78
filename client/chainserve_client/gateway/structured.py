"""`response_format`: an answer that is JSON, of any shape or of a schema's, as a grammar that the tail follows."""

import json
from collections.abc import Mapping
from typing import Any

from chainserve.protocol.sampling import MAX_GRAMMAR_BYTES
from chainserve_client.gateway.errors import ApiError
from chainserve_client.gateway.schema import Schema, optional

RESPONSE_FORMAT: Schema = optional(
    "object",
    required=["type"],
    properties={
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": optional(
            "object",
            required=["schema"],
            properties={
                "name": optional("string", maxLength=64),
                "description": optional("string"),
                "schema": {"type": "object"},
                "strict": optional("boolean"),
            },
        ),
    },
)
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""On one line, as most JSON is that models have seen; where any space is allowed, small models write it for ever."""


def wanted_json(fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of the JSON that a request wants for its answer; None if it wants text."""
    asked = fields.get("response_format") or {"type": "text"}
    if asked["type"] == "json_object":
        return ANY_OBJECT
    if asked["type"] == "text":
        return None
    if asked.get("json_schema") is None:
        raise ApiError("response_format.json_schema is missing", param="response_format.json_schema", code="missing")
    schema: Mapping[str, Any] = asked["json_schema"]["schema"]
    return schema


def grammar_of_json(schema: Mapping[str, Any], *, param: str) -> str:
    """The grammar of a JSON value; `param` is the field to name if it is too large."""
    return checked(f"start: {json_rule(schema)}", param=param)


def json_rule(schema: Mapping[str, Any]) -> str:
    """What stands in a grammar for JSON of this schema."""
    try:
        return f"%json {json.dumps({**schema, 'x-guidance': SPACING})}"
    except RecursionError:
        raise ApiError("a schema is nested too deeply", code="invalid_value") from None


def checked(grammar: str, *, param: str) -> str:
    """The grammar, if servers take one as large."""
    if len(grammar) > MAX_GRAMMAR_BYTES:  # it is ASCII
        message = f"{param} makes a grammar of {len(grammar)} bytes, at most {MAX_GRAMMAR_BYTES} are taken"
        raise ApiError(message, param=param, code="schema_too_large")
    return grammar
