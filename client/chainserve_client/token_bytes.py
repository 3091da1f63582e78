"""The bytes that each token stands for: text cannot show those of a token that is part of a character."""

import re
from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer

BytesOf = Callable[[int], bytes]

SPACE = "\u2581"
"""How vocabularies that are not byte-level write a space."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def bytes_of_tokens(tokenizer: Tokenizer) -> BytesOf:
    """Bytes by token id, empty for ids that there are not."""
    decoder = "" if tokenizer.decoder is None else tokenizer.decoder.__getstate__().decode()
    special = {token: added.content.encode() for token, added in tokenizer.get_added_tokens_decoder().items()}
    is_byte_level, marks_spaces = '"ByteLevel"' in decoder, SPACE in decoder

    def bytes_of(token: int) -> bytes:
        if token in special:
            return special[token]
        piece = tokenizer.id_to_token(token) or ""
        if is_byte_level:
            alphabet = byte_alphabet()
            return b"".join(alphabet.get(character) or character.encode() for character in piece)
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return (piece.replace(SPACE, " ") if marks_spaces else tokenizer.decode([token])).encode()

    return bytes_of


@cache
def byte_alphabet() -> dict[str, bytes]:
    """The characters by which byte-level vocabularies write bytes (Radford et al. 2019): printable ones stand for
    themselves, the others for those from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = dict(zip(printable, printable, strict=True)) | {byte: 256 + n for n, byte in enumerate(others)}
    return {chr(code): bytes([byte]) for byte, code in codes.items()}
