"""A real swarm of server processes for a test, and the model in one piece to compare with."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from bundled import MODEL, MakeSwarm, Reference
from transformers import AutoModelForCausalLM, AutoTokenizer

from chainserve.models.resolve import resolve
from chainserve_server.local import LocalSwarm


@pytest.fixture
def make_swarm(tmp_path: Path) -> Iterator[MakeSwarm]:
    """Starts servers for spans of the bundled model; all are gone when the test ends."""
    with ExitStack() as swarms:

        def make(*spans: str, arguments: tuple[str, ...] = (), model: str = MODEL) -> LocalSwarm:
            swarm = swarms.enter_context(LocalSwarm(model, tmp_path, is_warm=True))
            swarm.start(*spans, arguments=arguments)
            return swarm

        yield make


@pytest.fixture(scope="session")
def reference() -> Reference:
    path = Path(resolve(MODEL).path)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.pad_token = tokenizer.eos_token  # the first 5.x of transformers name none
    return Reference(loaded, tokenizer)
