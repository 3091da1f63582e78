"""What a client without a model finds out about a swarm, and asks it, to be run where nothing heavy can be imported."""

import json
import sys

from chainserve_client.client import AsyncClient


async def main(token: str) -> None:
    """Print it as JSON."""
    async with await AsyncClient.connect(token) as client:
        servers = client.network.swarm.view.models()[client.model.digest]
        prompt = client.encode_chat([{"role": "user", "content": "Why is the sky blue?"}])
        plan = await client.plan()
        answer = await client.generate(prompt, max_new_tokens=16)
        kinds = [client.network.links.kind(server.peer) for server in servers]
    found = {
        "servers": sorted(server.peer for server in servers),
        "kinds": [kind for kind in kinds if kind],
        "prompt": prompt,
        "planned": sorted(plan.placement.spans) if plan else [],
        "answer": answer.tokens,
    }
    json.dump(found, sys.stdout)
