"""Whether a model can be had here. Takes what a server takes."""

from collections.abc import Iterator

from chainserve.errors import UsageError
from chainserve_client.doctor.finding import Finding, failed, ok
from chainserve_client.doctor.machine import disk
from chainserve_client.units import format_bytes


def model(name: str) -> Iterator[Finding]:
    """Read its config and the headers of its weights, and see whether the disk has room for it."""
    from chainserve.models.resolve import resolve
    from chainserve.models.support import check_supported

    try:
        source = resolve(name)
        check_supported(source.config)
    except UsageError as error:
        fact, _, advice = str(error).partition(": ")
        yield failed("model", fact, advice or "choose another model: README.md says which ones run")
        return
    num_bytes = sum(tensor.nbytes for tensor in source.tensors.values())
    yield ok("model", f"{source.name}: {source.num_blocks} blocks, {format_bytes(num_bytes)}")
    yield disk(needed_bytes=num_bytes)
