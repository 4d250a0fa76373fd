"""Every setting of a run, with its default and its unit.

A config file defines `get_config() -> Config`; the command line overrides single fields:
`python -m jaxrl.train --config configs/grpo.py --config.optimizer.learning_rate=1e-6`.
"""

from dataclasses import dataclass, field

from models.config import Lora, lora_targets


@dataclass
class ShapeConfig:
    """Architecture of a model that starts from random weights, in the words of a Hugging Face config.json."""

    model_type: str = "qwen2"
    vocab_size: int = 0  # 0: the tokenizer's, rounded up to a multiple of 16
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 4096
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True


@dataclass
class LoraConfig:
    """Adapters, which are then all that is trained (arXiv 2106.09685); the rest of the model is frozen."""

    rank: int = 0  # 0: no adapters, everything is trained
    alpha: float = 16.0  # what they add is scaled by alpha / rank
    rank_stabilized: bool = False  # by alpha / sqrt(rank) instead (arXiv 2312.03732)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def check(self) -> None:
        """Raises ValueError naming the first field whose value is not allowed, and what is."""
        self.adapters()

    def adapters(self) -> Lora | None:
        """These settings as the model has them; None without adapters. Raises what `check` raises."""
        for name, ok, rule in (
            ("rank", self.rank >= 0, ">= 0"),
            ("alpha", self.alpha > 0, "> 0"),
            ("targets", self.targets and not isinstance(self.targets, str), "a tuple of names, one at least"),
        ):
            if not ok:
                raise ValueError(f"model.lora.{name} = {getattr(self, name)!r} must be {rule}")
        try:
            targets = lora_targets(self.targets)
        except ValueError as error:
            raise ValueError(f"model.lora.targets: {error}") from None
        return Lora(self.rank, self.alpha, targets, self.rank_stabilized) if self.rank else None


