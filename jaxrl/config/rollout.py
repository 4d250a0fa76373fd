"""Settings of sampling: engine, environment, lengths and the distribution."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le

from jaxrl.config.plugins import PLUGINS, Named, blocks_of, built_in, make_settings, named
from jaxrl.config.rules import AboveZero, Count, NonNegative, Positive, Share
from jaxrl.errors import UserError


@dataclass
class SidecarConfig:
    """vLLM servers as the sampler (rollout.engine = "vllm"), or another server to evaluate (rollout.engine = "openai").

    Their key is the environment variable JAXRL_SIDECAR_KEY, or OPENAI_API_KEY. These settings may differ when a run is
    resumed.
    """

    addresses: tuple[str, ...] = ()  # of running servers, http://host:port; (): the run starts its own
    environment: str = ".venv-vllm"  # where vLLM is installed (make sidecar)
    model: str = ""  # the server's name of the model, for engine = "openai"
    replicas: Positive = 1  # servers to start
    tensor_parallel: Positive = 1  # GPUs a replica
    devices: tuple[str, ...] = ()  # CUDA devices for all replicas; (): the first ones that are visible
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: model.compute_dtype
    arguments: tuple[str, ...] = ()  # more of vLLM's own command line
    sync: Literal["files", "nccl"] = "files"  # how weights travel
    lora: Literal["adapters", "merged"] = "adapters"  # sent of model.lora; adapters: merged where vLLM cannot
    sync_folder: str = "/dev/shm"  # for files; servers on other machines must see it too
    # Running requests when weights arrive. abort: they are sampled anew; keep, recompute: they continue with the new
    # weights, using the cached keys and values, or recomputing them (with stop strings: they are sampled anew).
    in_flight: Literal["finish", "abort", "keep", "recompute"] = "finish"
    concurrency: Positive = 256  # requests at one replica at a time
    request_timeout_s: AboveZero = 600.0
    wait_s: AboveZero = 600.0  # without an answer from any server before the run stops
    start_timeout_s: AboveZero = 900.0


@dataclass
class StreamConfig:
    """Sampling overlapped with training episode by episode, instead of batch by batch (docs/reference/streaming.md)."""

    episodes: Count = 0  # in flight; 0: off, whole batches are sampled
    stale: Literal["mask", "drop"] = "mask"  # of tokens older than max_staleness: no loss on them; or on their group
    cache: Literal["kept", "recomputed"] = "kept"  # of episodes in flight, when new weights arrive
    schedule: Literal["live", "record", "replay", "steps"] = "live"  # the order of events; all but live are repeatable
    replay_of: str = ""  # the folder of a run with schedule = "record"
    delay: Count = 64  # decoding steps from a completion to what follows it, with schedule = "steps"

    def check(self, where: str = "rollout.stream") -> None:
        """Raises UserError for settings that do not go together, or have no effect."""
        idle = [f.name for f in fields(self) if not self.episodes and getattr(self, f.name) != f.default]
        idle += ["delay"] if self.schedule != "steps" and self.delay != StreamConfig.delay else []
        if idle:
            needed = "schedule = 'steps'" if self.episodes else "episodes > 0"
            raise UserError(f"{where}.{idle[0]} = {getattr(self, idle[0])!r} has no effect without {where}.{needed}")
        if bool(self.replay_of) != (self.schedule == "replay"):
            raise UserError(
                f"{where}.replay_of = {self.replay_of!r} must be the folder of a recorded run with "
                f"{where}.schedule = 'replay', and '' with {self.schedule!r}"
            )


@dataclass
class RolloutConfig:
    """How episodes are sampled."""

    engine: Literal["jax", "vllm", "openai"] = (
        "jax"  # jax: in this process; vllm, and openai for evaluation: see sidecar
    )
    sidecar: SidecarConfig = field(default_factory=SidecarConfig)
    max_staleness: Count = 0  # versions from sampling to update; > 0: sampling overlaps with training
    stream: StreamConfig = field(default_factory=StreamConfig)
    mismatch_limit: NonNegative = 0.0  # stop when |log sampler / trainer| of a token is larger; 0: no limit
    environment: Annotated[Named, PLUGINS["environment"]] = named("environment", "single_turn")
    instruction: str = "auto"  # put after every problem; auto: the environment's own
    max_turns: Positive = 1_000  # of the model in an episode
    max_turn_tokens: Count = 0  # of one turn, which is cut there; 0: max_new_tokens
    wall_s: NonNegative = 0.0  # of an episode to its last turn, waiting for the engine too; 0: no limit
    learn_inserted: bool = False  # the loss is on tool output and feedback too (an ablation)
    slots: Positive = 64  # rows decoded together
    max_prompt_length: Positive = 256  # tokens; longer: an error (or rejected and counted, see below)
    max_new_tokens: Positive = 96  # tokens of an episode after its prompt, inserted ones included
    reject_long_prompts: bool = False  # drop and count such problems (and long demonstrations) instead of stopping
    temperature: NonNegative = 1.0  # 0: greedy
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0  # the fewest tokens with this much probability; 1: all
    top_k: Count = 0  # the likeliest tokens; 0: all
    min_p: Share = 0.0  # tokens with this share of the likeliest one's probability; 0: all
    stop_strings: tuple[str, ...] = ()  # an answer ends with the token that completes one of them

    @property
    def ahead(self) -> bool:
        """Whether sampling overlaps with training."""
        return bool(self.max_staleness or self.stream.episodes)

    @property
    def programs(self) -> int | None:
        """Programs that an episode may submit; None: its end is all that is scored."""
        return getattr(self.environment, "programs", None)

    def __getattr__(self, name: str) -> Any:
        """Settings of an environment by its name, as config files of earlier versions set them.

        `config.rollout.interpreter.max_calls = 2` counts where `config.rollout.environment` is "interpreter".
        """
        if name.startswith("_") or name not in built_in(PLUGINS["environment"]):
            raise AttributeError(f"RolloutConfig has no field {name!r}")
        if self.environment == name:
            self.environment = make_settings(PLUGINS["environment"], name)
        if getattr(self.environment, "name", "") == name:
            return self.environment
        return blocks_of(self).setdefault(name, make_settings(PLUGINS["environment"], name))

    def check(self, where: str = "rollout") -> None:
        """Raises UserError for a stop string without a character."""
        if not all(self.stop_strings):
            raise UserError(f"{where}.stop_strings = {self.stop_strings!r} must be a tuple of texts, none empty")

    def check_training(self) -> None:
        """Raises UserError for what can only be used to evaluate."""
        if self.engine == "openai":
            raise UserError("rollout.engine = 'openai' must be one of: jax, vllm (or openai, to evaluate)")
        if self.engine == "vllm" and (self.top_p < 1 or self.top_k or self.min_p):
            raise UserError(
                "rollout.top_p, top_k and min_p cannot be used to train with rollout.engine = 'vllm': its logprobs are "
                "those of the cut distribution, which the trainer does not know"
            )
