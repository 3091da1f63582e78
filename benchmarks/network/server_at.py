"""A server on one of the hosts that were made.

python benchmarks/network/server_at.py --namespace NAME OPTIONS    (options of chainserve-server)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chainserve_server.cli import main
from network.namespaces import enter

NAMESPACE = "--namespace"


def start(arguments: list[str]) -> int:
    """Enter the namespace and be the server; what it starts is there too."""
    at = arguments.index(NAMESPACE)
    enter(arguments[at + 1])
    return main(arguments[:at] + arguments[at + 2 :])


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
