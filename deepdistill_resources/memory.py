"""Memory of this process."""

import ctypes


def give_back_freed_memory() -> None:
    """Return what was freed to the system: glibc keeps what lies below something that is still in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
