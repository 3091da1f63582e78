"""Servers with quantized blocks give the tokens of the same quantized model in transformers."""

import asyncio
from pathlib import Path

import pytest
import torch
from bundled import QUESTIONS, MakeSwarm, Reference
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from chainserve_client import AsyncClient

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


@pytest.mark.parametrize("quant", SETTINGS)
async def test_tokens_are_those_of_the_same_quantized_model(
    quant: str, make_swarm: MakeSwarm, reference: Reference, plain_folder: Path
) -> None:
    settings = BitsAndBytesConfig(**SETTINGS[quant])
    model = AutoModelForCausalLM.from_pretrained(plain_folder, dtype=torch.float32, quantization_config=settings)
    model.generation_config = reference.model.generation_config
    quantized = Reference(model, reference.tokenizer)
    prompts = [quantized.prompt(question) for question in QUESTIONS[-3:]]
    expected = [quantized.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    assert expected != [reference.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    swarm = await asyncio.to_thread(make_swarm, "0:12", "12:30", arguments=("--quant", quant))
    async with await AsyncClient.connect(swarm.token) as client:
        answers = await asyncio.gather(*(client.generate(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts))
    assert [answer.tokens for answer in answers] == expected
