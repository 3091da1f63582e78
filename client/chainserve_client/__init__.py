"""The client: `Client`, `AsyncClient`, and a transformers model over a swarm."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chainserve_client.blocking import Client
    from chainserve_client.client import AsyncClient
    from chainserve_client.generation import Generation, Piece
    from chainserve_client.model import RemoteModelForCausalLM
    from chainserve_client.parameters import Parameters

__all__ = ["AsyncClient", "Client", "Generation", "Parameters", "Piece", "RemoteModelForCausalLM"]

_HOMES = {
    "AsyncClient": "client",
    "Client": "blocking",
    "Generation": "generation",
    "Parameters": "parameters",
    "Piece": "generation",
    "RemoteModelForCausalLM": "model",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a command's --help does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
