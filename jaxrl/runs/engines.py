"""The sampler of a run: the JAX engine, vLLM, or another server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrl.config import Config
from jaxrl.config.plugins import PLUGINS, built_in
from jaxrl.config.rollout import SidecarConfig
from jaxrl.distributed.processes import Processes, local_mesh
from jaxrl.errors import UserError
from jaxrl.runs.environments import has_turns
from jaxrl.runs.policy import Policy
from models.convert import describe_hf
from rollouts.engine import Engine
from rollouts.jax.engine import JaxEngine
from rollouts.jax.programs import sampling_compute
from rollouts.openai import OpenAIEngine
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.extension import KEY_VARIABLE
from rollouts.vllm.sidecar import LORA_RANKS, Sidecar, SidecarSettings, new_key


def make_engine(
    config: Config,
    policy: Policy,
    folder: Path,
    processes: Processes = Processes(),
    say: Callable[[str], None] = print,
) -> Engine:
    """The sampler of config.rollout, for this process's part of the episodes.

    It has no weights before its first `load_weights`. `say` gets a line for whatever fails and is put right.
    Raises UserError for a wrong setting, SidecarError when vLLM cannot be had.
    """
    rollout = config.rollout
    max_length = rollout.max_prompt_length + rollout.max_new_tokens
    if rollout.engine == "vllm":
        return _make_vllm_engine(config, policy, folder, processes, max_length, say)
    if rollout.engine != "jax":
        raise UserError(f"rollout.engine = {rollout.engine!r} must be one of: jax, vllm (or openai, to evaluate)")
    return JaxEngine(
        policy.graphdef,
        policy.abstract(),
        slots=rollout.slots,
        max_length=max_length,
        max_new_tokens=rollout.max_new_tokens,
        dtype=policy.compute.dtype,
        unroll=sampling_compute(policy.compute).unroll,
        mesh=policy.mesh if processes.count == 1 else local_mesh(policy.mesh),
        tokenizer=policy.tokenizer,
        turns=policy.turns,
    )


def _make_vllm_engine(
    config: Config,
    policy: Policy,
    folder: Path,
    processes: Processes,
    max_length: int,
    say: Callable[[str], None],
) -> VllmEngine:
    """A client of running servers, or of its own, which start without weights and log to FOLDER/sidecar.

    Of several processes each has its own servers: those that it starts, or every count-th of the addresses.
    """
    rollout, s = config.rollout, config.rollout.sidecar
    key, sidecar = os.environ.get(KEY_VARIABLE, ""), None
    logs = folder / "sidecar" if processes.count == 1 else folder / "sidecar" / f"process_{processes.index}"
    if 0 < len(s.addresses) < processes.count:
        raise UserError(
            f"rollout.sidecar.addresses has {len(s.addresses)} servers for {processes.count} processes; each process "
            "needs one of its own, or none is given and each starts its own"
        )
    if not s.addresses:
        key = key or new_key()
        model = logs / "model"
        describe_hf(policy.config, model, folder / "model")
        settings = SidecarSettings(
            model=model,
            python=Path(s.environment) / "bin/python",
            replicas=s.replicas,
            tensor_parallel=s.tensor_parallel,
            devices=s.devices,
            dtype=policy.compute.dtype.name if s.dtype == "auto" else s.dtype,
            max_length=max_length,
            max_sequences=s.concurrency,
            dummy_weights=True,
            lora_rank=_room_for_adapters(policy, s),
            tokenizer=bool(rollout.stop_strings)
            or has_turns(config)
            or config.task.name not in built_in(PLUGINS["task"]),  # for stop strings
            arguments=s.arguments,
            start_timeout_s=s.start_timeout_s,
            key=key,
        )
        sidecar = Sidecar(settings, logs)
    client = ClientSettings(
        key, s.sync, s.lora, Path(s.sync_folder), s.in_flight, s.concurrency, s.request_timeout_s, s.wait_s
    )
    own = s.addresses[processes.index :: processes.count]
    return VllmEngine(policy.config, addresses=own, sidecar=sidecar, max_length=max_length, settings=client, say=say)


def _room_for_adapters(policy: Policy, s: SidecarConfig) -> int:
    """The rank for which an owned server makes room; 0 where adapters are sent merged."""
    lora = policy.config.lora
    alone = lora is not None and s.lora == "adapters" and s.sync == "files" and lora.rank <= LORA_RANKS[-1]
    return lora.rank if lora is not None and alone else 0


def make_openai_engine(config: Config, tokenizer: Any) -> OpenAIEngine:
    """A client of the server at rollout.sidecar.addresses. Raises UserError when it is not given."""
    rollout, s = config.rollout, config.rollout.sidecar
    if len(s.addresses) != 1 or not s.model:
        raise UserError("rollout.engine = 'openai' needs one of rollout.sidecar.addresses, and rollout.sidecar.model")
    return OpenAIEngine(
        s.addresses[0],
        s.model,
        tokenizer,
        key=os.environ.get("OPENAI_API_KEY", ""),
        max_length=rollout.max_prompt_length + rollout.max_new_tokens,
        concurrency=s.concurrency,
        timeout_s=s.request_timeout_s,
    )
