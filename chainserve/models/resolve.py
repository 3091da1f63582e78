"""Open the model that a name stands for."""

from chainserve.models.checkpoint import open_folder
from chainserve.models.gguf_file import open_gguf
from chainserve.models.hub import open_hub
from chainserve.models.names import BUNDLED, find_model
from chainserve.models.source import ModelSource


def resolve(name: str) -> ModelSource:
    """The model called `name`, which `find_model` finds; no weights are read yet.

    ModelNotFoundError if there is no such model, UnsupportedModelError or WeightsError if it cannot be used.
    """
    found = find_model(name)
    if isinstance(found, str):
        return open_hub(found)
    if found.is_dir():
        return open_folder(found)
    return open_gguf(found, name=name if name in BUNDLED else None)
