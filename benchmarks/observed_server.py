"""A server that writes every forward its engine ran into the folder $OBSERVED: one JSON list per line."""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()

from chainserve_server import cli, server
from chainserve_server.engine import Engine, Observe
from chainserve_server.work import Forward


def main() -> int:
    with (Path(os.environ["OBSERVED"]) / f"{os.getpid()}.jsonl").open("w", buffering=1) as file:

        def observed(*arguments: Any, observe: Observe, **options: Any) -> Engine:
            def write(forward: Forward) -> None:
                file.write(json.dumps(astuple(forward)) + "\n")
                observe(forward)

            return Engine(*arguments, observe=write, **options)

        server.Engine = observed
        return cli.main()


if __name__ == "__main__":
    sys.exit(main())
