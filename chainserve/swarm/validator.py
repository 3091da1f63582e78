"""What a node of the DHT may store or believe.

Every node refuses records that are not sealed with the swarm's secret by the very peer they stand for, so a
member can spoil no record but its own, and others can spoil none.
"""

import logging
from functools import lru_cache
from typing import Protocol

import msgpack

from chainserve.errors import RecordError
from chainserve.swarm.records import unseal

logger = logging.getLogger(__name__)

MAX_NAMES_LOGGED = 1000

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
    """Lets records of one swarm pass, under its key alone (by shape hivemind's RecordValidatorBase).

    Records that have expired or that we cannot read pass too: hivemind refuses a reply as a whole if it holds one
    record that does not pass.
    """

    def __init__(self, key: bytes, secret: bytes) -> None:
        self.num_refused = 0
        self._key = key
        self._secret = secret
        self._logged: set[object] = set()

    def validate(self, record: StoredRecord) -> bool:
        """Whether this is a record of our swarm, sealed by the peer it stands for."""
        try:
            self._check(record)
        except RecordError as error:
            self.refuse(record.subkey, error)
            return False
        return True

    def sign_value(self, record: StoredRecord) -> bytes:
        """Nothing to add: records are sealed."""
        return record.value

    def strip_value(self, record: StoredRecord) -> bytes:
        """Nothing to remove."""
        return record.value

    def refuse(self, peer: object, error: RecordError) -> None:
        """Count a record, and log it if it is the first of `peer`."""
        self.num_refused += 1
        if peer not in self._logged and len(self._logged) < MAX_NAMES_LOGGED:
            self._logged.add(peer)
            logger.warning("refused a record of %s: %s", peer, error)

    def _check(self, record: StoredRecord) -> None:
        if record.key != self._key:
            raise RecordError("record is not under this swarm's key")
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
