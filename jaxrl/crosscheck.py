"""Do the implementations of one model agree? Transformers, the JAX decoder, the JAX engine, vLLM on the same prompts.

    python -m jaxrl.crosscheck --model MODEL [--dtypes float32,bfloat16] [--sidecar URL | --no-vllm]
    python -m jaxrl.crosscheck --random qwen2.5 --random llama3      models of these shapes, with random weights

Both engines sample at temperature 1, and every other implementation says what it thinks of these tokens: the decoder
and transformers by a pass over the whole sequence, vLLM by scoring a prompt. Both engines also decode greedily, and
at each token the others say which they would have taken. vLLM gets its weights the way it does in training, so a
fault there shows here. What is not installed (vLLM, torch) is left out, with a line that says so. Ends with 1 when a
pair of implementations differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxrl.config.command_line import at_least
from jaxrl.errors import UserError, command
from models.config import ModelConfig, from_hf
from models.convert import export_model, is_run, load_model, save_hf
from models.decoder import Compute, Decoder, initialize
from rollouts.collect import generate
from rollouts.engine import Completion, SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.extension import KEY_VARIABLE
from rollouts.vllm.sidecar import Sidecar, SidecarError, SidecarSettings, new_key

# The largest difference of a token's logprob, in nats. bf16 keeps 8 bits: a logit of 16 is known to 1/16.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.5}

DEFAULT_ENVIRONMENT = Path(".venv-vllm")

_SIZES = {
    "hidden_size": 896, "intermediate_size": 2432, "num_hidden_layers": 8, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 8192, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
}  # fmt: skip
RANDOM = {
    "qwen2.5": _SIZES | {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True},
    "llama3": _SIZES
    | {
        "model_type": "llama",
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
}  # fmt: skip


class Passed(NamedTuple):
    """What a pass over prompt + tokens i32[n] says."""

    logprobs: np.ndarray  # f32[n], of the tokens
    best: np.ndarray  # i32[n], the likeliest token at each place
    best_logprobs: np.ndarray  # f32[n]


Forward = Callable[[np.ndarray, np.ndarray], Passed]  # (prompt, tokens) -> Passed


class Difference(NamedTuple):
    """One place where two implementations differ."""

    prompt: int
    place: int
    tokens: tuple[int, int]
    logprobs: tuple[float, float]

    def in_words(self) -> str:
        where = f"at prompt {self.prompt}, new token {self.place}"
        (a, b), (x, y) = self.tokens, self.logprobs
        if a == b:
            return f"the first difference is {where}: token {a}, logprobs {x:.5f} and {y:.5f}"
        return f"the first different greedy choice is {where}: tokens {a} and {b}, {abs(y - x):.5f} nats apart"


@dataclass
class Pair:
    """How two implementations compare."""

    names: tuple[str, str]
    differences: list[np.ndarray] = field(default_factory=list)  # log second - log first of tokens the first drew
    same_choices: int = 0
    choices: int = 0
    first: Difference | None = None  # the first beyond the tolerance

    def compare(self, prompt: int, tokens: np.ndarray, a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
        """Logprobs a and b f32[n] of the same tokens in the same context."""
        self.differences.append(b.astype(np.float64) - a)
        beyond = np.flatnonzero(~(np.abs(b - a) <= tolerance))  # not <=: NaN is beyond
        if len(beyond) and self.first is None:
            i = int(beyond[0])
            self.first = Difference(prompt, i, (int(tokens[i]), int(tokens[i])), (float(a[i]), float(b[i])))

    def compare_choices(self, prompt: int, a: np.ndarray, b: np.ndarray, gaps: np.ndarray, tolerance: float) -> None:
        """Greedy tokens in the same contexts, and how far apart the two choices are in logprob, f32[n]."""
        same = a == b
        self.same_choices, self.choices = self.same_choices + int(same.sum()), self.choices + len(same)
        wrong = np.flatnonzero(~same & ~(np.abs(gaps) <= tolerance))
        if len(wrong) and self.first is None:
            i = int(wrong[0])
            self.first = Difference(prompt, i, (int(a[i]), int(b[i])), (0.0, float(gaps[i])))

    @property
    def all(self) -> np.ndarray:
        return np.concatenate(self.differences)

    @property
    def kl(self) -> float:
        """KL(first || second) in nats a token, estimated from tokens of the first (k3)."""
        return float(np.mean(np.expm1(self.all) - self.all))


def decoder_forward(graphdef: nnx.GraphDef, params: Any, dtype: str, length: int) -> Forward:
    """Passes by models/decoder.py, every sequence padded to `length`."""

    @jax.jit
    def run(params: Any, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, ...]:
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        model: Decoder = nnx.merge(graphdef, params)
        positions = jnp.arange(length)[None]
        hidden = model(tokens, positions, segments, Compute(jnp.dtype(dtype)))[0]
        logits = jnp.einsum("td,vd->tv", hidden, model.unembedding(), preferred_element_type=jnp.float32)
        return _summary(logits, jnp.roll(tokens[0], -1))

    def forward(prompt: np.ndarray, tokens: np.ndarray) -> Passed:
        whole = np.concatenate([prompt, tokens])
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(whole)] = whole
        segments = (np.arange(length)[None] < len(whole)).astype(np.int32)
        place = slice(len(prompt) - 1, len(whole) - 1)
        return Passed(*(np.asarray(x)[place] for x in run(params, padded, segments)))

    return forward


def _summary(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(logprobs, targets[:, None], 1)[:, 0], logprobs.argmax(-1), logprobs.max(-1)


def transformers_forward(folder: Path, dtype: str) -> Forward:
    """Passes by transformers. Raises ImportError without torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def forward(prompt: np.ndarray, tokens: np.ndarray) -> Passed:
        whole = torch.tensor(np.concatenate([prompt, tokens]).astype(np.int64))
        with torch.inference_mode():
            logits = model(whole[None]).logits[0, len(prompt) - 1 : -1].float()
        logprobs = torch.log_softmax(logits, -1)
        chosen = logprobs.gather(1, whole[len(prompt) :, None])[:, 0]
        best = logprobs.max(-1)
        return Passed(chosen.numpy(), best.indices.numpy(), best.values.numpy())

    return forward


