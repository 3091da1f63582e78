"""Python's garbage collector in processes that serve for long."""

import gc


def spare_what_is_there() -> None:
    """Let the collector leave alone what is there now. Call when all is imported, and nothing is served yet.

    It looks through everything now and then, in which time nobody gets a token: with torch, transformers and hivemind
    450,000 objects that stay, 0.33 s. With those that have come since the start it was 0.02 s.
    """
    gc.collect()
    gc.freeze()
