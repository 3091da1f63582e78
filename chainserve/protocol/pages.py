"""Pages of a prompt, by which servers recognise a prefix that they have computed before."""

import struct
from collections.abc import Sequence
from hashlib import blake2b

PAGE_TOKENS = 16
HASH_BYTES = 16


def page_hashes(model: str, ids: Sequence[int], *, after: bytes = b"") -> tuple[bytes, ...]:
    """Hashes of the full pages of `ids`, each of which covers all tokens before it too.

    `model` is the digest of the model; `after` is the hash of the page before, where `ids` go on from there.
    """
    hashes = []
    last = after or blake2b(model.encode(), digest_size=HASH_BYTES).digest()
    for first in range(0, len(ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        page = struct.pack(f"<{PAGE_TOKENS}I", *ids[first : first + PAGE_TOKENS])
        last = blake2b(last + page, digest_size=HASH_BYTES).digest()
        hashes.append(last)
    return tuple(hashes)
