"""What a node of the DHT may store or believe.

Every node refuses records that are not sealed with the swarm's secret by the very peer they stand for, so a
member can spoil no record but its own, and others can spoil none.
"""

import logging
from collections.abc import Collection
from functools import lru_cache
from typing import Protocol

import msgpack

from chainserve.errors import RecordError
from chainserve.swarm.records import unseal
from chainserve.types import PeerId

logger = logging.getLogger(__name__)

MAX_NAMES = 1000
MAX_NAME_CHARS = 100
MAX_REASON_CHARS = 200

_unseal_cached = lru_cache(maxsize=1024)(unseal)  # one read brings the same record from many peers


class StoredRecord(Protocol):
    """A record as hivemind hands it over: all but the time in msgpack."""

    @property
    def key(self) -> bytes: ...
    @property
    def subkey(self) -> bytes: ...
    @property
    def value(self) -> bytes: ...
    @property
    def expiration_time(self) -> float: ...


class RecordValidator:
    """Lets records of one swarm pass, under its own keys alone (by shape hivemind's RecordValidatorBase).

    Records that have expired or that we cannot read pass too: hivemind refuses a reply as a whole if it holds one
    record that does not pass.
    """

    def __init__(self, keys: Collection[bytes], secret: bytes) -> None:
        self.num_refused = 0
        self.refused: dict[PeerId, str] = {}
        """Peers in whose name something was offered that is not believed, and why not: of each the last."""
        self._keys = frozenset(keys)
        self._secret = secret

    def validate(self, record: StoredRecord) -> bool:
        """Whether this is a record of our swarm, sealed by the peer it stands for."""
        try:
            self._check(record)
        except RecordError as error:
            self.refuse(_name_of(record.subkey), error)
            return False
        return True

    def sign_value(self, record: StoredRecord) -> bytes:
        """Nothing to add: records are sealed."""
        return record.value

    def strip_value(self, record: StoredRecord) -> bytes:
        """Nothing to remove."""
        return record.value

    def refuse(self, peer: PeerId, error: RecordError) -> None:
        """Count a record and note why it is refused; log it if it is the first of `peer`."""
        self.num_refused += 1
        if peer not in self.refused:
            if len(self.refused) >= MAX_NAMES:
                return
            logger.warning("refused a record of %s: %s", peer, error)
        self.refused[peer] = str(error)[:MAX_REASON_CHARS]

    def _check(self, record: StoredRecord) -> None:
        if record.key not in self._keys:
            raise RecordError("record is not under a key of this swarm")
        try:
            data = msgpack.unpackb(record.value)
        except ValueError as error:
            raise RecordError(f"record is not msgpack: {error}") from None
        if not isinstance(data, bytes):
            raise RecordError("record is not sealed")
        sealed = _unseal_cached(data, self._secret)
        if record.subkey != msgpack.packb(sealed.peer):
            raise RecordError(f"record is sealed by {sealed.peer}")
        if record.expiration_time != sealed.expires_at:
            raise RecordError("record expires at another time than its seal says")


def _name_of(subkey: bytes) -> PeerId:
    """The peer in whose name a record was offered, as far as that can be read."""
    try:
        name = msgpack.unpackb(subkey)
    except (ValueError, TypeError):
        name = None
    if not (isinstance(name, str) and name.isprintable()):
        name = repr(subkey)  # not of what was read: strangers send lists in lists in lists
    return PeerId(name[:MAX_NAME_CHARS])
