"""From logits to the next token, with transformers' own processors."""

import secrets

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from chainserve_client.parameters import Parameters


class Sampler:
    """Chooses tokens as `Parameters` say; one per request, as it holds the random state."""

    def __init__(self, parameters: Parameters) -> None:
        self._greedy = parameters.temperature == 0
        if self._greedy:
            return
        self._warpers = LogitsProcessorList([TemperatureLogitsWarper(float(parameters.temperature))])
        if parameters.top_k:
            self._warpers.append(TopKLogitsWarper(parameters.top_k))
        if parameters.top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(parameters.top_p)))
        self._generator = torch.Generator()
        self._generator.manual_seed(secrets.randbits(63) if parameters.seed is None else parameters.seed)

    def next_token(self, logits: torch.Tensor) -> int:
        """Choose from logits of shape (vocab,)."""
        if self._greedy:
            return int(logits.argmax())
        # The processors want a batch; none of those used here looks at the tokens so far.
        scores = self._warpers(torch.LongTensor(1, 0), logits[None].float().cpu())
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
