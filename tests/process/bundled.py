"""The bundled model, questions for it, and what it says when run in one piece."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from chainserve_server.local import LocalSwarm

MODEL = "smollm2-135m"
NEW_TOKENS = 64
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "List three uses for a paperclip.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "What is 17 plus 25?",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "Describe a rainy day in the city.",
    "What does a compiler do?",
    "Name the planets of the solar system.",
    "Write a Python function that reverses a list.",
    "How do vaccines work?",
    "Tell me a story about a lost dog.",
    "What is the difference between a frog and a toad?",
    "Summarize the plot of Cinderella in two sentences.",
    "How can I sleep better at night?",
    "What are the primary colours, and why are they called that?",
    "Write a short letter to a friend who has moved to another country and tell them what happened since.",
)

MakeSwarm = Callable[..., LocalSwarm]


@dataclass(frozen=True)
class Reference:
    """The model run in one piece by transformers, in float32."""

    model: Any
    tokenizer: Any

    def prompt(self, question: str) -> list[int]:
        messages = [{"role": "user", "content": question}]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def greedy(self, prompt: list[int], num_tokens: int) -> tuple[int, ...]:
        ids = torch.tensor([prompt])
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
        )
        return tuple(output[0, len(prompt) :].tolist())

    def is_greedy(self, prompt: list[int], tokens: tuple[int, ...], num_tokens: int) -> bool:
        """Whether `greedy` would give these tokens: each is the likeliest after those before it, up to the end.

        Takes one forward of all tokens, which is many times as quick as one for each.
        """
        *others, last = (token == self.model.generation_config.eos_token_id for token in tokens)
        if any(others) or not (last or len(tokens) == num_tokens):
            return False
        return self.likeliest(prompt, tokens) == tokens

    def likeliest(self, prompt: list[int], tokens: tuple[int, ...]) -> tuple[int, ...]:
        """For each of these tokens the likeliest one after those before it."""
        ids = torch.tensor([[*prompt, *tokens[:-1]]])
        with torch.inference_mode():
            logits = self.model(ids, logits_to_keep=len(tokens)).logits
        return tuple(logits[0].argmax(-1).tolist())
