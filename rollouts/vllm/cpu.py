"""vLLM's CPU worker with a fix for seeds with chunked prefill (`--worker-cls`), run in vLLM's environment.

vLLM 0.32 samples a token for each request of a step, even if its prompt is not complete yet. It discards that token and
resets the request's generator by its offset, which torch's generators have only on GPUs: on CPUs the server ends with
"CPU Generator does not use offset". Here such a request has no generator while the token is sampled, so that nothing
must be undone, and its samples are the same as with the whole prompt in one step.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker


class Worker(CPUWorker):
    """The stock worker, with a model runner that does not use generators for discarded samples."""

    def init_device(self) -> None:
        super().init_device()
        keep_generators(self.model_runner)


def keep_generators(runner: Any) -> None:
    """Changes the sampling of this vllm.v1.worker.gpu_model_runner.GPUModelRunner, and of no other object."""
    sample, finish = runner._sample, runner._bookkeeping_sync
    kept: dict[int, Any] = {}  # by row of the batch

    def without_generators(*args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        for row in np.flatnonzero(runner.discard_request_mask.np[: batch.num_reqs]).tolist():
            if row in batch.generators:
                kept[row] = batch.generators.pop(row)
        return sample(*args, **kwargs)

    def with_generators(*args: Any, **kwargs: Any) -> Any:
        try:
            return finish(*args, **kwargs)
        finally:
            runner.input_batch.generators.update(kept)
            kept.clear()

    runner._sample, runner._bookkeeping_sync = without_generators, with_generators