def compare_all(
    engines: dict[str, Any],
    forwards: dict[str, Forward],
    prompts: Sequence[np.ndarray],
    new_tokens: int,
    limit: float,
    say: Callable[[str], None] = lambda text: None,
) -> list[Pair]:
    """Every pair of implementations; `limit` is the tolerance in nats. Says what is under way."""
    sampled: dict[str, list[Completion]] = {}
    greedy: dict[str, list[Completion]] = {}
    for name, engine in engines.items():
        say(f"{name} samples {len(prompts)} completions twice")
        sampled[name], greedy[name] = (_completions(engine, prompts, new_tokens, t) for t in (1.0, 0.0))
    passes: dict[tuple[str, str], list[Passed]] = {}
    for f, forward in forwards.items():
        for e in engines:
            say(f"{f} computes the logprobs of {e}'s tokens")
            passes[f, e] = [forward(p, c.tokens) for p, c in zip(prompts, sampled[e])]
    pairs = []
    for e in engines:
        for f, forward in forwards.items():
            pair = Pair((e, f))
            for i, (prompt, ours, theirs) in enumerate(zip(prompts, sampled[e], passes[f, e])):
                pair.compare(i, ours.tokens, ours.logprobs, theirs.logprobs, limit)
                choice = greedy[e][i]
                seen = forward(prompt, choice.tokens)
                pair.compare_choices(i, choice.tokens, seen.best, seen.best_logprobs - seen.logprobs, limit)
            pairs.append(pair)
    for a, b in _two(list(forwards)):
        pair = Pair((a, b))
        for e in engines:
            for i, (c, x, y) in enumerate(zip(sampled[e], passes[a, e], passes[b, e])):
                pair.compare(i, c.tokens, x.logprobs, y.logprobs, limit)
                pair.compare_choices(i, x.best, y.best, x.best_logprobs - y.best_logprobs, limit)
        pairs.append(pair)
    for a, b in _two(list(engines)):
        pairs.append(_compare_engines(a, b, engines[b], prompts, sampled[a], greedy[a], greedy[b], limit))
    return pairs


