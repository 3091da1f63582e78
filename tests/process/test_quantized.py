"""Servers with quantized blocks give the tokens of the same quantized model in transformers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from bundled import MODEL, QUESTIONS, MakeSwarm, Reference
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from chainserve.models.attention import ATTENTION
from chainserve.models.cache import KVCache
from chainserve.models.load import load_weights
from chainserve.models.names import INT4
from chainserve.models.quantize import quantize_blocks
from chainserve.models.resolve import resolve
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.planning.chunks import LEAST_TOKENS
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span
from chainserve_client import AsyncClient, Generation

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

NEW_TOKENS = 24
SETTINGS = {
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}


@pytest.fixture(scope="module")
def plain_folder(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as transformers saves it, since it quantizes no GGUF files."""
    fields = reference.model.config.to_dict()
    fields.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**fields), dtype=torch.float32)
    model.load_state_dict(reference.model.state_dict())
    folder = tmp_path_factory.mktemp("plain")
    model.save_pretrained(folder)
    return folder


class Quantized:
    """A quantized model in one piece, run as servers run it, but for splitting and batching.

    To 8 bits inputs are rounded, too: what another kernel or a prompt in two pieces changes in the last bit may turn a
    rounding over, and another token follows. So attention is that of the servers, and prompts are too short to be cut.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._norm, self._model.model.norm = self._model.model.norm, torch.nn.Identity()
        self._span = Span(0, self._model.config.num_hidden_layers)
        self._runner = Runner(self._model, self._span, KVCache(self._span, budget_tokens=1024))

    @torch.inference_mode()
    def greedy(self, prompt: list[int], num_tokens: int) -> tuple[int, ...]:
        session, ids = SessionId(bytes(16)), list(prompt)
        self._runner.cache.reserve(session, self._span, num_lanes=1, max_tokens=len(ids) + num_tokens)
        start = 0
        for _ in range(num_tokens):
            hidden = self._model.get_input_embeddings()(torch.tensor(ids[start:]))
            hidden = self._runner.forward(hidden, [Step(session, 0, start, len(hidden), 1)], self._span)
            start = len(ids)
            ids.append(int(self._model.lm_head(self._norm(hidden[-1])).argmax()))
            if ids[-1] == self._model.config.eos_token_id:
                break
        self._runner.cache.release(session)
        return tuple(ids[len(prompt) :])


def by_transformers(folder: Path, quant: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(**SETTINGS[quant]),
        attn_implementation=ATTENTION,
    )
    return model


def with_its_own_integers() -> PreTrainedModel:
    """The bundled model as one server would hold it: transformers does not multiply what is in its file."""
    source, cpu = resolve(MODEL), torch.device("cpu")
    quantize_blocks(source.config, INT4, dtype=torch.float32, device=cpu)
    model = build_skeleton(source.config, Span(0, source.num_blocks), embed=True, head=True)
    load_weights(model, source, dtype=torch.float32, device=cpu, progress=False)
    return model


@pytest.mark.parametrize("quant", [*SETTINGS, INT4])
async def test_tokens_are_those_of_the_same_quantized_model(
    quant: str, make_swarm: MakeSwarm, reference: Reference, plain_folder: Path
) -> None:
    quantized = Quantized(with_its_own_integers() if quant == INT4 else by_transformers(plain_folder, quant))
    few = 3 if quant == INT4 else 4
    prompts = [reference.tokenizer.encode(question) for question in QUESTIONS[:few]]
    assert max(map(len, prompts)) <= LEAST_TOKENS
    expected = [quantized.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    assert expected != [reference.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    swarm = await asyncio.to_thread(make_swarm, "0:12", "12:30", arguments=("--quant", quant))
    at_once = asyncio.Semaphore(1 if quant == INT4 else len(prompts))  # a batch would round otherwise, in bfloat16
    async with await AsyncClient.connect(swarm.token) as client:

        async def generate(prompt: list[int]) -> Generation:
            async with at_once:
                return await client.generate(prompt, max_new_tokens=NEW_TOKENS, max_drafts=0)

        answers = await asyncio.gather(*map(generate, prompts))
    assert [answer.tokens for answer in answers] == expected
