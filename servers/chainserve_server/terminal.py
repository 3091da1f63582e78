"""What the terminal shows of a server's life."""

from collections.abc import Sequence

from chainserve import __version__
from chainserve.errors import describe_blocks
from chainserve.models.load import LoadReport
from chainserve.runtime.hosts import is_loopback
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import precision
from chainserve.types import PeerId, Span
from chainserve_server.prepare import Prepared


def introduction(
    prepared: Prepared,
    *,
    peer: PeerId,
    swarm: str,
    addresses: Sequence[str],
    host: str,
    has_joined: bool,
    token: str | None,
    metrics: str | None,
) -> str:
    """Once we are in the swarm; `metrics` is where they can be read.

    Without `token` the one of a swarm that we start is in a file.
    """
    name = prepared.source.name
    blocks = f"blocks {prepared.pinned}" if prepared.pinned else "blocks chosen by the swarm"
    lines = [
        f"chainserve-server {__version__} has {'joined' if has_joined else 'started'} swarm {swarm}",
        f"  peer    {peer}",
        f"  links   {', '.join(addresses)}",
        f"  offers  {prepared.memory_bytes / 1e6:,.0f} MB on {prepared.device} for {name}, {blocks}",
    ]
    if metrics is not None:
        lines.append(f"  metrics {metrics}")
    if not has_joined:
        if token is None:
            lines.append("whoever has the token is a member; it is kept in the file that was asked for")
        else:
            lines += ["whoever has this token is a member:", "", token, ""]
        is_local = is_loopback(host)
        option = "" if is_local else "--host ADDRESS "  # of the one that joins, which would be at 127.0.0.1 otherwise
        lines += [
            f"join it:  chainserve-server --model {name} {option}--join TOKEN",
            "ask it:   chainserve chat TOKEN",
        ]
        if is_local:
            lines.append("Only this machine can reach it: start with --host ADDRESS for others to join.")
    return "\n".join(lines)


def online(
    prepared: Prepared, span: Span, report: LoadReport, *, weight_bytes: int, cache_tokens: int, is_wire_int8: bool
) -> str:
    """When all blocks of a span are served."""
    lines = [
        f"chainserve-server {__version__} is online",
        f"  model   {prepared.source.name}, blocks {span} of {prepared.source.num_blocks}, "
        f"{precision(prepared.dtype_name, prepared.quant)} on {prepared.device}",
        f"  memory  {weight_bytes / 1e6:.0f} MB of weights "
        f"({report.bytes_read / 1e6:.0f} MB read in {report.seconds:.1f} s), "
        f"{prepared.profile.activation_bytes / 1e6:.0f} MB for activations, "
        f"cache for {cache_tokens:,} tokens",
    ]
    if is_wire_int8:
        lines.append("  wire    activations are sent on in 8 bits")
    return "\n".join(lines)


def news_of(plan: SwarmPlan, prepared: Prepared, *, peer: PeerId) -> str | None:
    """When a new plan is followed; None: it says nothing of this server that its owner has not said."""
    if plan.shortage is not None:
        return (
            f"waiting for more servers: no room for {describe_blocks(plan.shortage.missing)} of "
            f"{prepared.source.num_blocks}, {plan.shortage.missing_bytes / 1e9:.3g} GB more are needed"
        )
    if prepared.pinned is None:
        span = plan.placement.spans.get(peer)
        return f"plan {plan.epoch}: {f'blocks {span}' if span else 'no blocks for this server'}"
    return None
