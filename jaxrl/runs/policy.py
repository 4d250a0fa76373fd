"""The model of a run: where its parameters come from, on which devices they are, and how its text becomes tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxrl.config import Config, PolicyConfig
from jaxrl.costs.flops import device_peak
from jaxrl.costs.mesh import mesh_sizes
from jaxrl.distributed.processes import Processes, ordered_devices
from jaxrl.errors import UserError
from jaxrl.files import write_beside
from jaxrl.runs.teacher import find_teacher
from jaxrl.runs.tokenizer import keep_tokenizer, load_tokenizer, template_time, train_tokenizer
from jaxrl.tasks import Task
from models.adapters import start_adapters
from models.config import ModelConfig, from_hf
from models.convert import describe_model, find_model, is_run, load_model, save_params
from models.decoder import Compute, Decoder, ForSampling, abstract_decoder, initialize
from models.lora import join_params, split_params
from models.sharding import make_mesh, param_shardings
from models.stored import check_base, fingerprint
from models.tokenizer_files import has_tokenizer, make_portable
from rollouts.jax.programs import on_one_cpu


@dataclass
class Policy:
    """The model that is trained, and how its text becomes tokens.

    The trained parameters are not here: whoever trains or samples with them owns them, so that they are in memory once.
    """

    config: ModelConfig
    graphdef: nnx.GraphDef
    shapes: Any  # of the trained parameters: ShapeDtypeStructs in their shards
    frozen: Any  # the other parameters, which everybody shares; without adapters there are none
    start: Callable[[], Any]  # reads or makes the trained ones, as they are before the first step
    tokenizer: Any
    compute: Compute
    mesh: Mesh
    turns: AbstractContextManager[Any]  # of the threads that run programs on the devices, see `turns_of`

    def initial(self) -> Any:
        """All parameters before the first step; the trained ones are read or made anew, and the caller's."""
        return join_params(self.start(), self.frozen)

    def abstract(self) -> Any:
        """All parameters, the trained ones as shapes: what a checkpoint is restored to."""
        return join_params(self.shapes, self.frozen)


def make_policy(
    config: Config, task: Task, folder: Path, processes: Processes = Processes(), sampling: bool = False
) -> Policy:
    """The policy of config.model.path, or a random one of config.model.shape. Its frozen weights are read here.

    With `sampling` it is not trained: the JAX engine's weights are read as it computes with them, so that they are in
    memory once.
    """
    model, devices = config.model, ordered_devices()
    dtype = jnp.dtype(model.param_dtype)
    kept = folder / "model" if (folder / "model" / "params").is_dir() else None  # by keep_base
    path = kept or model.path
    found = find_model(path) if path else None
    with processes.after_first("tokenizer"):
        tokenizer = make_tokenizer(model, task, folder)
    source, model_config = found or (None, shape_of(model, len(tokenizer)))
    teacher = None if sampling else find_teacher(config, model_config, tokenizer)
    sizes = mesh_sizes(config, model_config, devices, teacher)
    if len(set(processes.exchange("mesh", sizes))) > 1:
        raise UserError("the processes have different config.mesh, or different devices; all must have the same")
    mesh = make_mesh(*sizes, devices=devices)
    compute = make_compute(config, mesh)
    model_config = dataclasses.replace(model_config, lora=None)  # those of a run that it starts from are merged
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    if longest > model_config.max_length:
        raise UserError(
            f"rollout.max_prompt_length + max_new_tokens = {longest} is more than the model's "
            f"{model_config.max_length} positions (max_position_embeddings)"
        )
    if len(tokenizer) > model_config.vocab_size:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens, the model only {model_config.vocab_size}")
    plain = model.lora.adapters() is None and not model.adapter and source is not None
    kept_as = ForSampling(compute.dtype) if sampling and plain and config.rollout.engine == "jax" else dtype
    read = partial(_plain_params, model_config, source, config.seed, mesh, kept_as)
    model_config = dataclasses.replace(model_config, lora=model.lora.adapters())
    graphdef, abstract = abstract_decoder(model_config, mesh, dtype)
    shapes, frozen = split_params(abstract)
    base: dict[str, str] = {}
    if model_config.lora is not None:
        frozen = read()
        base = {"base_fingerprint": fingerprint(frozen)}
        check_base(folder / "model", base["base_fingerprint"], model.path or "the random model")
    with processes.after_first("model"):
        if processes.first:
            origin = source if kept is None else Path(model.path)  # of a hub name, what was fetched of it
            describe_model(model_config, folder / "model", origin if model.path else None, **base)
    plain = read if model_config.lora is None else lambda: frozen
    start = partial(_trained_params, config, model_config, graphdef, plain, mesh)
    return Policy(model_config, graphdef, shapes, frozen, start, tokenizer, compute, mesh, turns_of(config, mesh))


