"""The extension of vLLM's workers without what makes its CPU kernels take new weights: a fault to be noticed."""

from __future__ import annotations

from rollouts.vllm import extension as vllm_extension


class WorkerExtension(vllm_extension.WorkerExtension):
    def jaxrl_load(self, folder: str):
        vllm_extension.repack_linear_layers = lambda model: None
        return super().jaxrl_load(folder)
