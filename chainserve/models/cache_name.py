"""What transformers calls the cache of keys and values: `past_key_values` up to 5.23, `cache` from 5.24 on."""

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))
"""Name of the argument, and of the output."""
