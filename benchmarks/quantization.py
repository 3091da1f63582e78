"""What quantized blocks cost in memory, speed and perplexity, beside plain ones, in one run on one machine.

    python benchmarks/quantization.py [--model NAME] [--device cuda] [--rounds N] [--output FILE]

All kinds are in memory at once and every round times each of them, so that a slow minute of the machine touches all
alike. On a GPU quantized blocks compute in bfloat16, and fp8 is among them: give another --output there.
"""

import argparse
import hashlib
import math
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()

import torch
from circumstances import PROJECT, circumstances, keep
from sections.quantization import section

from chainserve.models.cache import KVCache
from chainserve.models.ends import Ends
from chainserve.models.load import bytes_by_block, load_weights
from chainserve.models.names import FP8, INT4, INT8, NF4
from chainserve.models.profiles import device_name
from chainserve.models.quantize import quantize_blocks
from chainserve.models.resolve import resolve
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

TEXT = "".join(topics[name] for name in ("execmodel", "naming", "import"))
"""The Python language reference on execution, names and imports, which comes with Python (PSF license)."""
WINDOW, NUM_WINDOWS = 512, 4
SESSIONS = (1, 8)
CONTEXT_TOKENS = 64
PREFILL_TOKENS = 256
SEED = 0


class Kind:
    """All blocks of a model in one kind of weights, and a client's ends for them."""

    def __init__(
        self, model: str, dtype: torch.dtype, quant: str | None, threshold: float, device: torch.device
    ) -> None:
        source = resolve(model)
        span = Span(0, source.num_blocks)
        if quant:
            quantize_blocks(source.config, quant, dtype=dtype, device=device)
        if threshold:
            source.config.quantization_config.llm_int8_threshold = threshold
        skeleton = build_skeleton(source.config, span)
        self.load_s = load_weights(skeleton, source, dtype=dtype, device=device, progress=False).seconds
        self.weight_bytes = sum(bytes_by_block(source.config, dtype))
        room = max(SESSIONS) * (CONTEXT_TOKENS + 1) + max(WINDOW, PREFILL_TOKENS)
        self.runner = Runner(skeleton, span, KVCache(span, budget_tokens=room))
        ends = build_skeleton(resolve(model).config, None, embed=True, head=True)
        load_weights(ends, source, dtype=dtype, device=device, progress=False)
        self.ends = Ends(ends)
        self.hidden_size = source.config.hidden_size
        self.tokenizer = source.tokenizer()
        self.decode_s: dict[int, list[float]] = {num: [] for num in SESSIONS}
        self.prefill_s: list[float] = []

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "weight_mb": self.weight_bytes / 1e6,
            "load_s": self.load_s,
            "decode_ms": {num: 1000 * statistics.median(seconds) for num, seconds in self.decode_s.items()},
            "prefill_ms": 1000 * statistics.median(self.prefill_s),
            "perplexity": self.perplexity(),
        }

    def round(self, *, kept: bool) -> None:
        """Time a decode step of each number of sessions, and a prefill."""
        for num, seconds in self.decode_s.items():
            took = self.forward_s(num, num_tokens=1, before=CONTEXT_TOKENS)
            seconds += [took] * kept
        self.prefill_s += [self.forward_s(1, num_tokens=PREFILL_TOKENS, before=0)] * kept

    def forward_s(self, num_sessions: int, *, num_tokens: int, before: int) -> float:
        """Seconds of one forward of `num_tokens` for each session, after `before` others."""
        sessions = [SessionId(bytes([number]) * 16) for number in range(num_sessions)]
        for session in sessions:
            self.runner.cache.reserve(session, self.runner.span, num_lanes=1, max_tokens=before + num_tokens)
        if before:
            self.forward([Step(session, 0, 0, before, 1) for session in sessions])
        began = time.perf_counter()
        self.forward([Step(session, 0, before, num_tokens, 1) for session in sessions])
        took = time.perf_counter() - began
        for session in sessions:
            self.runner.cache.release(session)
        return took

    def forward(self, steps: list[Step]) -> None:
        """Run random hidden states through all blocks, and wait for what comes out."""
        generator = torch.Generator().manual_seed(SEED)
        hidden = torch.randn(sum(step.num_tokens for step in steps), self.hidden_size, generator=generator)
        hidden = hidden.to(device=self.runner.device, dtype=self.runner.dtype)
        self.runner.forward(hidden, steps, self.runner.span).cpu()

    @torch.inference_mode()
    def perplexity(self) -> float:
        """Of the text, in windows that know nothing of each other."""
        ids = torch.tensor(self.tokenizer(TEXT, add_special_tokens=False)["input_ids"][: WINDOW * NUM_WINDOWS])
        session, losses = SessionId(b"text".ljust(16)), []
        for window in ids.split(WINDOW):
            self.runner.cache.reserve(session, self.runner.span, num_lanes=1, max_tokens=WINDOW)
            hidden = self.ends.embed(window.to(self.runner.device))
            step = Step(session, 0, 0, len(window), len(window))
            logits = self.ends.logits(self.runner.forward(hidden, [step], self.runner.span)).float().cpu()
            losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:]).item())
            self.runner.cache.release(session)
        return math.exp(statistics.mean(losses))


def kinds(device: torch.device) -> dict[str, tuple[torch.dtype, str | None, float]]:
    """By name, what weights are and compute in, what they are quantized to, and what input is an outlier for int8."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    name = str(dtype).removeprefix("torch.")
    found = {
        "float32": (torch.float32, None, 0.0),
        "bfloat16": (torch.bfloat16, None, 0.0),
        f"int8 in {name}": (dtype, INT8, 0.0),
        "the same with outliers apart, as transformers has it": (dtype, INT8, 6.0),
        f"nf4 in {name}": (dtype, NF4, 0.0),
        f"int4 in {name}": (dtype, INT4, 0.0),
    }
    return found if device.type == "cpu" else found | {f"fp8 in {name}": (dtype, FP8, 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "quantization.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    measured: dict[str, Kind] = {}
    for name, (dtype, quant, threshold) in kinds(device).items():
        measured[name] = Kind(options.model, dtype, quant, threshold, device)
        print(f"{name}: loaded in {measured[name].load_s:.1f} s", flush=True)
    for round_ in range(-1, options.rounds):  # the first one only warms up
        for kind in measured.values():
            kind.round(kept=round_ >= 0)
        print(f"round {round_ + 1} of {options.rounds}", flush=True)
    about = circumstances(
        "quantization",
        "torch",
        "transformers",
        "bitsandbytes",
        model=f"{options.model}, all blocks in one server, on {device_name(device)}",
        seed=SEED,
        rounds=options.rounds,
        text=f"{WINDOW * NUM_WINDOWS:,} tokens of the Python language reference (pydoc_data, sha256 "
        f"{hashlib.sha256(TEXT.encode()).hexdigest()[:8]}) in windows of {WINDOW}",
    )
    figures = {name: kind.figures for name, kind in measured.items()}
    print(section(keep(options.output, about, figures)))


if __name__ == "__main__":
    main()
