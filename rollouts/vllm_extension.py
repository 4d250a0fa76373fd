"""What runs inside of a vLLM server: loading weights from a folder, and the guard of its endpoints.

vLLM imports this module in its own environment (`--worker-extension-cls`, `--middleware`), where nothing of jaxrl is
installed: torch, safetensors and vLLM are all it may use.
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

# What anyone who reaches the port may use when the server has no key. Everything else needs one: the weight and RPC
# endpoints run code in the server.
OPEN_PATHS = ("/health", "/ping", "/version", "/v1/models", "/v1/completions", "/v1/chat/completions", "/metrics")
WITHOUT_KEY = ("/health", "/ping")  # open in a server with a key, too

CHECKED_ROWS = 64  # of each parameter, in the checksums; as in rollouts/weight_files.py


class Guard:
    """ASGI middleware: `Authorization: Bearer KEY` for everything but WITHOUT_KEY; OPEN_PATHS alone where KEY is empty.

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
        """What a client must know to send weights and to read logprobs."""
        config = self.model_runner.vllm_config.model_config
        return {
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode),
            "max_length": config.max_model_len,
            "vocab_size": config.get_vocab_size(),
        }

    def jaxrl_load(self, folder: str) -> dict[str, Any]:
        """Replaces the weights by those of FOLDER/*.safetensors and returns `jaxrl_checksums`.

        Raises ValueError, with the old weights in place, if there are none.
        """
        import torch

        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:  # said before anything is touched: vLLM does not survive a reload that fails
            raise ValueError(f"{folder} holds no safetensors")
        with torch.inference_mode():
            self.model_runner.reload_weights(weights_iterator=_tensors(files))
            repack_linear_layers(self.model_runner.get_model())
        return self.jaxrl_checksums()

    def jaxrl_finish_transfer(self) -> dict[str, Any]:
        """To be called after a transfer that did not come from files; as `jaxrl_load`."""
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

        sums = {}
        for name, parameter in self.model_runner.get_model().named_parameters():
            if parameter.numel():
                rows = parameter.detach()[:CHECKED_ROWS].contiguous().cpu().view(torch.uint8)
                sums[name] = [zlib.crc32(rows.numpy()), list(parameter.shape)]
        rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        return {"rank": rank, "size": size, "parameters": sums}


def _tensors(files: list[Path]) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield name, file.get_tensor(name)


def repack_linear_layers(model: Any) -> None:
    """Makes vLLM's CPU kernels take the weights as they are now.

    They work on a packed copy, made when the model was loaded. Reloading remakes it for the layers that it knows, but
    not for the output head: its logits came from the old weights until this was called. Does nothing on GPUs.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.dim() == 2 and weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
