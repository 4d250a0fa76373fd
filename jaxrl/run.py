"""A run's folder and its parts: everything that training needs before its first step."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import logging
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxrl.auto_mesh import mesh_sizes
from jaxrl.command_line import UserError
from jaxrl.config import Config, PolicyConfig, RolloutConfig, row_length
from jaxrl.files import write_beside
from jaxrl.processes import Processes, local_mesh, ordered_devices
from jaxrl.tasks import Task, load_task
from jaxrl.tokenizer import load_tokenizer, train_tokenizer
from models.adapters import start_adapters
from models.config import ModelConfig, from_hf
from models.convert import describe_hf, describe_model, find_model, is_run, load_model, save_params
from models.decoder import Compute, Decoder, initialize
from models.lora import split_params
from models.sharding import make_mesh, param_shardings
from rollouts import environments
from rollouts.chat import chat_prompt, conversation, stop_tokens
from rollouts.engine import Engine, PromptTooLongError, SamplingParams
from rollouts.environments.dialogue import Budget, DialogueEnvironment
from rollouts.episode import Problem
from rollouts.jax_engine import JaxEngine
from rollouts.openai_engine import OpenAIEngine
from rollouts.sidecar import Sidecar, SidecarSettings, new_key
from rollouts.vllm_engine import ClientSettings, VllmEngine
from rollouts.vllm_extension import KEY_VARIABLE
from sandbox.isolation import LEAST, IsolationError
from sandbox.pool import Pool
from sandbox.session import Sessions
from sandbox.verdict import Limits


@dataclass
class Policy:
    """The model that is trained, and how its text becomes tokens."""

    config: ModelConfig
    graphdef: nnx.GraphDef
    params: Any
    tokenizer: Any
    compute: Compute
    mesh: Mesh


def open_run(config: Config, processes: Processes = Processes()) -> Path:
    """The run's folder, made if it is new.

    Raises UserError if it was made by other settings, naming the first that differs.
    """
    folder = Path(config.runs_dir) / config.name
    path, settings = folder / "config.json", json.loads(json.dumps(dataclasses.asdict(config)))
    with processes.after_first("config"):
        if path.exists():
            difference = _first_difference(_lasting(json.loads(path.read_text())), _lasting(settings))
            if difference:
                raise UserError(
                    f"{folder} was made by other settings ({difference}); choose another --config.name, or delete it"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_beside(path, json.dumps(settings, indent=2) + "\n")
    return folder


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that must not change in the life of a run: not where its servers, processes and devices are."""
    rollout = {name: value for name, value in settings.get("rollout", {}).items() if name != "sidecar"}
    return {name: value for name, value in settings.items() if name not in ("processes", "mesh")} | {"rollout": rollout}


def _first_difference(old: Any, new: Any, where: str = "config") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(n for n in old if n not in new)]:
            found = _first_difference(old.get(name), new.get(name), f"{where}.{name}")
            if found:
                return found
        return None
    return None if old == new else f"{where} was {old!r}, is {new!r}"


def make_policy(config: Config, task: Task, folder: Path, processes: Processes = Processes()) -> Policy:
    """The policy at its start: weights read from config.model.path, or random by config.model.shape."""
    model, devices = config.model, ordered_devices()
    dtype = jnp.dtype(model.param_dtype)
    kept = folder / "model" if (folder / "model" / "params").is_dir() else None  # by keep_base
    path = kept or model.path
    found = find_model(path) if path else None
    with processes.after_first("tokenizer"):
        tokenizer = make_tokenizer(model, task, folder)
    source, model_config = found or (None, shape_of(model, len(tokenizer)))
    sizes = mesh_sizes(config, model_config, devices)
    if len(set(processes.exchange("mesh", sizes))) > 1:
        raise UserError("the processes have different config.mesh, or different devices; all must have the same")
    mesh = make_mesh(*sizes, devices=devices)
    compute = make_compute(config, mesh)
    if source is not None:
        model_config, graphdef, params = load_model(source, mesh, dtype)
    else:
        graphdef, params = random_params(model_config, config.seed, mesh, dtype)
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    if longest > model_config.max_length:
        raise UserError(
            f"rollout.max_prompt_length + max_new_tokens = {longest} is more than the model's "
            f"{model_config.max_length} positions (max_position_embeddings)"
        )
    if len(tokenizer) > model_config.vocab_size:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens, the model only {model_config.vocab_size}")
    lora = model.lora.adapters()
    if lora or model.adapter:
        key = jax.random.key(config.seed)
        model_config, graphdef, params = start_adapters(model_config, graphdef, params, lora, model.adapter, key, mesh)
    with processes.after_first("model"):
        if processes.first:
            origin = source if kept is None else Path(model.path)  # of a hub name, what was fetched of it
            describe_model(model_config, folder / "model", origin if model.path else None)
    return Policy(model_config, graphdef, params, tokenizer, compute, mesh)


