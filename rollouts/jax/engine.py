"""The in-process engine: jitted prefill, a decoding loop that stays on the device, continuous batching.

A fixed number of rows ("slots") is decoded together. Waiting requests get slots as soon as enough of them are free;
requests for the same prompt share one prefill. The shapes of all programs depend only on the engine's settings, and
every row has its own random key, so a request gets the same tokens whatever else is in the batch (up to rounding: when
half of the rows are finished, a program for fewer rows decodes the others). A request that continues a sequence finds
the keys and values of the earlier tokens in its slot, which is reserved until the sequence is released.

Axes: B slots, N new tokens, P prompts of a prefill, T their padded length, V vocabulary.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict, deque
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from models.decoder import Compute
from rollouts.engine import Completion, SamplingParams, UnsupportedError, check_prompt
from rollouts.jax.programs import MAX_STOP_TOKENS, Rows, Sizes, make_programs

REFILL = 8  # waiting requests get their slots when this fraction (1 in REFILL) is free
LOOK_STEPS = 8  # decoding steps between checks by the host for stop strings and finished turns


@dataclass(eq=False)
class _Request:
    """The work of one row."""

    prompt: np.ndarray
    params: SamplingParams
    key: np.ndarray  # u32[2]
    done: asyncio.Future[Completion]
    cached: int = 0  # prompt tokens that the slot already had
    count: int = 0  # tokens sampled so far
    version: int = -1  # of the weights when it got its slot
    changes: list[tuple[int, int]] = field(default_factory=list)  # see Completion


class _Kept(NamedTuple):
    """A slot whose sequence may be continued."""

    slot: int
    known: np.ndarray  # i32[n], the tokens whose keys and values it holds


class JaxEngine:
    """Samples from a Decoder in this process. See rollouts.engine.Engine for the protocol.

    Args:
        graphdef: of the Decoder (`nnx.split(decoder)[0]`).
        params: its parameters, shared with the caller where they need no conversion (see Serving.load); or their
            shapes (ShapeDtypeStructs among them), and then `load_weights` must come before the first request.
        slots: rows decoded together.
        max_length: tokens of a prompt and its completion together, at most.
        max_new_tokens: the largest value that a request may have.
        tokenizer: anything with `decode(tokens) -> str`; needed only for stop strings.
        unroll: unroll the layers of the decoding step: faster on CPU, compile time grows with the layers.
        turns: a lock held while programs run, where another thread uses the same devices.
        mesh: slots are sharded over all its axes except tensor (and rounded up to a multiple), kv heads over tensor.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: Any,
        *,
        slots: int = 64,
        max_length: int = 512,
        max_new_tokens: int | None = None,
        dtype: jnp.dtype = jnp.dtype(jnp.float32),
        unroll: bool = True,
        mesh: Mesh | None = None,
        prefill_rows: int = 8,
        tokenizer: Any = None,
        version: int = 0,
        turns: AbstractContextManager[Any] = nullcontext(),
    ):
        self._turns = turns
        self.max_length, self.max_new_tokens = max_length, min(max_new_tokens or max_length, max_length)
        self.tokenizer = tokenizer
        sizes = Sizes(slots, max_length, self.max_new_tokens, prefill_rows)
        self.programs = make_programs(graphdef, params, Compute(dtype, unroll=unroll, mesh=mesh), sizes)
        self.slots = self.programs.sizes.slots
        self.vocab_size = self.programs.config.vocab_size
        self._begin(version)
        if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            self.load_weights(params, version)

    def _begin(self, version: int) -> None:
        """Without weights and requests."""
        self.version = version
        self._weights: Any = ()
        self._state: Any = None  # allocated for the first request, when the caller may have dropped the parameters
        self._waiting: deque[_Request] = deque()
        self._running: dict[int, _Request] = {}  # by slot
        self._kept: dict[int, _Kept] = {}  # by sequence
        self._changed = asyncio.Event()  # there is a new request or a free slot
        self._driver: asyncio.Task[None] | None = None

    def another(self) -> JaxEngine:
        """An engine with the same programs, and weights and slots of its own, for another thread."""
        other = copy(self)
        other._begin(-1)
        return other

    def load_weights(self, params: Any, version: int) -> None:
        """Samples from `params` from now on. Raises RuntimeError while requests are running."""
        if self._running:
            raise RuntimeError(f"load_weights with {len(self._running)} requests running; await them first")
        self._load(params, version)
        self._kept.clear()  # their keys and values belong to the old weights

    def change_weights(self, params: Any, version: int, recompute: bool = False) -> None:
        """`load_weights` between two turns, while requests are running: they continue with the new weights.

        The keys and values of their earlier tokens stay those of the old weights; or `recompute` makes them anew, so
        that every logprob is that of one version, at the cost of a prefill of all that is running.
        """
        self._load(params, version)
        for request in self._running.values():
            request.changes.append((request.count, version))
        if recompute:
            self._kept.clear()
            self._recompute()

    def _load(self, params: Any, version: int) -> None:
        self._weights = ()  # so that old and new weights are not in memory together
        with self._turns:
            self._weights, self.version = jax.block_until_ready(self.programs.load(params)), version

    def unload(self) -> None:
        """Drops weights and cache. Raises RuntimeError while requests are running."""
        if self._running:
            raise RuntimeError(f"unload with {len(self._running)} requests running; await them first")
        self._weights, self._state = (), None
        self._kept.clear()

    def abandon(self) -> None:
        """Forgets all requests; nobody awaits them any more. Between two turns."""
        self._fail(asyncio.CancelledError())
        self._kept.clear()
        self._state = None

    def release(self, sequence: int) -> None:
        """Frees the slot of the sequence."""
        self._kept.pop(sequence, None)
        self._changed.set()

    def close(self) -> None:
        """Nothing to free."""

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        """`params.n` completions of prompt i32[n]; see Engine.sample for the errors."""
        waiting = self.submit(prompt, params)
        if self._driver is None or self._driver.done():
            self._changed = asyncio.Event()
            self._driver = asyncio.get_running_loop().create_task(self._drive())
        return list(await asyncio.gather(*waiting))

    def submit(self, prompt: np.ndarray, params: SamplingParams) -> list[asyncio.Future[Completion]]:
        """What `sample` awaits, for a caller that takes the turns itself: see `turn`."""
        self._check(prompt, params)
        loop = asyncio.get_running_loop()
        requests = [
            _Request(np.asarray(prompt, np.int32), params, _row_key(params.seed, i), loop.create_future())
            for i in range(params.n)
        ]
        self._waiting.extend(requests)
        self._changed.set()
        return [r.done for r in requests]

    @property
    def ready(self) -> bool:
        """Whether a turn would do anything."""
        if self._running or not self._waiting:
            return bool(self._running)
        return bool(self._free()) or any(r.params.sequence in self._kept for r in self._waiting)

    @property
    def running(self) -> int:
        """Slots that are being decoded."""
        return len(self._running)

    async def turn(self, most: int) -> int:
        """One turn of the device: gives free slots to waiting requests, and decodes `most` steps or fewer.

        Returns the steps. What it does depends only on the requests, releases and weights before it, in their order.
        """
        try:
            await asyncio.to_thread(self._take_turn, most)
            return self._deliver()
        except BaseException as error:
            self._fail(error)
            raise

    def _check(self, prompt: np.ndarray, params: SamplingParams) -> None:
        if not self._weights:
            raise RuntimeError("the engine has no weights; call load_weights before sample")
        check_prompt(prompt, params, self.vocab_size, self.max_length)
        if params.max_new_tokens > self.max_new_tokens:
            raise ValueError(f"max_new_tokens {params.max_new_tokens} exceeds the engine's {self.max_new_tokens}")
        if len(params.stop_tokens) > MAX_STOP_TOKENS:
            raise UnsupportedError(f"{len(params.stop_tokens)} stop tokens; the engine takes up to {MAX_STOP_TOKENS}")
        if params.stop_strings and self.tokenizer is None:
            raise ValueError("stop_strings need an engine that has a tokenizer")

    async def _drive(self) -> None:
        """Runs the device until no request is left. Episodes continue between two calls of the device."""
        try:
            while self._waiting or self._running:
                await asyncio.sleep(0)  # lets ready coroutines add their requests to this round
                self._changed.clear()
                if not self.ready:
                    await self._changed.wait()  # all slots are reserved for sequences whose tools are running
                    continue
                await asyncio.to_thread(self._take_turn, self.max_new_tokens)
                self._deliver()
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """Ends all requests by this error."""
        for request in [*self._running.values(), *self._waiting]:
            if not request.done.done() and isinstance(error, Exception):
                request.done.set_exception(error)
            else:
                request.done.cancel()
        self._waiting.clear()
        self._running.clear()

    def _free(self) -> list[int]:
        """The slots that a new sequence may take."""
        taken = {*self._running, *(kept.slot for kept in list(self._kept.values()))}
        return [b for b in range(self.slots) if b not in taken]

    def _take_turn(self, most: int) -> None:
        with self._turns:
            self._advance(most)
            jax.block_until_ready(self._state.rows.count)

    def _advance(self, most: int) -> None:
        """Fills the free slots, then decodes until enough rows have finished, or for `most` steps."""
        if self._state is None:
            self._state = self.programs.empty_state()
        self._admit()
        if not self._running:
            return  # the waiting requests were cancelled
        running = self._running.values()
        params = [r.params for r in running]
        look = any(p.stop_strings or p.sequence for p in params)
        steps = min(most, LOOK_STEPS) if look else most
        # While requests wait, some free slots are worth a refill; otherwise decode until fewer rows suffice.
        copies = (self._waiting or look) and not self.programs.by_rows  # of the cache, for fewer rows
        widths = [0, self.slots] if copies else [0, *self.programs.widths]
        width = bisect_left(widths, len(running))
        spare = max(0, len(running) - max(1, self.slots // REFILL)) if self._waiting else widths[width - 1]
        filtered = any(p.top_p < 1 or p.top_k > 0 or p.min_p > 0 for p in params)
        # Reads only the part of the cache in use: decoding stops where the longest row reaches its end.
        longest = max(len(r.prompt) + r.count for r in running)
        parts = bisect_left(self.programs.lengths, longest) + 1
        steps = min(steps, self.programs.lengths[parts - 1] - longest + 1)
        chosen = self._slots_of(widths[width])
        self._state = self.programs.decode(
            self._weights, self._state, steps, spare, chosen, filtered=filtered, parts=parts
        )

    def _slots_of(self, width: int) -> np.ndarray | None:
        """`width` slots that include all running ones; None: all slots."""
        if width == self.slots:
            return None
        others = [b for b in range(self.slots) if b not in self._running]
        return np.array([*self._running, *others][:width], np.int32)

    def _admit(self) -> None:
        """Puts waiting requests into slots: first those that own one, then others into the free ones."""
        continuing: list[tuple[_Request, _Kept]] = []
        fresh: deque[_Request] = deque()
        for _ in range(len(self._waiting)):
            request = self._waiting.popleft()
            kept = self._kept.pop(request.params.sequence, None)
            if request.done.done():
                continue
            if kept is not None and np.array_equal(request.prompt[: len(kept.known)], kept.known):
                continuing.append((request, kept))
            else:
                fresh.append(request)
        self._admit_continuing(continuing)
        free = self._free()
        self._admit_fresh(free, [fresh.popleft() for _ in range(min(len(free), len(fresh)))])
        self._waiting.extendleft(reversed(fresh))

    def _admit_fresh(self, free: list[int], requests: list[_Request]) -> None:
        """Computes each distinct prompt once, several of similar length at a time, and puts them into free slots."""
        by_bucket: dict[int, dict[bytes, list[_Request]]] = defaultdict(lambda: defaultdict(list))
        for request in requests:
            by_bucket[self.programs.bucket(len(request.prompt))][request.prompt.tobytes()].append(request)
        for bucket, by_prompt in by_bucket.items():
            same = list(by_prompt.values())
            together = self.programs.prefill_rows(bucket)
            for first in range(0, len(same), together):
                part = enumerate(same[first : first + together])
                taken = [(free.pop(0), prompt, request) for prompt, some in part for request in some]
                self._state = self.programs.prefill(self._weights, self._state, *self._prefill_inputs(bucket, taken))

    def _admit_continuing(self, requests: list[tuple[_Request, _Kept]]) -> None:
        """Computes the new tokens of requests whose slots hold the rest, several of similar length at a time."""
        by_bucket: dict[int, list[tuple[_Request, _Kept]]] = defaultdict(list)
        for request, kept in requests:
            by_bucket[self.programs.bucket(len(request.prompt) - len(kept.known))].append((request, kept))
        for bucket, same in by_bucket.items():
            together = self.programs.prefill_rows(bucket)
            for first in range(0, len(same), together):
                inputs = self._extend_inputs(bucket, same[first : first + together])
                self._state = self.programs.extend(self._weights, self._state, *inputs)

    def _recompute(self) -> None:
        """The keys and values of all running rows, by the current weights: everything before the token fed next."""
        if not self._running:
            return
        tokens = jax.device_get(self._state.tokens)
        by_bucket: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for slot, request in self._running.items():
            known = np.concatenate([request.prompt, tokens[slot, : request.count]])[:-1]
            if len(known):
                by_bucket[self.programs.bucket(len(known))].append((slot, known))
        rows, nothing = self._no_rows()
        for bucket, same in by_bucket.items():
            together = self.programs.prefill_rows(bucket)
            for first in range(0, len(same), together):
                part = same[first : first + together]
                inputs = self._known_inputs(bucket, [(slot, 0, known) for slot, known in part])
                with self._turns:
                    self._state = self.programs.extend(self._weights, self._state, *inputs, nothing, rows)

    def _known_inputs(self, length: int, part: list[tuple[int, int, np.ndarray]]) -> tuple[np.ndarray, ...]:
        """Tokens and positions i32[P, length], slots i32[P]: of each slot, tokens from a position on."""
        together = self.programs.prefill_rows(length)
        tokens = np.zeros((together, length), np.int32)
        positions = np.full((together, length), self.max_length, np.int32)  # padding is not written
        slots = np.zeros(together, np.int32)
        for i, (slot, first, new) in enumerate(part):
            tokens[i, : len(new)], positions[i, : len(new)] = new, np.arange(first, first + len(new))
            slots[i] = slot
        return tokens, positions, slots

    def _extend_inputs(self, length: int, part: list[tuple[_Request, _Kept]]) -> tuple[Any, ...]:
        rows, fresh = self._no_rows()
        new = [(slot, len(known), request.prompt[len(known) :]) for request, (slot, known) in part]
        for request, (slot, known) in part:
            fresh[slot], request.cached = True, len(known)
            self._start(rows, slot, request)
        return *self._known_inputs(length, new), fresh, rows

    def _start(self, rows: Rows, slot: int, request: _Request) -> None:
        """Puts the request's values in the row of its slot."""
        request.version = self.version
        _set_row(rows, slot, request)
        self._running[slot] = request

    def _no_rows(self) -> tuple[Rows, np.ndarray]:
        """Blank settings for all slots, and bool[B], which are fresh; both to be filled in."""
        return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), self._state.rows), np.zeros(self.slots, bool)

    def _prefill_inputs(self, length: int, taken: list[tuple[int, int, _Request]]) -> tuple[Any, ...]:
        together = self.programs.prefill_rows(length)
        tokens = np.zeros((together, length), np.int32)
        lengths = np.zeros(together, np.int32)
        source = np.zeros(self.slots, np.int32)
        rows, fresh = self._no_rows()
        for slot, prompt, request in taken:
            n = len(request.prompt)
            tokens[prompt, :n], lengths[prompt] = request.prompt, n
            source[slot], fresh[slot] = prompt, True
            self._start(rows, slot, request)
        return tokens, lengths, source, fresh, rows

    def _deliver(self) -> int:
        """Completes the requests whose rows have finished. Returns the steps that the longest row has made."""
        counts, active = jax.device_get((self._state.rows.count, self._state.rows.active))
        steps = max((int(counts[slot]) - request.count for slot, request in self._running.items()), default=0)
        for slot, request in self._running.items():
            request.count = int(counts[slot])
        cut = self._stop_string_cuts(counts)
        given_up = [slot for slot, request in self._running.items() if request.done.done()]
        finished = [slot for slot in self._running if not active[slot] or slot in cut or slot in given_up]
        if not finished:
            return steps
        tokens, logprobs = jax.device_get((self._state.tokens, self._state.logprobs))
        for slot in finished:
            request = self._running.pop(slot)
            if slot in given_up:
                continue
            n = cut.get(slot, int(counts[slot]))
            stopped = slot in cut or tokens[slot, n - 1] in request.params.stop_tokens
            reason: Literal["stop", "length"] = "stop" if stopped else "length"
            if request.params.sequence:  # the last token's keys may not be computed yet
                known = np.concatenate([request.prompt, tokens[slot, : n - 1]])
                self._kept[request.params.sequence] = _Kept(slot, known)
            sampled = tokens[slot, :n].copy(), logprobs[slot, :n].copy()
            changes = tuple((first, version) for first, version in request.changes if 0 < first < n)
            oldest = max((version for first, version in request.changes if not first), default=request.version)
            request.done.set_result(Completion(*sampled, reason, oldest, request.cached, changes))
        if cut or given_up:
            rows, still = self._state.rows, np.array([active[b] and b in self._running for b in range(self.slots)])
            # With the same sharding; otherwise the programs would be compiled again.
            placed = jax.device_put(still, rows.active.sharding) if rows.active.committed else jnp.asarray(still)
            self._state = self._state._replace(rows=rows._replace(active=placed))
        return steps

    def _stop_string_cuts(self, counts: np.ndarray) -> dict[int, int]:
        """For each slot whose text contains a stop string: the number of tokens until it is complete."""
        slots = [slot for slot, request in self._running.items() if request.params.stop_strings]
        if not slots:
            return {}
        tokens, cuts = jax.device_get(self._state.tokens), {}
        for slot in slots:
            n = self._first_stop(tokens[slot, : counts[slot]], self._running[slot].params.stop_strings)
            if n is not None:
                cuts[slot] = n
        return cuts

    def _first_stop(self, tokens: np.ndarray, strings: tuple[str, ...]) -> int | None:
        """The fewest tokens that contain one of the strings, or None. Ends checked before contain none."""
        unseen = max(1, len(tokens) - LOOK_STEPS + 1)
        # Each token of a string holds at least one byte of it; a few more, for characters that span tokens.
        start = max(0, unseen - max(len(s.encode()) for s in strings) - 4)

        def stops(n: int) -> bool:
            text = self.tokenizer.decode(tokens[start:n])
            return any(string in text for string in strings)

        return next(n for n in range(unseen, len(tokens) + 1) if stops(n)) if stops(len(tokens)) else None


def _set_row(rows: Rows, slot: int, request: _Request) -> None:
    """Sets the request's values in the row of its slot."""
    p, n = request.params, len(request.prompt)
    stop = np.full(MAX_STOP_TOKENS, -1, np.int32)
    stop[: len(p.stop_tokens)] = p.stop_tokens
    # The first decoding step reads the last prompt token, so that all logits come from one program.
    values = {
        "token": request.prompt[-1], "position": n - 1, "active": True, "count": 0, "limit": p.max_new_tokens,
        "stop_tokens": stop, "key": request.key, "temperature": p.temperature, "top_p": p.top_p,
        "top_k": p.top_k, "min_p": p.min_p,
    }  # fmt: skip
    for name, value in values.items():
        getattr(rows, name)[slot] = value


def _row_key(seed: int, index: int) -> np.ndarray:
    """u32[2]: the key of the index-th completion of a request."""
    return np.random.SeedSequence([seed, index]).generate_state(2)
