"""INTERIM: replaced by the light client's text model."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from chainserve.errors import ModelNotFoundError, RequestError
from chainserve_client.network import ModelInSwarm, Network


class TextModel:
    def __init__(self, tokenizer: Any, *, end_tokens: frozenset[int], vocab_size: int, name: str) -> None:
        self._tokenizer = tokenizer
        self.end_tokens = end_tokens
        self.vocab_size = vocab_size
        self._name = name

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise RequestError(f"{self._name} has no chat template: use generate with a plain prompt")
        encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


async def fetch_text_model(network: Network, model: ModelInSwarm) -> TextModel:
    def load() -> TextModel:
        from chainserve.models.resolve import resolve

        source = resolve(model.name)
        if source.digest != model.digest:
            raise ModelNotFoundError(f"{model.name} on this machine is not what the swarm serves")
        tokenizer = source.tokenizer()
        ids: set[int] = set()
        for holder in (source.generation_config(), source.config, tokenizer):
            end = getattr(holder, "eos_token_id", None)
            ids.update([end] if isinstance(end, int) else end or [])
        return TextModel(tokenizer, end_tokens=frozenset(ids), vocab_size=source.config.vocab_size, name=model.name)

    return await asyncio.to_thread(load)