def keep_base(config: Config, policy: Policy, folder: Path) -> None:
    """Saves the frozen parameters of a model with adapters in FOLDER/model/params, once; checkpoints leave them out.

    Not those of a Hugging Face or imported model, which model.json names and which serves all its adapters. Random ones
    may differ on another platform, and another run may go on and change.
    """
    path, kept = config.model.path, folder / "model" / "params"
    if policy.config.lora is not None and not kept.exists() and (not path or is_run(Path(path))):
        save_params(split_params(policy.params)[1], kept)


def make_compute(config: Config, mesh: Mesh) -> Compute:
    """How the model computes on this mesh by config.model."""
    model, name, on_cpu = config.model, config.model.compute_dtype, mesh.devices.flat[0].platform == "cpu"
    if name == "auto":
        name = "float32" if on_cpu else "bfloat16"
    elif name == "float32" and not on_cpu:  # and not what accelerators make of it: TF32, or parts in bf16
        jax.config.update("jax_default_matmul_precision", "highest")
    return Compute(jnp.dtype(name), model.remat, model.unroll_layers, mesh, model.attention)


def random_params(config: ModelConfig, seed: int, mesh: Mesh, dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """A decoder with random weights, made in its shards."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype)))
    make = lambda key: nnx.state(initialize(Decoder(config, dtype), key))  # noqa: E731
    return graphdef, jax.jit(make, out_shardings=param_shardings(abstract, mesh))(jax.random.key(seed))


def shape_of(model: PolicyConfig, tokens: int) -> ModelConfig:
    """The architecture of config.model.shape, with a vocabulary of so many tokens where it says none."""
    fields = dataclasses.asdict(model.shape)
    fields["vocab_size"] = fields["vocab_size"] or -(-tokens // 16) * 16
    fields["head_dim"] = fields["head_dim"] or fields["hidden_size"] // fields["num_attention_heads"]
    return from_hf(fields, "config.model.shape")


def make_tokenizer(model: PolicyConfig, task: Task, folder: Path) -> Any:
    """The run's own copy if it has one, else the configured one, else one trained on the task's text."""
    kept = folder / "model" / "tokenizer"
    if (kept / "tokenizer.json").exists():
        return load_tokenizer(str(kept))
    if model.tokenizer or model.path:
        source = Path(model.tokenizer or model.path)
        inside = [source / "tokenizer", source / "model" / "tokenizer"]  # of an imported model, of a run
        tokenizer = load_tokenizer(str(next((p for p in inside if p.is_dir()), source)))
    elif task.corpus is None:
        raise UserError(f"task {task.name} has no text to train a tokenizer on; set config.model.tokenizer")
    else:
        tokenizer = train_tokenizer(task.corpus(), model.tokenizer_size, model.tokenizer_digits)
    tokenizer.save_pretrained(kept)
    return tokenizer


def make_engine(
    config: Config,
    policy: Policy,
    folder: Path,
    processes: Processes = Processes(),
    say: Callable[[str], None] = print,
) -> Engine:
    """The sampler of config.rollout, for this process's part of the episodes.

    One in this process holds the policy's current parameters, others need them sent. `say` gets a line for whatever
    fails and is put right.
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
        processes.local(policy.params, policy.mesh),
        slots=rollout.slots,
        max_length=max_length,
        max_new_tokens=rollout.max_new_tokens,
        dtype=policy.compute.dtype,
        unroll=policy.compute.unroll,
        mesh=policy.mesh if processes.count == 1 else local_mesh(policy.mesh),
        tokenizer=policy.tokenizer,
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
            tokenizer=bool(rollout.stop_strings) or rollout.environment != "single_turn",  # for stop strings
            arguments=s.arguments,
            start_timeout_s=s.start_timeout_s,
            key=key,
        )
        sidecar = Sidecar(settings, logs)
    client = ClientSettings(key, s.sync, Path(s.sync_folder), s.in_flight, s.concurrency, s.request_timeout_s, s.wait_s)
    own = s.addresses[processes.index :: processes.count]
    return VllmEngine(policy.config, addresses=own, sidecar=sidecar, max_length=max_length, settings=client, say=say)


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


