"""The part of JSON Schema that requests are described in, and checked by."""

import re
import reprlib
from collections.abc import Mapping
from math import inf
from typing import Any

from chainserve_client.gateway.errors import ApiError

Schema = Mapping[str, Any]

TYPES: Mapping[str, tuple[type, str]] = {
    "string": (str, "a string"),
    "integer": (int, "an integer"),
    "number": (int | float, "a number"),  # type: ignore[dict-item]
    "boolean": (bool, "a boolean"),
    "array": (list, "an array"),
    "object": (dict, "an object"),
    "null": (type(None), "null"),
}


def optional(kind: str, **rules: Any) -> Schema:
    """A field that may be null, which is as if it were missing."""
    return {"type": [kind, "null"], **rules}


def check(value: object, schema: Schema, name: str = "") -> None:
    """ApiError names the field that is not as the schema says."""
    if "anyOf" in schema:
        fitting = [alternative for alternative in schema["anyOf"] if _has_type(value, alternative)]
        if not fitting:
            _refuse(name, " or ".join(map(_wanted, schema["anyOf"])), value)
        for alternative in fitting[:-1]:
            try:
                return check(value, alternative, name)
            except ApiError:
                continue
        return check(value, fitting[-1], name)
    if not _has_type(value, schema) or not _is_within(value, schema):
        _refuse(name, _wanted(schema), value)
    if isinstance(value, dict):
        _check_object(value, schema, name)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            check(item, schema["items"], f"{name}.{index}")


def _check_object(value: Mapping[str, object], schema: Schema, name: str) -> None:
    prefix = f"{name}." if name else ""
    for required in schema.get("required", ()):
        if required not in value:
            raise ApiError(f"{prefix}{required} is missing", param=f"{prefix}{required}", code="missing")
    for key, item in value.items():
        if not re.search(schema.get("propertyNames", {}).get("pattern", ""), key):
            _refuse(name, _wanted(schema), key)
        rules = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        if rules is not None:
            check(item, rules, f"{prefix}{key}")


def _has_type(value: object, schema: Schema) -> bool:
    names = schema.get("type", list(TYPES))
    for name in [names] if isinstance(names, str) else names:
        if isinstance(value, TYPES[name][0]) and (name == "boolean" or not isinstance(value, bool)):
            return True
    return False


def _is_within(value: Any, schema: Schema) -> Any:
    """Whether a value of the right type is one of those that the schema allows."""
    if "enum" in schema:
        return value in schema["enum"]
    match value:
        case bool() | None:
            return True
        case int() | float():
            low, above, high = (
                schema.get("minimum", -inf),
                schema.get("exclusiveMinimum", -inf),
                schema.get("maximum", inf),
            )
            return bool(low <= value <= high and (value > above or above == -inf))
        case str():
            fits = re.fullmatch(schema.get("pattern", "(?s:.*)"), value)
            return fits and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", inf)
        case list():
            return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", inf)
        case _:
            return len(value) <= schema.get("maxProperties", inf)


def _wanted(schema: Schema) -> str:
    """In words: what a value of this schema is."""
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    if "title" in schema:
        return str(schema["title"])
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    text = " or ".join(TYPES[name][1] for name in names if name != "null")
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None:
        text += f" from {low:g} to {high:g}" if high is not None else f" of at least {low:g}"
    elif above is not None:
        text += f" above {above:g}" + (f", {high:g} at most" if high is not None else "")
    return text


def _refuse(name: str, wanted: str, value: object) -> None:
    found = reprlib.repr(value)
    raise ApiError(f"{name or 'the body'} must be {wanted}, not {found}", param=name or None, code="invalid_value")
