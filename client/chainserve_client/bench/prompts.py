"""Prompts of a length that is asked for, every one different, so that no server has computed its beginning before."""

import random
from collections.abc import Sequence

TEXT = """\
river old mill sea ship wind rain stone road house light night year people water hand place name work line world school
tree city farm story eye thought door winter bird paper music horse color face wood point table north morning field fire
south ground king town unit figure star box noun food state plan"""
WORDS = TEXT.split()


def token_prompt(
    index: int, num_tokens: int, *, seed: int, vocabulary: Sequence[int], num_shared: int = 0
) -> list[int]:
    """Exactly so many tokens, drawn from a vocabulary; the first `num_shared` are those of all requests."""
    shared = random.Random(f"{seed} shared").choices(vocabulary, k=min(num_shared, num_tokens))
    own = random.Random(f"{seed} {index}").choices(vocabulary, k=num_tokens - len(shared))
    return [*shared, *own]


def word_prompt(index: int, num_words: int, *, seed: int, num_shared: int = 0) -> str:
    """So many words, each of which is about a token, after the number of the request; it comes after what is shared."""
    shared = random.Random(f"{seed} shared").choices(WORDS, k=min(num_shared, num_words))
    own = random.Random(f"{seed} {index}").choices(WORDS, k=num_words - len(shared))
    return " ".join([*shared, f"{index}.", *own])
