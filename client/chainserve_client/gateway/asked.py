"""What a request asks for: the fields that both endpoints take, and what they mean to the client.

A field that we do not know is ignored. One that we know and cannot honour is refused, unless it asks for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from chainserve.protocol.sampling import MAX_BIASED
from chainserve_client.gateway.errors import ApiError
from chainserve_client.gateway.schema import Schema, check, optional
from chainserve_client.parameters import GenerationOptions

MAX_CHOICES = 64
"""Of one request, over all its prompts."""
MAX_STOPS = 4
MAX_TOKENS = 2**23
"""Beyond any context; the model's own is what counts."""
DEFAULT_TEMPERATURE = 1.0
"""OpenAI's."""

COMMON: Mapping[str, Schema] = {
    "model": {"type": "string"},
    "stream": optional("boolean", default=False),
    "stream_options": optional("object", properties={"include_usage": optional("boolean", default=False)}),
    "n": optional("integer", minimum=1, maximum=MAX_CHOICES, default=1),
    "max_tokens": optional("integer", minimum=1, maximum=MAX_TOKENS),
    "temperature": optional("number", minimum=0, maximum=2, default=DEFAULT_TEMPERATURE),
    "top_p": optional("number", exclusiveMinimum=0, maximum=1, default=1),
    "top_k": optional("integer", minimum=-1, maximum=2**31 - 1, default=-1),
    "min_p": optional("number", minimum=0, maximum=1, default=0),
    "repetition_penalty": optional("number", minimum=0.01, maximum=100, default=1),
    "presence_penalty": optional("number", minimum=-2, maximum=2, default=0),
    "frequency_penalty": optional("number", minimum=-2, maximum=2, default=0),
    "logit_bias": optional(
        "object",
        title=f"an object of token ids with numbers from -100 to 100, {MAX_BIASED} at most",
        propertyNames={"pattern": "^[0-9]{1,9}$"},
        additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
        maxProperties=MAX_BIASED,
    ),
    "seed": optional("integer", minimum=-(2**63), maximum=2**63 - 1),
    "stop": {
        "anyOf": [
            optional("string", minLength=1, title="a string that is not empty"),
            {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "title": "a string that is not empty"},
                "maxItems": MAX_STOPS,
                "title": f"an array of up to {MAX_STOPS} strings",
            },
        ]
    },
    "ignore_eos": optional("boolean", default=False),
    "chainserve": optional("boolean", default=False, description="report where and how fast each choice was made"),
}

NOT_SUPPORTED = "not supported yet"

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
}
"""Fields that we cannot honour yet, at least not everywhere, and values besides null that ask for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, checked."""

    model: str
    prompts: Sequence[Any]
    num_choices: int  # for each prompt
    max_tokens: int | None  # None: not said
    seed: int | None
    options: GenerationOptions
    is_stream: bool
    with_usage: bool  # in a stream
    with_report: bool
    grammar_param: str | None  # the field that the answer's grammar is made of


def object_of(fields: Mapping[str, Schema], *required: str) -> Schema:
    """The schema of a request's body."""
    return {"type": "object", "required": list(required), "properties": {**COMMON, **unsupported(), **fields}}


def unsupported() -> dict[str, Schema]:
    """What the description says of the fields that we cannot honour; `read` refuses them in its own words."""
    return {name: {"description": NOT_SUPPORTED, "enum": [None, *none]} for name, none in UNSUPPORTED.items()}


def read(body: object, schema: Schema) -> dict[str, Any]:
    """The fields of a body that has this schema and are not null; ApiError names what is wrong."""
    fields = {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body
    if isinstance(fields, dict):
        for name, none in UNSUPPORTED.items():
            is_supported = schema["properties"][name].get("description") != NOT_SUPPORTED
            if name in fields and fields[name] not in none and not is_supported:
                raise ApiError(f"{name} is {NOT_SUPPORTED}", param=name, code="unsupported_parameter")
    check(fields, schema)
    return cast(dict[str, Any], fields)


def asked_of(
    fields: Mapping[str, Any],
    prompts: Sequence[Any],
    *,
    max_tokens: int | None,
    num_logprobs: int | None,
    grammar_param: str | None = None,
) -> Asked:
    """What the fields that both endpoints have ask for; ApiError if they do not go together."""
    is_stream = fields.get("stream", False)
    if "stream_options" in fields and not is_stream:
        raise ApiError("stream_options is for streams: set stream to true", param="stream_options")
    if grammar_param is not None and fields.get("ignore_eos"):
        raise ApiError(
            f"{grammar_param} says where the answer ends: leave ignore_eos out",
            param="ignore_eos",
            code="invalid_value",
        )
    num_choices = fields.get("n", 1)
    if num_choices * len(prompts) > MAX_CHOICES:
        raise ApiError(f"n choices of each prompt are {MAX_CHOICES} at most together", param="n", code="invalid_value")
    return Asked(
        model=fields["model"],
        prompts=prompts,
        num_choices=num_choices,
        max_tokens=max_tokens,
        seed=fields.get("seed"),
        options=_options(fields, num_logprobs),
        is_stream=is_stream,
        with_usage=bool(fields.get("stream_options", {}).get("include_usage")),
        with_report=fields.get("chainserve", False),
        grammar_param=grammar_param,
    )


def _options(fields: Mapping[str, Any], num_logprobs: int | None) -> GenerationOptions:
    """How to generate, without length and seed, which differ from choice to choice."""
    same = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop")
    options = cast(GenerationOptions, {name: fields[name] for name in same if name in fields})
    options["temperature"] = fields.get("temperature", DEFAULT_TEMPERATURE)
    options["top_k"] = max(0, fields.get("top_k", 0))
    options["logit_bias"] = {int(token): bias for token, bias in fields.get("logit_bias", {}).items()}
    options["ignore_end"] = fields.get("ignore_eos", False)
    options["num_logprobs"] = num_logprobs
    return options
