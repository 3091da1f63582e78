"""What a client in activation mode runs itself: embedding, final norm and head. It takes torch and transformers."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from chainserve.errors import ModelNotFoundError
from chainserve.models.ends import Ends
from chainserve.models.load import load_weights
from chainserve.models.resolve import resolve
from chainserve.models.skeleton import build_skeleton
from chainserve.models.source import ModelSource
from chainserve_client.network import ModelInSwarm


@dataclass(frozen=True, slots=True)
class LocalModel:
    """The ends of a model, without its blocks."""

    source: ModelSource
    tokenizer: Any
    skeleton: PreTrainedModel
    ends: Ends


def load_local_model(name: str, model: ModelInSwarm, *, progress: bool = False) -> LocalModel:
    """Load the ends of `model` from wherever `name` leads on this machine; ModelNotFoundError if that is another."""
    source = resolve(name)
    if source.digest != model.digest:
        raise ModelNotFoundError(f"{name} on this machine is not the model that the swarm serves as {model.name}")
    skeleton = build_skeleton(source.config, None, embed=True, head=True)
    dtype: torch.dtype = getattr(torch, model.dtype)
    load_weights(skeleton, source, dtype=dtype, device=torch.device("cpu"), progress=progress)
    return LocalModel(source, source.tokenizer(), skeleton, Ends(skeleton))
