"""Settings of the whole process: the compilation cache, quiet, and on CPU a heap for large arrays."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

LIBC: Any = ctypes.CDLL(None)
LONG_COMPILATION = 2.0  # seconds


def prepare_process(cache: Path = Path("~/.cache/jaxrl/xla")) -> None:
    """Process-wide settings: the persistent compilation cache, quiet, and on CPU a heap for large arrays.

    Where JAX_COMPILATION_CACHE_DIR names a cache, JAX uses that one. A user without a home folder has none.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with suppress(RuntimeError):
            jax.config.update("jax_compilation_cache_dir", str(cache.expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of a file that it does not need
    if hasattr(LIBC, "mallopt"):
        LIBC.mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads, before JAX starts its own
        if jax.default_backend() == "cpu":
            _prepare_heap()
            _return_memory_of_compiler()


@functools.cache  # once for a process
def _return_memory_of_compiler() -> None:
    """Long compilations end with their memory given back: gigabytes for a model with unrolled layers."""

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and duration_secs > LONG_COMPILATION:
            LIBC.malloc_trim(ctypes.c_size_t(0))
            _prepare_heap()

    jax.monitoring.register_event_duration_secs_listener(compiled)


def _prepare_heap() -> None:
    """A heap that keeps what is freed, on huge pages where Linux gives them on request.

    XLA on CPU takes the temporary memory of each call from malloc, which maps large blocks afresh and gives them
    back at once: page faults were a sixth of the time of a small training step. A heap without mmap keeps them.
    With pages of 4 KiB, looking up addresses was another tenth to sixth of training and decoding: the heap is
    extended once, without being touched, and what is later allocated there comes in pages of 2 MiB.
    """
    for parameter, value in ((-4, 0), (-1, -1)):  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
        LIBC.mallopt(parameter, value)
    page, madv_hugepage = 2**21, 14  # Linux's mman.h
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    LIBC.malloc.restype = ctypes.c_void_p
    heap = LIBC.malloc(ctypes.c_size_t(size))
    if heap is not None:
        start = -(-heap // page) * page
        LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(heap + size - start), madv_hugepage)
        LIBC.free(ctypes.c_void_p(heap))
