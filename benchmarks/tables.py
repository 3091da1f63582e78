"""docs/benchmarks.md out of the results: python benchmarks/tables.py"""

import json
from pathlib import Path
from typing import Any

from network.report import HEADINGS
from network.report import section as network_section
from sections import (
    admission,
    burst,
    chaos,
    churn,
    decode,
    distance,
    gpu,
    hop,
    planning,
    profiles,
    quantization,
    simulator,
)

PROJECT = Path(__file__).parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
HEADING = """# Measured

Made by `python benchmarks/tables.py` from `benchmarks/results/`; run the commands named to measure again. Absolute
speeds are those of the machine named; the ratios within one run are what counts.
"""


def result(name: str) -> dict[str, Any]:
    """What a benchmark has left."""
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def main() -> None:
    parts = {part.stem: result(f"distance/{part.stem}") for part in (RESULTS / "distance").glob("*.json")}
    sections = [
        HEADING.strip(),
        *(decode.section(result(f"decode_{dtype}")) for dtype in ("float32", "bfloat16")),
        hop.section(result("hop")),
        gpu.section(result("gpu/forward"), result("gpu/decode")),
        distance.section(parts),
        planning.section(result("planning")),
        simulator.section(result("simulator")),
        profiles.section(result("profiles")),
        churn.section(result("churn")),
        admission.section(result("admission")),
        burst.section(result("burst")),
        chaos.section(result("chaos")),
        quantization.section(result("quantization")),
    ]
    network = [name for name in HEADINGS if (RESULTS / "network" / f"{name}.json").exists()]
    sections += [network_section(result(f"network/{name}")) for name in network]
    (PROJECT / "docs" / "benchmarks.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
