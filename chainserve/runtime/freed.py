"""Memory that is free again, for others."""

import ctypes


def return_freed_memory() -> None:
    """Give back to the system what was freed in pieces below 32 MB, which glibc keeps; nothing with other libraries."""
    trim = getattr(ctypes.pythonapi, "malloc_trim", None)
    if trim:
        trim(0)
