"""Linear heads on the decoder's final hidden states: one number per token each, such as a value or a reward.

Heads stand beside the decoder, never inside it: whatever samples, exports or serves the decoder does not see them. To
train both together, `with_heads` puts them into one state and `without_heads` takes them apart again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models.decoder import parameter
from models.lora import split_params

Params = Any  # nnx.State of a Decoder, or its trained part

_KEY = "heads"  # beside the names of the decoder's own parameters


class Head(NamedTuple):
    """What a head reads, and how it starts."""

    name: str
    # False: the hidden state before the token, from which the token was drawn (a value). True: the hidden state after
    # it, which has seen the token (a reward, read at the last one).
    after: bool = False
    scale: float = 0.0  # standard deviation of the initial weights
    # True: it reads a decoder of its own, which starts as a copy of the other one. With adapters it has its own ones,
    # beside the frozen parameters that both share.
    own: bool = False
    bias: bool = True  # False: the weights alone


def initial_heads(heads: Sequence[Head], params: Params, key: jax.Array) -> nnx.State:
    """{name: {"weight": f32[width], "bias": f32[]}} of each head; weights normal(0, scale), biases, if any, zero.

    The width is that of the decoder's `params`; of a head with a decoder of its own, "decoder" is a copy of what is
    trained of them (models/lora.py).
    """
    width = params["final_norm"].shape[-1]
    key = jax.random.fold_in(key, 0x48656164)  # separate from the keys of the decoder's parameters

    def initial(index: int, head: Head) -> dict[str, Any]:
        weight, bias = parameter((width,), (None,), jnp.dtype(jnp.float32)), parameter((), (), jnp.dtype(jnp.float32))
        drawn = head.scale * jax.random.normal(jax.random.fold_in(key, index), (width,), jnp.float32)
        own = {"decoder": jax.tree.map(jnp.copy, split_params(params)[0])} if head.own else {}
        return {"weight": weight.replace(drawn), **({"bias": bias} if head.bias else {}), **own}

    return nnx.State({head.name: initial(i, head) for i, head in enumerate(heads)})


def head_outputs(
    heads: Sequence[Head],
    state: nnx.State,  # from `initial_heads`
    hidden: jax.Array,  # [b, T, D], the decoder's output
    of_own: Callable[[Params], jax.Array] | None = None,  # the same of a head's own decoder, from what it trains
) -> dict[str, jax.Array]:  # f32[b, T] by name
    """What each head says at each token, computed in f32.

    A head that reads before the token gives 0 at a row's first token, and at the first token of a later sequence in the
    row a number from the sequence before it: a loss must not look there, as with logprobs.
    """
    outputs = {}
    for head in heads:
        parts: Any = state[head.name]
        wide = (of_own(parts["decoder"]) if head.own and of_own else hidden).astype(jnp.float32)
        y = jnp.einsum("btd,d->bt", wide, parts["weight"][...], precision="highest")
        y = y + parts["bias"][...] if head.bias else y
        outputs[head.name] = y if head.after else jnp.pad(y[:, :-1], ((0, 0), (1, 0)))
    return outputs


def with_heads(params: Params, heads: nnx.State | None) -> Params:
    """Parameters and heads in one state; `params` itself without heads."""
    return params if heads is None else nnx.merge_state(params, nnx.State({_KEY: heads}))


def without_heads(weights: Params) -> tuple[Params, nnx.State | None]:
    """What `with_heads` put together: (params, heads), with None for no heads."""
    if _KEY not in weights:
        return weights, None
    heads, params = nnx.split_state(weights, nnx.PathContains(_KEY), ...)
    return params, heads[_KEY]
