"""A servers file says what servers there would be, or what is wrong with it."""

from pathlib import Path

import pytest

from chainserve.errors import UsageError
from chainserve.types import PeerId, Span
from chainserve_client import planfile
from chainserve_client.gpus import GPUS
from chainserve_client.planfile import FutureSwarm, read_servers

ALICE = '[servers.alice]\nmemory = "24GB"\nflops = "80 TFLOPS"\nbandwidth = "1 TB/s"\nround_trip = "20 ms"\n'
BOB = '[servers.bob]\nmemory = "8GB"\nprefill = "30 us"\ndecode = "900 us"\noverhead = "2 ms"\nround_trip = "40 ms"\n'


def swarm(text: str, folder: Path, *, half_precision: bool = True) -> FutureSwarm:
    path = folder / "servers.toml"
    path.write_text(text)
    return read_servers(path, half_precision=half_precision)


def test_a_server_is_its_hardware_or_its_measured_times(tmp_path: Path) -> None:
    alice, bob = swarm(ALICE + BOB + 'blocks = "3:7"\n', tmp_path).servers
    assert (alice.peer, alice.memory_bytes, alice.flop_per_s, alice.bytes_per_s) == ("alice", 24e9, 80e12, 1e12)
    assert (alice.prefill_s, alice.decode_s, alice.overhead_s, alice.pinned) == (None, None, 0.001, None)
    assert (bob.prefill_s, bob.decode_s, bob.overhead_s) == pytest.approx((30e-6, 900e-6, 0.002))
    assert (bob.flop_per_s, bob.bytes_per_s, bob.pinned) == (None, None, Span(3, 7))


def test_the_example_in_the_docstring_is_a_servers_file(tmp_path: Path) -> None:
    text = (planfile.__doc__ or "").partition("\n\n")[2]
    alice, bob = swarm(text, tmp_path).servers
    assert bob.pinned == Span(16, 28)
    assert alice.flop_per_s == GPUS["RTX 4090"].teraflops * 1e12


def test_a_gpu_gives_what_is_not_given(tmp_path: Path) -> None:
    text = '[servers.a]\ngpu = "nvidia geforce rtx4090"\nround_trip = "0 ms"\nbandwidth = "800 GB/s"\n'
    (server,) = swarm(text, tmp_path).servers
    assert server.memory_bytes == pytest.approx(0.9 * 24e9)
    assert server.flop_per_s == pytest.approx(165.2e12)
    assert server.bytes_per_s == 800e9
    (with_memory,) = swarm(text + 'memory = "20GB"\n', tmp_path).servers
    assert with_memory.memory_bytes == 20e9


def test_a_gpus_speed_is_for_half_precision(tmp_path: Path) -> None:
    text = '[servers.a]\ngpu = "T4"\nround_trip = "1 ms"\n'
    with pytest.raises(UsageError, match="half precision only: give flops or prefill"):
        swarm(text, tmp_path, half_precision=False)
    (server,) = swarm(text + 'flops = "8 TFLOPS"\n', tmp_path, half_precision=False).servers
    assert server.flop_per_s == 8e12


def test_a_pair_has_the_round_trip_given_for_it_or_the_mean_of_both(tmp_path: Path) -> None:
    apart = swarm(ALICE + BOB, tmp_path)
    assert apart.round_trip_s(*apart.servers) == pytest.approx(0.03)
    near = swarm(ALICE + BOB + '[round_trips]\n"bob alice" = "3 ms"\n', tmp_path)
    assert near.round_trip_s(*near.servers) == pytest.approx(0.003)
    assert near.round_trips_s == {frozenset({PeerId("alice"), PeerId("bob")}): pytest.approx(0.003)}


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "there are no servers: add a table like"),
        ("[servers]\n", "there are no servers"),
        ("servers = 3\n", "servers is 3, not a table"),
        ("[servers]\nalice = 3\n", "servers.alice is 3, not a table"),
        ("[servers.a\n", "is not TOML"),
        ("[model]\n" + ALICE, "the file has model, which means nothing here: known are round_trips, servers"),
        (ALICE + "vram = 24\n", "alice has vram, which means nothing here: known are bandwidth, blocks, decode"),
        (ALICE.replace('"24GB"', "24"), "memory of alice is 24: write it in quotes"),
        (ALICE.replace("24GB", "24"), "memory of alice: '24' is not an amount of memory"),
        (ALICE.replace("24GB", "0GB"), "memory of alice is 0"),
        (ALICE.replace('memory = "24GB"', ""), "alice lacks memory: add it, as in memory = '24GB', or gpu"),
        (ALICE.replace('flops = "80 TFLOPS"', ""), "alice lacks flops: .* or gpu, or prefill"),
        (ALICE.replace('bandwidth = "1 TB/s"', ""), "alice lacks bandwidth: .* or gpu, or decode"),
        (ALICE.replace('round_trip = "20 ms"', ""), "alice lacks round_trip: add it, as in round_trip = '20 ms'$"),
        (ALICE + 'prefill = "1 us"\n', "alice has both prefill and flops"),
        (ALICE + 'decode = "1 us"\n', "alice has both decode and bandwidth"),
        (ALICE + 'gpu = "Voodoo 2"\n', "no GPU 'Voodoo 2' is known: .* RTX 3060, .* V100 32GB"),
        (ALICE + "gpu = 4090\n", "gpu of alice is 4090: write it in quotes"),
        (ALICE + 'blocks = "all"\n', "blocks of alice: not a span of blocks: 'all'"),
        (ALICE + 'blocks = "7:3"\n', "blocks of alice: not a span of blocks: 7:3"),
        (ALICE.replace("alice", '"al ice"'), "not a name for a server: 'al ice'"),
        (ALICE.replace("alice", "a" * 17), "not a name for a server"),
        (ALICE + '[round_trips]\n"alice" = "3 ms"\n', "'alice', which is not two servers"),
        (ALICE + '[round_trips]\n"alice alice" = "3 ms"\n', "'alice alice', which is not two servers"),
        (ALICE + '[round_trips]\n"alice zed" = "3 ms"\n', "'alice zed', but there is no server zed"),
        (ALICE + BOB + '[round_trips]\n"alice bob" = "far"\n', "round_trip of alice bob: 'far' is not a duration"),
        (ALICE + BOB + '[round_trips]\n"alice bob" = "1 ms"\n"bob alice" = "2 ms"\n', "'bob alice' twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(text: str, fact: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=fact) as caught:
        swarm(text, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml cannot be read: No such file"):
        read_servers(tmp_path / "nowhere.toml", half_precision=True)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read_servers(tmp_path / "binary.toml", half_precision=True)


def test_no_known_gpu_is_faster_at_memory_than_at_computing() -> None:
    for name, gpu in GPUS.items():
        assert 12 <= gpu.memory_gb <= 80, name
        assert gpu.teraflops * 1e12 > 10 * gpu.gb_per_s * 1e9, name