def evaluation_task(config: Config, task: Task) -> Task:
    """The task whose held-out problems are for evaluation: config.evaluation.task, or the run's own."""
    return load_task(config.evaluation.task, config.seed) if config.evaluation.task.name else task


def make_environment(
    config: Config, task: Task, tokenizer: Any, pool: Pool, temperature: float, sessions: Sessions | None = None
) -> DialogueEnvironment:
    """The environment of config.rollout with the task's reward.

    It is the class of module rollouts.environments.NAME, with the settings of config.rollout.NAME where there are any.
    Raises UserError naming the nearest environment.
    """
    rollout, name = config.rollout, config.rollout.environment
    kind = _environment_class(name)
    params = SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        temperature=temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        stop_tokens=stop_tokens(tokenizer),
        stop_strings=tuple(rollout.stop_strings),
    )
    settings = dataclasses.asdict(getattr(rollout, name)) if hasattr(rollout, name) else {}
    # What some environments need beside their settings.
    settings |= {"others": task.train, "open_session": sessions.open if sessions else None}
    fields = {f.name for f in dataclasses.fields(kind)}
    return kind(
        tokenizer=tokenizer,
        score=lambda problem, text: task.score(problem, text, pool),
        params=params,
        budget=Budget(rollout.max_new_tokens, rollout.max_turns, rollout.max_turn_tokens, rollout.wall_s),
        encode=lambda problem: prompt_tokens(tokenizer, problem, rollout),
        learn_inserted=rollout.learn_inserted,
        **{name: value for name, value in settings.items() if name in fields},
    )


def _environment_class(name: str) -> type[DialogueEnvironment]:
    names = [m.name for m in pkgutil.iter_modules(environments.__path__) if m.name != "dialogue"]
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        raise UserError(f"rollout.environment = {name!r} is no environment; {hint}")
    module = importlib.import_module(f"rollouts.environments.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")))


def instruction(rollout: RolloutConfig) -> str:
    """What is put after every problem."""
    if rollout.instruction != "auto":
        return rollout.instruction
    return getattr(sys.modules[_environment_class(rollout.environment).__module__], "INSTRUCTION", "")


@contextmanager
def make_sessions(config: Config) -> Iterator[Sessions | None]:
    """The interpreters of the sandbox, where the environment needs them."""
    if config.rollout.environment != "interpreter":
        yield None
        return
    s, call = config.sandbox, config.rollout.interpreter
    limits = Limits(call.wall_s, call.cpu_s, s.memory_mb, s.output_kb, s.processes)
    try:
        sessions = Sessions(limits, least=s.least or LEAST, concurrency=call.concurrency)
    except (IsolationError, ValueError) as error:
        raise UserError(f"config.sandbox.least: {error}") from None
    with sessions:
        yield sessions


def prompt_tokens(tokenizer: Any, problem: Problem, rollout: RolloutConfig) -> np.ndarray:
    """i32[n], with the instruction of rollout. Raises PromptTooLongError if n > rollout.max_prompt_length."""
    tokens = chat_prompt(tokenizer, instructed(problem, instruction(rollout)))
    if len(tokens) > rollout.max_prompt_length:
        raise PromptTooLongError(
            f"problem {problem.id}: its prompt has {len(tokens)} tokens, more than rollout.max_prompt_length = "
            f"{rollout.max_prompt_length}; raise that, or set rollout.reject_long_prompts"
        )
    return tokens


def instructed(problem: Problem, text: str) -> Problem:
    """The problem with an instruction after its last message, or after its plain prompt."""
    if not text:
        return problem
    if not problem.messages:
        return dataclasses.replace(problem, prompt=f"{problem.prompt}\n{text}\n")
    *before, last = problem.messages
    return dataclasses.replace(problem, messages=(*before, last | {"content": f"{last['content']}\n{text}"}))


