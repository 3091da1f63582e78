"""The two ends of a model that a client runs itself: token embedding, and final norm with head."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Ends:
    """Embedding and head of a loaded skeleton with `embed` and `head` and without blocks."""

    def __init__(self, model: PreTrainedModel) -> None:
        model.base_model.layers = nn.ModuleList()  # saves walking through as many skips as there are blocks
        self._model = model
        self._embed = model.get_input_embeddings()

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states (n, hidden) of token ids (n,), scaled as the family scales them."""
        hidden: Tensor = self._embed(ids)
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocab) of the last block's outputs (n, hidden), through the family's norm, head and caps."""
        logits: Tensor = self._model(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return logits.squeeze(0)