def turns_of(config: Config, mesh: Mesh) -> AbstractContextManager[Any]:
    """A lock where the JAX engine samples ahead, in a thread of its own, on the same several devices; else nothing.

    Two programs with collectives that are started at the same time can reach the devices in different orders, and then
    wait for each other forever.
    """
    ahead = config.rollout.engine == "jax" and (config.rollout.ahead or config.evaluation.beside)
    return RLock() if ahead and len(mesh.local_devices) > 1 else nullcontext()


def _plain_params(model: ModelConfig, source: Path | None, seed: int, mesh: Mesh, dtype: Any) -> Any:
    """The parameters without adapters: read from the folder `source`, or random."""
    return load_model(source, mesh, dtype)[2] if source is not None else random_params(model, seed, mesh, dtype)[1]


def _trained_params(
    config: Config, model: ModelConfig, graphdef: nnx.GraphDef, base: Callable[[], Any], mesh: Mesh
) -> Any:
    """The trained parameters before the first step: `base()`, with config.model.adapter merged, or adapters for it."""
    params, adapter = base(), config.model.adapter
    if model.lora is None and not adapter:
        return params
    plain, key = dataclasses.replace(model, lora=None), jax.random.key(config.seed)
    _, _, params = start_adapters(plain, graphdef, params, model.lora, adapter, key, mesh)
    return split_params(params)[0]


def keep_base(config: Config, policy: Policy, folder: Path) -> None:
    """Saves the frozen parameters of a model with adapters in FOLDER/model/params, once; checkpoints leave them out.

    Not those of a Hugging Face or imported model, which model.json names and which serves all its adapters. Random ones
    may differ on another platform, and another run may continue and change.
    """
    path, kept = config.model.path, folder / "model" / "params"
    if policy.config.lora is not None and not kept.exists() and (not path or is_run(Path(path))):
        save_params(policy.frozen, kept)


def make_compute(config: Config, mesh: Mesh) -> Compute:
    """How the model computes on this mesh by config.model."""
    model, name, on_cpu = config.model, config.model.compute_dtype, mesh.devices.flat[0].platform == "cpu"
    if name == "auto":
        name = "float32" if on_cpu else "bfloat16"
    elif name == "float32" and not on_cpu:  # and not what accelerators make of it: TF32, or parts in bf16
        jax.config.update("jax_default_matmul_precision", "highest")
    # XLA on one CPU converts all layers' bf16 activations to f32 and back whenever a scan stores those of one.
    unroll = model.unroll_layers or (name == "bfloat16" and on_one_cpu(mesh))
    return Compute(jnp.dtype(name), model.remat, unroll, mesh, model.attention)


def random_params(config: ModelConfig, seed: int, mesh: Mesh, dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """A decoder with random weights, made in its shards."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype)))
    make = lambda key: nnx.state(initialize(Decoder(config, dtype), key))  # noqa: E731
    return graphdef, jax.jit(make, out_shardings=param_shardings(abstract, mesh))(jax.random.key(seed))


def shape_of(model: PolicyConfig, tokens: int) -> ModelConfig:
    """The architecture of config.model.shape, whose vocabulary has `tokens` tokens where it sets none."""
    fields = dataclasses.asdict(model.shape)
    fields["vocab_size"] = fields["vocab_size"] or -(-tokens // 16) * 16
    fields["head_dim"] = fields["head_dim"] or fields["hidden_size"] // fields["num_attention_heads"]
    fields["sliding_window"] = None  # Mistral's default is another
    return from_hf(fields, "config.model.shape")


def make_tokenizer(model: PolicyConfig, task: Task, folder: Path) -> Any:
    """The run's own copy if it has one, else the configured one, else one trained on the task's text."""
    kept = folder / "model" / "tokenizer"
    if not has_tokenizer(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        if model.tokenizer or model.path:
            keep_tokenizer(model.tokenizer or model.path, model.path, kept)
        elif task.corpus is None:
            raise UserError(f"task {task.name} has no text to train a tokenizer on; set config.model.tokenizer")
        else:
            train_tokenizer(task.corpus(), model.tokenizer_size, model.tokenizer_digits).save_pretrained(kept)
            make_portable(kept)
    tokenizer: Any = load_tokenizer(str(kept))
    if "strftime_now" in str(tokenizer.chat_template):
        tokenizer.now = template_time(folder)
    return tokenizer


def describe_devices(folder: Path, policy: Policy, processes: Processes) -> dict[str, Any]:
    """Kind and number of the devices, and the operations a second that one of them could do at best.

    From FOLDER/devices.json where that is about the same devices, because a peak that is measured is another one each
    time, and log and report must have the same; else written there.
    """
    path, devices = folder / "devices.json", list(policy.mesh.devices.flat)
    found = {"kind": devices[0].device_kind, "count": len(devices), "dtype": policy.compute.dtype.name}
    with processes.after_first("devices"):
        if processes.first:
            kept = json.loads(path.read_text()) if path.is_file() else {}
            if {name: kept.get(name) for name in found} != found:
                peak, source = device_peak(devices[0], policy.compute.dtype)
                write_beside(path, json.dumps(found | {"peak_flops": peak, "peak": source}) + "\n")
    return json.loads(path.read_text())
