"""The ends of a model: token embedding, and final norm with head. A client has both, a server those of its blocks."""

from collections.abc import Iterable
from enum import StrEnum
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from chainserve.models.linear import pack, speed_up
from chainserve.models.skeleton import build_skeleton, final_norm
from chainserve.types import Span


class End(StrEnum):
    """One end of a model."""

    EMBEDDING = "embedding"
    HEAD = "head"


def ends_of(span: Span, num_blocks: int) -> list[End]:
    """The ends that come with these blocks: the embedding with the first, norm and head with the last."""
    return [end for end, is_there in ((End.EMBEDDING, span.start == 0), (End.HEAD, span.end == num_blocks)) if is_there]


def end_skeleton(config: PretrainedConfig, end: End, *, beside: Iterable["Ends"] = ()) -> PreTrainedModel:
    """A skeleton of one end, for the loader to fill but for weights that it shares with one that is loaded already.

    Of weights that are in an order of their own it has a copy: that end has to be made again, beside this one.
    """
    model = build_skeleton(config, None, embed=end is End.EMBEDDING, head=end is End.HEAD)
    lacks = dict(model.named_parameters())
    for target, source in model.all_tied_weights_keys.items():
        for other in (other for ends in beside for other in ends.models):
            has = dict(other.named_parameters())
            for name, twin in ((target, source), (source, target)):
                if name in lacks and twin in has:
                    path, _, leaf = name.rpartition(".")
                    weights = has[twin].data
                    shared = nn.Parameter(weights.to_dense() if weights.is_mkldnn else weights, requires_grad=False)
                    setattr(model.get_submodule(path), leaf, shared)
    return model


class Ends:
    """Those ends that are here; asking for another one is a mistake of the caller."""

    def __init__(self, *models: PreTrainedModel, beside: Iterable["Ends"] = ()) -> None:
        """`models`: loaded skeletons without blocks, each with `embed`, `head` or both.

        A head that shares its weights neither among them nor with one `beside` has them in the order that is fastest.
        """
        self.models = models
        self._embedding: nn.Module | None = None
        self._head: _Head | None = None
        for model in models:
            model.base_model.layers = nn.ModuleList()  # saves walking through as many skips as there are blocks
            if model.get_input_embeddings() is not None:
                self._embedding = model.get_input_embeddings()
        embeddings = [ends._embedding for ends in (self, *beside) if ends._embedding is not None]
        for model in models:
            if (project := model.get_output_embeddings()) is not None:
                is_shared = any(_share(project, embedding) for embedding in embeddings)
                self._head = _Head(model, is_shared=is_shared)

    @classmethod
    def joined(cls, parts: Iterable["Ends"]) -> "Ends":
        """All of these ends, which may be in use meanwhile: nothing of them is looked at again."""
        both = cls()
        for part in parts:
            both.models += part.models
            both._embedding = both._embedding if part._embedding is None else part._embedding
            both._head = part._head or both._head
        return both

    @property
    def has_embedding(self) -> bool:
        return self._embedding is not None

    @property
    def has_head(self) -> bool:
        return self._head is not None

    @property
    def is_packed(self) -> bool:
        """Whether the head's weights are in an order of its own, in which nobody can share them."""
        return any(weights.is_mkldnn for model in self.models for weights in model.parameters())

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states (n, hidden) of token ids (n,), wherever these are, scaled as the family scales them."""
        assert self._embedding is not None, "the first block is not here"
        hidden: Tensor = self._embedding(ids.to(cast(Tensor, self._embedding.weight).device))
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocab) of the last block's outputs (n, hidden), through the family's norm, head and caps."""
        assert self._head is not None, "the last block is not here"
        return self._head(hidden)


class _Head:
    """Norm and head by themselves where the family does no more than these; else the family's own forward.

    That prepares masks and rotary embeddings for blocks that are not there, which takes as long as the head of a small
    model on a GPU.
    """

    def __init__(self, model: PreTrainedModel, *, is_shared: bool) -> None:
        self._model = model
        self._norm = model.base_model.get_submodule(final_norm(model.base_model))
        self._project = model.get_output_embeddings()
        (speed_up if is_shared else pack)(self._project)
        self._is_plain = self._does_no_more()

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._is_plain:
            logits: Tensor = self._project(self._norm(hidden))
            return logits
        return self._whole(hidden)

    def _whole(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return logits.squeeze(0)

    @torch.no_grad()
    def _does_no_more(self) -> bool:
        """Whether the family hands the head just what the norm gives, and returns just what the head gives."""
        like = next(self._norm.parameters())
        row = torch.linspace(-2, 2, self._model.config.hidden_size, dtype=like.dtype, device=like.device).unsqueeze(0)
        probe = _Probe()
        self._model.set_output_embeddings(probe)
        try:
            returned = self._whole(row)
        finally:
            self._model.set_output_embeddings(self._project)
        return _are_same(probe.taken, self._norm(row)) and _are_same(returned, probe.given)


class _Probe(nn.Module):
    """Stands where the head is, and notes what it takes and gives: numbers that no cap or scale leaves alone."""

    taken: Tensor
    given: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        self.taken, self.given = hidden.flatten(0, 1), torch.linspace(-1000, 1000, 7).to(hidden).unsqueeze(0)
        return self.given.unsqueeze(0)


def _share(project: nn.Module, embedding: nn.Module) -> bool:
    """Whether head and embedding have the same weights, in one place."""
    return cast(Tensor, project.weight).data_ptr() == cast(Tensor, embedding.weight).data_ptr()


def _are_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
