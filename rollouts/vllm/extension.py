"""Code that runs inside a vLLM server: loading weights from a folder, and the guard of its endpoints.

vLLM imports this module in its own environment (`--worker-extension-cls`, `--middleware`), where jaxrl is not
installed: it may use only torch, safetensors and vLLM.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import hmac
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEY_VARIABLE = "JAXRL_SIDECAR_KEY"

# What anyone who reaches the port may use if the server has no key. Everything else needs one, because the endpoints
# for weights and RPC run code in the server.
OPEN_PATHS = ("/health", "/ping", "/version", "/v1/models", "/v1/completions", "/v1/chat/completions", "/metrics")
WITHOUT_KEY = ("/health", "/ping")  # open even if the server has a key

CHECKED_ROWS = 64  # of each parameter, in the checksums; as in rollouts/vllm/weight_files.py


class Guard:
    """ASGI middleware: everything except WITHOUT_KEY needs `Authorization: Bearer KEY`; without KEY, only OPEN_PATHS.

    The key comes from the environment variable JAXRL_SIDECAR_KEY.
    """

    def __init__(self, app: Any):
        self.app, self.key = app, os.environ.get(KEY_VARIABLE, "")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._allowed(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            why = "the key is missing or wrong" if self.key else f"this endpoint needs a server with {KEY_VARIABLE}"
            body = json.dumps({"error": why}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _allowed(self, scope: dict[str, Any]) -> bool:
        path = scope["path"]
        if not self.key:
            return scope["type"] == "http" and path in OPEN_PATHS
        given = dict(scope["headers"]).get(b"authorization", b"")
        return path in WITHOUT_KEY or hmac.compare_digest(given, f"Bearer {self.key}".encode())


class WorkerExtension:
    """Methods of every worker of the server, called by /collective_rpc."""

    model_runner: Any  # the worker's own

    def jaxrl_describe(self) -> dict[str, Any]:
        """What a client needs to know to send weights and to read logprobs."""
        config = self.model_runner.vllm_config.model_config
        return {
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode),
            "max_length": config.max_model_len,
            "vocab_size": config.get_vocab_size(),
            "lora_rank": getattr(self.model_runner.vllm_config.lora_config, "max_lora_rank", 0),
        }

    def jaxrl_base(self) -> str:
        """The label of the base that `jaxrl_load` got last; "" if it was for whole weights, or no adapters followed."""
        manager = getattr(self.model_runner, "lora_manager", None)
        ready = manager is not None and len(manager.list_adapters()) == 1
        return getattr(self, "jaxrl_base_label", "") if ready else ""

    def jaxrl_load(self, folder: str, base: str = "") -> dict[str, Any]:
        """Replaces the weights by those of FOLDER/*.safetensors and returns `jaxrl_checksums`.

        Args:
            base: a label for them, if adapters for them will follow. vLLM forgets the adapters it has.

        Raises ValueError, and keeps the old weights, if the folder holds none.
        """
        import torch

        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:  # checked first: vLLM does not survive a failed reload
            raise ValueError(f"{folder} does not contain safetensors")
        self.jaxrl_base_label = ""
        with torch.inference_mode():
            self.model_runner.reload_weights(weights_iterator=_tensors(files))
            repack_linear_layers(self.model_runner.get_model())
        self.jaxrl_base_label = base
        return self.jaxrl_checksums()

    def jaxrl_load_adapters(self, folder: str) -> dict[str, list[list[int | None]]]:
        """Replaces the loaded adapters by those in a PEFT folder, under the same id, so that running requests use them.

        For each module of the adapters as vLLM holds them, CRC-32 of each A and each B; None where a joined module has
        no adapter for a part. Raises RuntimeError if the server does not have exactly one set of adapters.
        """
        import torch
        from vllm.lora.request import LoRARequest

        manager = self.model_runner.lora_manager
        ids = manager.list_adapters()
        if len(ids) != 1:
            raise RuntimeError(f"the server has {len(ids)} sets of adapters instead of one")
        (number,) = ids
        with torch.inference_mode():
            manager.add_adapter(LoRARequest("adapters", number, folder, load_inplace=True))
        held = manager._adapter_manager.get_adapter(number).loras
        return {name: [_checksums(layer.lora_a), _checksums(layer.lora_b)] for name, layer in held.items()}

    def jaxrl_finish_transfer(self) -> dict[str, Any]:
        """Finishes a transfer that did not come from files; returns what `jaxrl_load` does."""
        import torch

        with torch.inference_mode():
            repack_linear_layers(self.model_runner.get_model())
        return self.jaxrl_checksums()

    def jaxrl_checksums(self) -> dict[str, Any]:
        """CRC-32 of the bytes of the first CHECKED_ROWS rows of each parameter, as this worker holds it.

        {"rank", "size": its place in the tensor-parallel group, "parameters": {name: [crc, shape]}}. A parameter that
        the platform keeps in a packed form only is left out.
        """
        import torch
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        sums, dtype = {}, self.model_runner.vllm_config.model_config.dtype
        for name, parameter in self.model_runner.get_model().named_parameters():
            if parameter.numel():
                # Some CPU kernels keep a bf16 bias in f32; its numbers are the same.
                rows = parameter.detach()[:CHECKED_ROWS].to(dtype).contiguous().cpu().view(torch.uint8)
                # A layer that can have adapters is wrapped.
                sums[name.replace(".base_layer.", ".")] = [zlib.crc32(rows.numpy()), list(parameter.shape)]
        rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        return {"rank": rank, "size": size, "parameters": sums}


def _checksums(tensors: Any) -> list[int | None]:
    """CRC-32 of the bytes of one tensor, or of each in a list; None for None."""
    import torch

    parts = tensors if isinstance(tensors, (list, tuple)) else [tensors]
    return [None if t is None else zlib.crc32(t.contiguous().cpu().view(torch.uint8).numpy()) for t in parts]


def _tensors(files: list[Path]) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                yield name, file.get_tensor(name)


def repack_linear_layers(model: Any) -> None:
    """Repacks the weights for vLLM's CPU kernels, which work on a packed copy; does nothing on GPUs.

    The copy is made when the model is loaded. Reloading repeats that for the layers that it knows, but not for the
    output head, whose logits would come from the old weights.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.dim() == 2 and weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