@dataclass
class PolicyConfig:
    """Where the policy comes from and how it computes."""

    path: str = ""  # Hugging Face folder or hub name, folder of `models.convert import` or of a run; "": random weights
    shape: ShapeConfig = field(default_factory=ShapeConfig)  # used only without a path
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: str = ""  # folder of a PEFT adapter or of a run with one, to start from; lora.rank 0: merged at the start
    pretraining_tokens: float = 0.0  # that the model has seen before, for its cost; 0: not known, not counted
    tokenizer: str = ""  # folder or hub name; "": the model's own, or one trained on the task's own text
    tokenizer_size: int = 576  # tokens of one trained on the task's own text
    tokenizer_digits: int = 1  # digits in a token of it, at most
    param_dtype: str = "float32"  # float32 | bfloat16 (see optimizer.stochastic_rounding)
    offload_reference: bool = False  # keep the parameters of a KL term's reference policy in host memory
    compute_dtype: str = "auto"  # auto: float32 on CPU, bfloat16 on accelerators
    remat: str = "none"  # computed again in the backward pass: none | dots (all but matmuls) | full (every layer)
    attention: str = "auto"  # auto | splash (TPU) | cudnn (GPU) | blocked: see models/attention.py
    unroll_layers: bool = False  # unroll the scan over layers: faster steps on CPU, slower compilation

    def check(self) -> None:
        """Raises ValueError naming the field whose value is not allowed, and what is."""
        for name, allowed in (
            ("param_dtype", ("float32", "bfloat16")),
            ("compute_dtype", ("auto", "float32", "bfloat16")),
            ("remat", ("none", "dots", "full")),
            ("attention", ("auto", "splash", "cudnn", "blocked")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} = {getattr(self, name)!r} must be one of: {', '.join(allowed)}")
        self.lora.check()


@dataclass
class MeshConfig:
    """Devices along each axis: 0 is chosen (jaxrl/auto_mesh.py), -1 takes what the others leave."""

    data: int = 0
    fsdp: int = 0
    context: int = 1  # devices that share a row's tokens: for microbatches of fewer rows than devices
    tensor: int = 0

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.data, self.fsdp, self.context, self.tensor

    def check(self) -> None:
        """Raises ValueError naming the field that is no number of devices."""
        for name, size in zip(("data", "fsdp", "context", "tensor"), self.sizes):
            if isinstance(size, bool) or size < -1:
                raise ValueError(f"mesh.{name} = {size} must be a number of devices, 0 (chosen) or -1 (what is left)")


@dataclass
class ProcessesConfig:
    """A run in several processes (docs/processes.md). These settings may differ when a run is resumed.

    With none of the first three, SLURM, Open MPI, GKE and TPU pods are found by themselves. The environment variables
    JAXRL_PROCESS_ADDRESS, JAXRL_PROCESS_COUNT and JAXRL_PROCESS_INDEX may stand for them.
    """

    address: str = ""  # host:port of the first process, which the others can reach
    count: int = 0
    index: int = -1  # of this process, from 0
    heartbeat_s: float = 30.0  # without a sign of life from a process until the run stops
    wait_s: float = 300.0  # for the others at the start
    cpu_devices: int = 0  # devices of each process on CPU, for tests; 0: one


# Where a base model's completion of a function is cut: the next top-level statement (arXiv 2107.03374, section 2.1).
BASE_STOPS = ("\ndef", "\nclass", "\nif", "\nprint", "\n#")
BLOCKS = ("last", "first", "none")


@dataclass
class ExtractionConfig:
    """How the program is found in a model's text, for tasks that ask for a function (see jaxrl/extract.py)."""

    block: str = "last"  # last | first: which fenced block (that defines the function); none: fences mean nothing
    import_helper: bool = True  # the usual imports before the program, and those of the function's header
    prepend_header: bool = True  # signature and docstring before an answer that does not define the function
    stop_strings: tuple[str, ...] = ()  # cut before the first of these where no fenced block answers; see BASE_STOPS

    def check(self) -> None:
        """Raises ValueError naming the field with a value that is not allowed."""
        if self.block not in BLOCKS:
            raise ValueError(f"task.extraction.block = {self.block!r} must be one of: {', '.join(BLOCKS)}")
        if isinstance(self.stop_strings, str) or not all(self.stop_strings):
            raise ValueError(
                f"task.extraction.stop_strings = {self.stop_strings!r} must be a tuple of texts, none empty"
            )


@dataclass
class TaskConfig:
    """Which problems. Each task uses the fields that name it, and those that name none."""

    name: str = "functions"  # a module of jaxrl.tasks
    path: str = ""  # local .jsonl, .json, .gz, .parquet or a hub name, for tasks read from data
    held_out_path: str = ""  # as path; "": the task's own held-out problems
    split: str = "train"  # split of a hub data set
    train_problems: int = 20_000  # problems generated, or at most read
    held_out_problems: int = 128
    prompt_style: str = "chat"  # humaneval: chat | completion (for base models; set rollout.stop_strings too)
    held_out_part: str = "test"  # mbpp: test (ids 11 to 510) | all, as EvalPlus counts (then train on none of them)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)  # humaneval and mbpp
    families: tuple[str, ...] = ("list", "text", "number")  # functions: what f may be a function of
    max_difficulty: int = 4  # functions, compute: steps of the longest problem
    demonstration_difficulty: int = 2  # functions: steps of the longest easy demonstration
    hard_demonstrations: float = 0.1  # functions, compute: share of longer demonstrations, up to max_difficulty
    lazy_demonstrations: float = 0.0  # functions, compute: share of demonstrations that do the last step only
    demonstration_kinds: tuple[str, ...] = ("direct", "tool", "program")  # compute: how demonstrations answer
    demonstrations: int = 20_000  # problems with a demonstration, for SFT
    min_tests: int = 1  # contest: fewer are rejected
    max_tests: int = 64  # contest: more are cut, evenly
    public_tests: int = 2  # contest: the first ones, whose failures the model may be told
    max_prompt_characters: int = 0  # contest: longer ones are rejected; 0: no limit
    language: str = "python"  # contest: others are rejected
    require_solution: bool = False  # contest: reject a problem whose reference solution does not pass


@dataclass
class SidecarConfig:
    """vLLM servers as the sampler (rollout.engine = "vllm"), or another server to evaluate (rollout.engine = "openai").

    Their key is the environment variable JAXRL_SIDECAR_KEY, or OPENAI_API_KEY. These settings may differ when a run is
    resumed.
    """

    addresses: tuple[str, ...] = ()  # of running servers, http://host:port; (): the run starts its own
    environment: str = ".venv-vllm"  # where vLLM is installed (make sidecar)
    model: str = ""  # the server's name of the model, for engine = "openai"
    replicas: int = 1  # servers to start
    tensor_parallel: int = 1  # GPUs a replica
    devices: tuple[str, ...] = ()  # CUDA devices for all replicas; (): the first ones that are visible
    dtype: str = "auto"  # auto: model.compute_dtype
    arguments: tuple[str, ...] = ()  # more of vLLM's own command line
    sync: str = "files"  # files | nccl: how weights travel
    sync_folder: str = "/dev/shm"  # for files; servers on other machines must see it too
    in_flight: str = "finish"  # running requests when weights arrive: finish | abort (sampled anew) | keep (go on)
    concurrency: int = 256  # requests at one replica at a time
    request_timeout_s: float = 600.0
    wait_s: float = 600.0  # without an answer from any server before the run stops
    start_timeout_s: float = 900.0


@dataclass
class InterpreterConfig:
    """rollout.environment = "interpreter": see rollouts/environments/interpreter.py."""

    max_calls: int = 4  # of an episode; code after those is not run
    output_to: str = "answer"  # answer (ToRL) | user | tool (a message of that role brings the output)
    code_end: str = "```\n"  # where an answer stops for its code to be run; ToRL: "```output"
    stateful: bool = True  # a call finds the variables of those before it
    output_characters: int = 256  # longer output is cut in its middle
    failed_call_penalty: float = 0.0  # off the reward, for each call that failed
    wall_s: float = 10.0  # of a call
    cpu_s: float = 10.0
    concurrency: int = 0  # calls at a time; 0: two for each core


@dataclass
class FeedbackConfig:
    """rollout.environment = "feedback": see rollouts/environments/feedback.py."""

    max_turns: int = 3  # programs of an episode
    invalid_penalty: float = 0.2  # off the reward, for each program but the last that is none
    penalize_last: bool = False  # for the last one too
    feedback: str = "tests"  # tests | binary | random (of another problem)
    failures: int = 3  # told at most
    characters: int = 300  # of each of them
    header: str = "Your program is wrong:"
    request: str = "Write the whole program again."


@dataclass
class RolloutConfig:
    """How episodes are sampled."""

    engine: str = "jax"  # jax: in this process | vllm: see sidecar | openai: any server, for evaluation only
    sidecar: SidecarConfig = field(default_factory=SidecarConfig)
    max_staleness: int = 0  # versions between sampling and update; > 0: sampling overlaps with training
    mismatch_limit: float = 0.0  # stop when |log sampler / trainer| of a token is larger; 0: no limit
    environment: str = "single_turn"  # a module of rollouts.environments: single_turn | interpreter | feedback
    interpreter: InterpreterConfig = field(default_factory=InterpreterConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    instruction: str = "auto"  # put after every problem; auto: the environment's own
    max_turns: int = 1_000  # of the model in an episode
    max_turn_tokens: int = 0  # of one turn, which is cut there; 0: max_new_tokens
    wall_s: float = 0.0  # of an episode until its last turn, waiting for the engine included; 0: no limit
    learn_inserted: bool = False  # the loss is on tool output and feedback too (an ablation)
    slots: int = 64  # rows decoded together
    max_prompt_length: int = 256  # tokens; a longer prompt is an error (or rejected and counted, see below)
    max_new_tokens: int = 96  # tokens of an episode after its prompt, inserted ones included
    reject_long_prompts: bool = False  # drop and count such problems (and long demonstrations) instead of stopping
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # the fewest tokens with this much probability; 1: all
    top_k: int = 0  # the likeliest tokens; 0: all
    min_p: float = 0.0  # tokens with this share of the likeliest one's probability; 0: all
    stop_strings: tuple[str, ...] = ()  # an answer ends with the token that completes one of them

    @property
    def programs(self) -> int | None:
        """Programs that an episode may submit; None: its end is all that is scored."""
        return self.feedback.max_turns if self.environment == "feedback" else None

    def check(self, training: bool = True) -> None:
        """Raises ValueError naming the field with which there can be no sampling, or no training on the samples."""
        for name in ("slots", "max_prompt_length", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} = {getattr(self, name)} must be >= 1")
        for name in ("max_staleness", "mismatch_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"rollout.{name} = {getattr(self, name)} must be >= 0")
        for name, value, allowed in (
            ("interpreter.output_to", self.interpreter.output_to, ("answer", "user", "tool")),
            ("feedback.feedback", self.feedback.feedback, ("tests", "binary", "random")),
        ):
            if value not in allowed:
                raise ValueError(f"rollout.{name} = {value!r} must be one of: {', '.join(allowed)}")
        if training and self.engine == "vllm" and (self.top_p < 1 or self.top_k or self.min_p):
            raise ValueError(
                "rollout.top_p, top_k and min_p cannot be used to train with rollout.engine = 'vllm': its logprobs are "
                "those of the cut distribution, which the trainer does not know"
            )


@dataclass
class OptimizerConfig:
    """AdamW with a linear warm-up, then constant or cosine to zero."""

    learning_rate: float = 1e-6
    warmup_steps: int = 0
    schedule: str = "constant"  # constant | cosine
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # global norm; 0: no clipping
    state: str = "float32"  # float32 | bfloat16 | int8: how the two moments are kept: 8, 4 or about 2.1 B a parameter
    stochastic_rounding: bool = False  # of model.param_dtype = "bfloat16": small updates are not lost
    offload: bool = False  # keep the moments in host memory between updates

    def check(self, param_dtype: str = "bfloat16") -> None:
        """Raises ValueError naming the field whose value is not allowed, and what is."""
        for name, allowed in (("schedule", ("constant", "cosine")), ("state", ("float32", "bfloat16", "int8"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"optimizer.{name} = {getattr(self, name)!r} must be one of: {', '.join(allowed)}")
        if self.stochastic_rounding and param_dtype != "bfloat16":
            raise ValueError("optimizer.stochastic_rounding = True needs model.param_dtype = 'bfloat16'")


@dataclass
class PolicyGradientConfig:
    """One policy-gradient loss; its published variants are these settings (see jaxrl/algorithms/grpo.py)."""

    advantage: str = "group_std"  # group_std (GRPO) | group_mean (Dr.GRPO) | leave_one_out (RLOO)
    std_ddof: int = 0  # 0: population std, 1: sample std
    advantage_epsilon: float = 1e-4  # added to the std
    objective: str = "clip"  # clip (PPO) | cispo (MiniMax-M1) | sapo (a sigmoid instead of clipping)
    ratio: str = "token"  # token | sequence (GSPO)
    clip_low: float = 0.2
    clip_high: float = 0.2  # DAPO: 0.28
    dual_clip: float = 0.0  # c of 1912.09729, e.g. 3; 0: off
    sapo_tau_positive: float = 1.0  # temperature of SAPO's gate where the advantage is positive
    sapo_tau_negative: float = 1.05
    averaging: str = "token"  # token (DAPO) | sequence (GRPO) | constant (Dr.GRPO)
    constant_length: int = 0  # tokens; divisor of `constant` averaging, 0: rollout.max_new_tokens
    kl_coefficient: float = 0.0  # 0: no reference model is kept
    kl_estimator: str = "k3"  # k1 | k2 | k3
    sampler_correction: str = "none"  # none | truncate (TIS) | mask (IcePop): what happens outside the bounds
    sampler_correction_level: str = "token"  # token | sequence
    sampler_ratio_min: float = 0.5  # used by mask
    sampler_ratio_max: float = 2.0
    old_logprobs: str = "trainer"  # trainer: recomputed before the first update; sampler: the engine's
    minibatches: int = 1  # updates a batch
    dynamic_sampling: bool = False  # replace groups of equal reward
    dynamic_sampling_max_draws: int = 3  # batches drawn at most for one step
    overlong: str = "none"  # none | penalty (DAPO's soft punishment) | filter (truncated episodes get mask 0)
    overlong_buffer: int = 16  # tokens over which the penalty grows to 1

    def check(self) -> None:
        """Raises ValueError naming the first field whose value is not allowed, and what is."""
        for name, allowed in _LOSS_CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"grpo.loss.{name} = {getattr(self, name)!r} must be one of: {', '.join(allowed)}")
        for name, ok, rule in (
            ("std_ddof", self.std_ddof in (0, 1), "0 or 1"),
            ("advantage_epsilon", self.advantage_epsilon >= 0, ">= 0"),
            ("clip_low", 0 < self.clip_low <= 1, "in (0, 1]"),
            ("clip_high", self.clip_high > 0, "> 0"),
            ("dual_clip", self.dual_clip == 0 or self.dual_clip > 1, "0 (off) or > 1"),
            ("sapo_tau_positive", self.sapo_tau_positive > 0, "> 0"),
            ("sapo_tau_negative", self.sapo_tau_negative > 0, "> 0"),
            ("constant_length", self.constant_length >= 0, ">= 0"),
            ("kl_coefficient", self.kl_coefficient >= 0, ">= 0"),
            ("sampler_ratio_min", 0 <= self.sampler_ratio_min <= 1, "in [0, 1]"),
            ("sampler_ratio_max", self.sampler_ratio_max >= 1, ">= 1"),
            ("minibatches", self.minibatches >= 1, ">= 1"),
            ("dynamic_sampling_max_draws", self.dynamic_sampling_max_draws >= 1, ">= 1"),
            ("overlong_buffer", self.overlong_buffer >= 1, ">= 1"),
        ):
            if not ok:
                raise ValueError(f"grpo.loss.{name} = {getattr(self, name)} must be {rule}")
        if self.old_logprobs == "sampler" and self.sampler_correction != "none":
            raise ValueError(
                f"grpo.loss.sampler_correction = {self.sampler_correction!r} needs grpo.loss.old_logprobs = 'trainer': "
                "with the sampler's own logprobs as the old policy there is nothing to correct"
            )


_LOSS_CHOICES = {
    "advantage": ("group_std", "group_mean", "leave_one_out"),
    "objective": ("clip", "cispo", "sapo"),
    "ratio": ("token", "sequence"),
    "averaging": ("token", "sequence", "constant"),
    "kl_estimator": ("k1", "k2", "k3"),
    "sampler_correction": ("none", "truncate", "mask"),
    "sampler_correction_level": ("token", "sequence"),
    "old_logprobs": ("trainer", "sampler"),
    "overlong": ("none", "penalty", "filter"),
}


@dataclass
class SFTConfig:
    """Supervised warm-up on demonstrations."""

    steps: int = 0  # 0: no SFT stage
    path: str = ""  # conversations: a file with "messages" or a hub name; "": the task's demonstrations
    split: str = "train"  # of a hub data set
    batch_size: int = 32  # demonstrations a step
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10))


@dataclass
class TracesConfig:
    """Conversations to learn from, made by rejection sampling (python -m jaxrl.traces)."""

    problems: int = 1000  # training problems
    samples: int = 4  # episodes of each
    keep: int = 2  # at most, of each


@dataclass
class GRPOConfig:
    """The reinforcement learning stage."""

    steps: int = 0  # 0: no GRPO stage
    problems_per_step: int = 8
    group_size: int = 8  # episodes a problem
    loss: PolicyGradientConfig = field(default_factory=PolicyGradientConfig)


@dataclass
class BatchConfig:
    """How episodes are laid out on the device."""

    row_length: int = 0  # tokens of a packed row; 0: the longest episode possible
    microbatch_rows: int = 16  # rows of one forward and backward pass

    def check(self) -> None:
        """Raises ValueError naming the field whose value is not allowed, and what is."""
        for name, least in (("row_length", 0), ("microbatch_rows", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"batch.{name} = {getattr(self, name)} must be >= {least}")


@dataclass
class EvaluationConfig:
    """Held-out evaluation before, between and after the stages."""

    task: TaskConfig = field(default_factory=lambda: TaskConfig(name=""))  # whose held-out problems; "": the run's task
    samples: int = 1  # completions a problem
    temperature: float = 1.0  # 0: greedy
    every: int = 0  # also every so many steps; 0: only between stages
    k: tuple[int, ...] = ()  # pass@k, maj@k, n@k and best-of-k for these too, beside 1 and `samples`
    submissions: int = 1  # n of n@k: programs submitted at most, of those that pass the public tests
    best_of: str = ""  # scorer of best-of-k: logprob (mean over the sampled tokens) | public (tests); "": none
    regenerate: int = 0  # times at most to sample again an answer that is not well formed
    bootstrap: int = 1000  # resamples of the problems for the 95% intervals; 0: no intervals

    def check(self) -> None:
        """Raises ValueError naming the first field whose value is not allowed, and what is."""
        for name, ok, rule in (
            ("samples", self.samples >= 1, ">= 1"),
            ("temperature", self.temperature >= 0, ">= 0"),
            ("every", self.every >= 0, ">= 0"),
            ("k", all(1 <= k <= self.samples for k in self.k), f"in 1 .. evaluation.samples = {self.samples}"),
            ("submissions", self.submissions >= 1, ">= 1"),
            ("best_of", self.best_of in ("", "logprob", "public"), "logprob, public or empty"),
            ("regenerate", self.regenerate >= 0, ">= 0"),
            ("regenerate", not self.regenerate or self.temperature > 0, "0 with evaluation.temperature = 0, which "
             "gives the same text again"),
            ("bootstrap", self.bootstrap >= 0, ">= 0"),
        ):  # fmt: skip
            if not ok:
                raise ValueError(f"evaluation.{name} = {getattr(self, name)!r} must be {rule}")


@dataclass
class SandboxConfig:
    """Limits on one program, where its problem has none of its own, and how well it must be isolated."""

    workers: int = 0  # 0: one per core
    least: str = ""  # least isolation accepted: process, namespaces, everything, layers with commas; "": the default
    ray_address: str = ""  # a Ray cluster ("auto": the running one) whose nodes score programs; "": this machine
    wall_s: float = 10.0
    cpu_s: float = 2.0
    memory_mb: int = 1024
    output_kb: int = 64
    processes: int = 16


@dataclass
class CheckpointConfig:
    every: int = 50  # steps; 0: at the end of each stage only
    keep: int = 2  # newest ones; the end of each stage is always kept


@dataclass
class Config:
    """One experiment. Its run lives in `runs_dir/name`."""

    name: str = "run"
    label: str = ""  # of its row in a comparison of runs; "": the name
    runs_dir: str = "runs"
    seed: int = 0
    model: PolicyConfig = field(default_factory=PolicyConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    processes: ProcessesConfig = field(default_factory=ProcessesConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # of the GRPO stage
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log_samples_every: int = 1  # steps; sampled episodes kept in samples/


def row_length(config: Config) -> int:
    """Tokens of a packed row."""
    return config.batch.row_length or config.rollout.max_prompt_length + config.rollout.max_new_tokens
