"""Loading holds little more than the weights it loads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PretrainedConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc"),
]

MEASURE = """
import sys
import torch
from chainserve.models.load import load_weights, memory_bytes
from chainserve.models.quantize import quantize_blocks
from chainserve.models.resolve import resolve
from chainserve.models.skeleton import build_skeleton
from chainserve.types import Span

def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))

def load(start, end, ends):
    skeleton = build_skeleton(source.config, Span(start, end), embed=ends, head=ends)
    foretold = memory_bytes(skeleton, dtype)
    load_weights(skeleton, source, dtype=dtype, device=torch.device("cpu"))
    return skeleton, foretold

source, dtype = resolve(sys.argv[1]), getattr(torch, sys.argv[2])
for quant in sys.argv[3:]:
    quantize_blocks(source.config, quant, dtype=dtype, device=torch.device("cpu"))
load(0, 1, False)  # what is imported or set up with the first load is no part of the weights
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # VmHWM starts again
before = resident("VmRSS")
loaded, foretold = load(0, source.num_blocks - 1, True)
print((resident("VmHWM") - before) / foretold)
"""


def llama() -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=16000,
    )


def mixtral() -> PretrainedConfig:
    return MixtralConfig(
        hidden_size=512,
        intermediate_size=896,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
        vocab_size=8000,
    )


@pytest.mark.parametrize(("make_config", "dtype"), [(llama, "bfloat16"), (mixtral, "float32")])
def test_peak_stays_below_the_weights_and_a_fifth(tmp_path: Path, make_config, dtype: str) -> None:
    AutoModelForCausalLM.from_config(make_config(), dtype=torch.float32).save_pretrained(tmp_path)
    assert peak_over_weights(str(tmp_path), dtype) < 1.2


def test_peak_of_the_bundled_model_stays_below_too() -> None:
    assert peak_over_weights("smollm2-135m", "bfloat16") < 1.2


@pytest.mark.parametrize("quant", ["int8", "nf4"])
def test_peak_of_quantized_blocks_is_what_they_take_and_a_weight_on_its_way(tmp_path: Path, quant: str) -> None:
    """A weight comes as float32 and bitsandbytes copies it a few times; all in float32 would take more than twice."""
    AutoModelForCausalLM.from_config(llama(), dtype=torch.float32).save_pretrained(tmp_path)
    assert peak_over_weights(str(tmp_path), "float32", quant) < 1.6


def peak_over_weights(name: str, dtype: str, *quant: str) -> float:
    """Peak of resident memory while loading, over what it was before, in units of the weights loaded."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, name, dtype, *quant], capture_output=True, text=True, check=True
    )
    return float(done.stdout)