def _compare_engines(
    a: str,
    b: str,
    scorer: VllmEngine,
    prompts: Sequence[np.ndarray],
    sampled: Sequence[Completion],
    greedy_a: Sequence[Completion],
    greedy_b: Sequence[Completion],
    limit: float,
) -> Pair:
    """Tokens drawn by one engine and scored by the other; greedy tokens up to the first that differs."""
    pair = Pair((a, b))

    async def score_all() -> list[np.ndarray]:
        return list(await asyncio.gather(*(scorer.score(p, c.tokens) for p, c in zip(prompts, sampled))))

    for i, (ours, scores) in enumerate(zip(sampled, asyncio.run(score_all()))):
        pair.compare(i, ours.tokens, ours.logprobs, scores, limit)
        x, y = greedy_a[i], greedy_b[i]
        same = int(np.argmin(np.append(x.tokens == y.tokens, False))) + 1  # places with the same context
        gaps = (x.logprobs - y.logprobs)[:same]
        pair.compare_choices(i, x.tokens[:same], y.tokens[:same], gaps, limit)
    return pair


def _completions(engine: Any, prompts: Sequence[np.ndarray], new_tokens: int, temperature: float) -> list[Completion]:
    params = SamplingParams(max_new_tokens=new_tokens, temperature=temperature)
    return [completions[0] for completions in generate(engine, prompts, params)]


def _two(names: list[str]) -> Iterator[tuple[str, str]]:
    return ((a, b) for i, a in enumerate(names) for b in names[i + 1 :])


