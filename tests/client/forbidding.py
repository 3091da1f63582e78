"""Python in which heavy packages cannot be imported: forbidding.py MODULE ... [-- ARGUMENT ...]

It imports the modules; the last one's `main`, if it has one, is awaited with the arguments.
"""

import asyncio
import importlib
import sys
from collections.abc import Sequence

HEAVY = ("torch", "hivemind", "transformers", "numpy", "safetensors", "accelerate")


class Forbid:
    """A finder that finds none of them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{name} is forbidden here", name=name)


def main(modules: Sequence[str], arguments: Sequence[str]) -> None:
    sys.meta_path.insert(0, Forbid())  # type: ignore[arg-type]
    for name in modules:
        module = importlib.import_module(name)
    if arguments:
        asyncio.run(module.main(*arguments))
    found = sorted(set(HEAVY) & {name.partition(".")[0] for name in sys.modules})
    if found:
        sys.exit(f"imported {', '.join(found)}")


if __name__ == "__main__":
    before, _, after = " ".join(sys.argv[1:]).partition(" -- ")
    main(before.split(), after.split())
