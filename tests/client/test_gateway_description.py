"""What the gateway says of its API: requests made from it, good and bad, find no server error."""

import asyncio

import pytest
import schemathesis
from gateway_in_memory import gateway_over
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from served_in_memory import served

from chainserve.types import Span


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_five_hundred_requests_made_from_the_description_find_no_server_error() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm, gateway_over(swarm) as http:
        assert await asyncio.to_thread(run, str(http._base_url).rstrip("/")) >= 500
    swarm.check_free()


def run(url: str) -> int:
    """How many requests were answered."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    cases = st.one_of(
        operation.ok().as_strategy(generation_mode=mode)
        for operation in schema.get_all_operations()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    )

    @settings(max_examples=500, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def ask(case: schemathesis.Case) -> None:
        nonlocal num_answered
        case.call_and_validate(base_url=url, checks=[checks.not_a_server_error])
        num_answered += 1

    num_answered = 0
    ask()
    return num_answered
