"""Keys: who is let in, and how often."""

from pathlib import Path

import pytest

from chainserve.errors import UsageError
from chainserve_client.gateway.errors import ApiError
from chainserve_client.gateway.keys import Keys, new_key, read_keys


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def keys_of(tmp_path: Path, limits: str, clock: Clock) -> tuple[str, Keys]:
    key, table = new_key("alice")
    path = tmp_path / "keys.toml"
    path.write_text(table + limits + new_key("bob")[1])
    assert key not in path.read_text()
    return key, Keys(read_keys(path), clock=clock)


def refused(keys: Keys, authorization: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught, keys.admit(authorization):
        pass
    return caught.value


def test_only_a_key_of_the_file_is_let_in(tmp_path: Path) -> None:
    key, keys = keys_of(tmp_path, "", Clock())
    for _ in range(1000):
        with keys.admit(f"Bearer {key}") as name:
            assert name == "alice"
    for wrong in (None, "", key, "Bearer", "Bearer ", f"Basic {key}", f"Bearer {key}x", "Bearer \udcff"):
        assert (refused(keys, wrong).status, refused(keys, wrong).code) == (401, "invalid_api_key")


def test_requests_per_minute_come_back_evenly(tmp_path: Path) -> None:
    clock = Clock()
    key, keys = keys_of(tmp_path, "requests_per_minute = 3\n", clock)
    for _ in range(3):
        with keys.admit(f"Bearer {key}"):
            pass
    error = refused(keys, f"Bearer {key}")
    assert (error.status, error.headers) == (429, {"Retry-After": "20"})
    clock.now_s = 20.0
    with keys.admit(f"Bearer {key}"):
        pass
    assert refused(keys, f"Bearer {key}").status == 429


def test_requests_at_once_are_counted_until_they_end(tmp_path: Path) -> None:
    key, keys = keys_of(tmp_path, "concurrent_requests = 1\n", Clock())
    with keys.admit(f"Bearer {key}"):
        assert refused(keys, f"Bearer {key}").status == 429
    with pytest.raises(RuntimeError), keys.admit(f"Bearer {key}"):
        raise RuntimeError
    with keys.admit(f"Bearer {key}"):
        pass


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "holds no keys"),
        ("x = ", "cannot read keys"),
        ("x = 1", "needs sha256"),
        ("[alice]\nsha256 = 'sk-abc'", "needs sha256"),
        (f"[alice]\nsha256 = '{'a' * 64}'\nper_minute = 1", "knows no per_minute"),
        (f"[alice]\nsha256 = '{'a' * 64}'\nconcurrent_requests = 0", "at least 1"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_reason(text: str, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=fact):
        read_keys(path)
    with pytest.raises(UsageError, match="cannot read keys"):
        read_keys(tmp_path / "none")
