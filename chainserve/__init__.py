"""chainserve: peer-to-peer, pipeline-parallel serving of large language models."""

__version__ = "0.1.0"