def random_prompts(count: int, length: int, vocab_size: int) -> list[np.ndarray]:
    """i32[n] with n from length / 2 to length."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, rng.integers(length // 2, length + 1)).astype(np.int32) for _ in range(count)]


def write_random_model(shape: str, folder: Path) -> None:
    """A Hugging Face folder with a model of RANDOM[shape], weights large enough for attention to matter."""
    config = from_hf(dict(RANDOM[shape], head_dim=64), shape)
    model = initialize(Decoder(config), jax.random.key(0), scale=0.04)
    save_hf(nnx.state(model), config, folder)


def crosscheck(folder: Path, dtype: str, options: argparse.Namespace, console: Console) -> bool:
    """Compares the implementations of the model in `folder`; whether all pairs agree within the tolerance."""
    limit = options.tolerance or TOLERANCES[dtype]
    config, graphdef, params = load_model(folder, dtype=jnp.float32)
    length = options.prompt_length + options.new_tokens
    prompts = random_prompts(options.prompts, options.prompt_length, config.vocab_size)
    forwards = {"decoder": decoder_forward(graphdef, params, dtype, length)}
    try:
        forwards["transformers"] = transformers_forward(folder, dtype)
    except ImportError:
        console.print("transformers is left out: it needs torch (pip install torch)")
    with ExitStack() as stack:
        slots = min(options.prompts, 64)
        engine = JaxEngine(
            graphdef,
            params,
            slots=slots,
            max_length=length,
            max_new_tokens=options.new_tokens,
            dtype=jnp.dtype(dtype),
            unroll=False,
        )
        engines: dict[str, Any] = {"jax engine": engine}
        missing = _missing_vllm(options)
        if missing:
            console.print(f"vllm is left out: {missing}")
        elif not options.no_vllm:
            vllm = stack.enter_context(closing(_vllm(folder, config, dtype, length, options)))
            vllm.load_weights(params, 0)
            engines["vllm"] = vllm
            if vllm.sync.dtype != dtype:
                raise SidecarError(f"{options.sidecar} runs in {vllm.sync.dtype}; give --dtypes {vllm.sync.dtype}")
        pairs = compare_all(engines, forwards, prompts, options.new_tokens, limit, console.print)
    _show(console, f"{options.names[folder]}, {dtype}", pairs, limit)
    return all(pair.first is None for pair in pairs)


def _missing_vllm(options: argparse.Namespace) -> str:
    """Why vLLM is left out; empty where it is installed, not wanted, or wanted by name."""
    if options.no_vllm or options.sidecar or options.environment:
        return ""
    if any(DEFAULT_ENVIRONMENT.glob("lib/python*/site-packages/vllm")):
        return ""
    return f"{DEFAULT_ENVIRONMENT} does not have it; run `make sidecar`, or give --environment or --sidecar"


def _vllm(folder: Path, config: ModelConfig, dtype: str, length: int, options: argparse.Namespace) -> VllmEngine:
    key = os.environ.get(KEY_VARIABLE, "")
    if options.sidecar:
        client = ClientSettings(key, wait_s=60.0)
        return VllmEngine(config, addresses=[options.sidecar], max_length=length, settings=client, say=print)
    key = key or new_key()
    settings = SidecarSettings(
        model=folder,
        python=(options.environment or DEFAULT_ENVIRONMENT) / "bin/python",
        dtype=dtype,
        max_length=length + 1,
        dummy_weights=True,
        tokenizer=False,
        arguments=tuple(options.vllm_argument),
        key=key,
    )
    sidecar = Sidecar(settings, options.log_folder)
    return VllmEngine(config, sidecar=sidecar, max_length=length, settings=ClientSettings(key), say=print)


def _show(console: Console, title: str, pairs: Sequence[Pair], limit: float) -> None:
    table = Table(title=f"{title} (tolerance {limit:g} nats)", title_justify="left")
    for heading in ("pair", "tokens", "max |dlogprob|", "mean |dlogprob|", "KL, nats a token", "same greedy token", ""):
        table.add_column(heading, justify="left" if heading in ("pair", "") else "right")
    for p in pairs:
        table.add_row(
            f"{p.names[0]} / {p.names[1]}",
            f"{len(p.all):,}",
            f"{np.abs(p.all).max():.2e}",
            f"{np.abs(p.all).mean():.2e}",
            f"{p.kl:.1e}",
            f"{p.same_choices}/{p.choices}",
            "differs" if p.first else "agrees",
        )
    console.print(table)
    for p in pairs:
        if p.first is not None:
            console.print(f"{p.names[0]} / {p.names[1]}: {p.first.in_words()}")


@command(failed=2)
def main(arguments: Sequence[str]) -> int:
    """0 when all implementations agree, 1 when a pair does not, 2 with a line on stderr when they cannot compare."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.crosscheck", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, action="append", default=[], help="what config.model.path may be")
    parser.add_argument("--random", choices=sorted(RANDOM), action="append", default=[], help="a random model")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--sidecar", default="", metavar="URL", help=f"a running one; its key is in {KEY_VARIABLE}")
    parser.add_argument("--no-vllm", action="store_true", help="the other three alone")
    parser.add_argument("--environment", type=Path, help=f"where vLLM is installed; default: {DEFAULT_ENVIRONMENT}")
    parser.add_argument("--vllm-argument", action="append", default=[], help="one more of vLLM's command line")
    parser.add_argument("--prompts", type=at_least(1), default=32)
    parser.add_argument("--prompt-length", type=at_least(1), default=64, help="tokens")
    parser.add_argument("--new-tokens", type=at_least(1), default=32)
    parser.add_argument("--tolerance", type=float, default=0.0, help=f"nats; default by dtype: {TOLERANCES}")
    parser.add_argument("--log-folder", type=Path, default=Path("runs/crosscheck"))
    options = parser.parse_args(arguments)
    if not options.model and not options.random:
        parser.error("give --model MODEL or --random SHAPE")
    wrong = [dtype for dtype in options.dtypes.split(",") if dtype not in TOLERANCES]
    if wrong:
        raise UserError(f"--dtypes {wrong[0]!r} must be of: {', '.join(TOLERANCES)}")
    agree = True
    with tempfile.TemporaryDirectory() as temporary:
        options.names = {}
        for shape in options.random:
            options.names[Path(temporary) / shape] = f"random {shape}"
            write_random_model(shape, Path(temporary) / shape)
        for i, model in enumerate(options.model):
            folder = model
            if is_run(model) or not (model / "config.json").is_file():  # others read Hugging Face folders alone
                folder = Path(temporary) / f"{i}"
                export_model(model, folder)
            options.names[folder] = model.name
        for folder in options.names:
            for dtype in options.dtypes.split(","):
                agree &= crosscheck(folder, dtype, options, Console(width=140))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