def demonstration_tokens(tokenizer: Any, problem: Problem, rollout: RolloutConfig) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32[n] and learned bool[n] of a problem's demonstration, as its episode would have them.

    A demonstration of several messages comes with its own instruction.
    """
    said = problem.demonstration or ""
    if isinstance(said, str):
        problem = instructed(problem, instruction(rollout))
        said = ({"role": "assistant", "content": said},)
    tokens, learned = conversation(tokenizer, [*problem.messages, *said], problem.prompt or "")
    if rollout.learn_inserted:
        learned = np.maximum.accumulate(learned)
    return tokens, learned


def without_long_prompts(task: Task, tokenizer: Any, rollout: RolloutConfig) -> Task:
    """The task without the problems and demonstrations whose prompts are too long, counted in `rejected`."""

    def fits(problem: Problem) -> bool:
        return len(chat_prompt(tokenizer, instructed(problem, instruction(rollout)))) <= rollout.max_prompt_length

    def kept(problems: Sequence[Problem]) -> list[Problem]:
        return [p for p in problems if fits(p)]

    train, held_out, demonstrations = kept(task.train), kept(task.held_out), kept(task.demonstrations)
    if not train or not held_out or (task.demonstrations and not demonstrations):
        what = "problem" if not train or not held_out else "demonstration"
        raise UserError(f"no {what} fits rollout.max_prompt_length = {rollout.max_prompt_length}")
    rejected = Counter(task.rejected)
    rejected["prompt too long"] += len(task.train) + len(task.held_out) - len(train) - len(held_out)
    rejected["demonstration too long"] += len(task.demonstrations) - len(demonstrations)
    return dataclasses.replace(
        task, train=train, held_out=held_out, demonstrations=demonstrations, rejected=dict(+rejected)
    )


def without_long_demonstrations(task: Task, tokenizer: Any, config: Config) -> Task:
    """The task without the demonstrations that do not fit a row, counted in `rejected`.

    Where they are not to be rejected, those with the most characters are looked at (of a task that makes them, the
    first), which takes no time, and one that does not fit raises UserError or PromptTooLongError. UserError if none is
    left.
    """

    def tokens(problem: Problem) -> int:
        return len(demonstration_tokens(tokenizer, problem, config.rollout)[0])

    longest = row_length(config)
    if not config.rollout.reject_long_prompts:
        some = task.demonstrations
        if isinstance(some, list):
            some = sorted(some, key=lambda p: -len(f"{p.prompt}{p.messages}{p.demonstration}"))
        for problem in (some[i] for i in range(min(64, len(some)))):
            if (count := tokens(problem)) > longest:
                prompt_tokens(tokenizer, problem, config.rollout)  # raises where it is the prompt that is too long
                raise UserError(
                    f"demonstration {problem.id}: its {count} tokens do not fit a row of {longest} (batch.row_length); "
                    "raise that, or set rollout.reject_long_prompts"
                )
        return task
    kept = [p for p in task.demonstrations if tokens(p) <= longest]
    if task.demonstrations and not kept:
        raise UserError(f"no demonstration fits a row of {longest} tokens (batch.row_length)")
    rejected = Counter(task.rejected)
    rejected["demonstration too long"] += len(task.demonstrations) - len(kept)
    return dataclasses.replace(task, demonstrations=kept, rejected=dict(+rejected))


def make_pool(config: Config) -> Pool:
    """The sandbox of config.sandbox. Raises UserError where it cannot be as wanted."""
    s = config.sandbox
    limits = Limits(s.wall_s, s.cpu_s, s.memory_mb, s.output_kb, s.processes)
    try:
        if s.ray_address:
            from sandbox.ray_pool import RayPool

            return cast(Pool, RayPool(s.ray_address, s.workers, limits, s.least or LEAST))  # the same interface
        return Pool(s.workers, limits, s.least or LEAST)
    except (IsolationError, ValueError) as error:
        raise UserError(f"config.sandbox.least: {error}") from None
    except ImportError:
        raise UserError("config.sandbox.ray_address needs Ray: pip install 'jaxrl[ray]'") from None


def prepare_process(cache: Path = Path("~/.cache/jaxrl/xla")) -> None:
    """Process-wide settings: the persistent compilation cache, quiet, and on CPU a heap for large arrays."""
    jax.config.update("jax_compilation_cache_dir", str(cache.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of a file that it does not need
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads, before JAX starts its own
        if jax.default_backend() == "cpu":
            _prepare_heap(libc)


def _prepare_heap(libc: Any) -> None:
    """A heap that keeps what is freed, on huge pages where Linux gives them on request.

    XLA on CPU takes the temporary memory of each call from malloc, which maps large blocks afresh and gives them
    back at once: page faults were a sixth of the time of a small training step. A heap without mmap keeps them.
    With pages of 4 KiB, looking up addresses was another tenth to sixth of training and decoding: the heap is
    extended once, without being touched, and what is later allocated there comes in pages of 2 MiB.
    """
    for parameter, value in ((-4, 0), (-1, -1)):  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
        libc.mallopt(parameter, value)
    page, madv_hugepage = 2**21, 14  # Linux's mman.h
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    libc.malloc.restype = ctypes.c_void_p
    heap = libc.malloc(ctypes.c_size_t(size))
    if heap is not None:
        start = -(-heap // page) * page
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(heap + size - start), madv_hugepage)
        libc.free(ctypes.c_void_p(heap))
