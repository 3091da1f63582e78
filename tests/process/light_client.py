"""What a client without a model finds out about a swarm, to be run where nothing heavy can be imported."""

import json
import sys

from chainserve_client.join import join
from chainserve_client.network import ModelInSwarm
from chainserve_client.text_model import fetch_text_model


async def main(token: str) -> None:
    """Print it as JSON."""
    network = await join(token)
    ((digest, servers),) = network.swarm.view.models().items()
    text = await fetch_text_model(network, ModelInSwarm(servers[0].model, digest, servers[0].num_blocks, "float32"))
    plan = await network.plan(digest)
    found = {
        "servers": sorted(server.peer for server in servers),
        "kinds": [network.links.kind(server.peer) for server in servers if network.links.kind(server.peer)],
        "prompt": text.encode_chat([{"role": "user", "content": "Why is the sky blue?"}]),
        "planned": sorted(plan.placement.spans) if plan else [],
    }
    await network.close()
    json.dump(found, sys.stdout)
