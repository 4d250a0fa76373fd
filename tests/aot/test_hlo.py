"""Compiled programs read: collectives and memory traffic against hand counts, loops included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from conftest import on_eight_devices

from jaxrl.aot.hlo import collectives, hbm_bytes

# 2 x 3 = 6 trips around the all-gather: the outer loop says its trips as CPU does, the inner one counts 1, 3, 5 as TPU.
NESTED = """\
HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_condition (p: (s32[], f32[64,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %p = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT, metadata={op_name="jit(f)/while/cond/lt"}
}

%inner_body (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %p = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %w = f32[64,32]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %half = bf16[8,32]{1,0:T(8,128)(2,1)S(1)} fusion(%w), kind=kLoop, calls=%cut
  %all-gather.1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%half), channel_id=1, replica_groups=[1,8]<=[8], \
dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(f)/while/body/gather"}
  ROOT %t = (s32[], f32[64,32]) tuple(%next, %w)
}

%cut (w: f32[64,32]) -> bf16[8,32] {
  %w = f32[64,32]{1,0} parameter(0)
  %s = f32[8,32]{1,0} slice(%w), slice={[0:8], [0:32]}
  ROOT %c = bf16[8,32]{1,0} convert(%s)
}

%outer_condition (p: (s32[], f32[64,32])) -> pred[] {
  %p = (s32[], f32[64,32]) parameter(0)
  ROOT %true = pred[] constant(true)
}

%outer_body (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %p = (s32[], f32[64,32]) parameter(0)
  %one = s32[] constant(1)
  %w = f32[64,32]{1,0} get-tuple-element(%p), index=1
  %start = (s32[], f32[64,32]) tuple(%one, %w)
  ROOT %while.1 = (s32[], f32[64,32]) while(%start), condition=%inner_condition, body=%inner_body
}

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[16,32] {
  %input = f32[64,32]{1,0} parameter(0)
  %all-reduce.9 = f32[64,32]{1,0} all-reduce(%input), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %ds = f32[16,32]{1,0} slice(%all-reduce.9), slice={[0:16], [0:32]}
}

%step (piece: bf16[16,32]) -> bf16[64,32] {
  %piece = bf16[16,32]{1,0} parameter(0)
  ROOT %all-gather.5 = bf16[64,32]{1,0} all-gather(%piece), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}, \
dimensions={0}, frontend_attributes={chain_id="1"}
}

%step.2 (piece: bf16[16,32]) -> bf16[64,32] {
  %piece = bf16[16,32]{1,0} parameter(0)
  ROOT %all-gather.6 = bf16[64,32]{1,0} all-gather(%piece), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}, \
dimensions={0}, frontend_attributes={chain_id="1"}
}

ENTRY %main (w: f32[64,32], piece: bf16[16,32]) -> f32[64,32] {
  %w = f32[64,32]{1,0} parameter(0)
  %piece = bf16[16,32]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %init = (s32[], f32[64,32]) tuple(%zero, %w)
  %while.2 = (s32[], f32[64,32]) while(%init), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"2"}}
  %out = f32[64,32]{1,0} get-tuple-element(%while.2), index=1
  %async-collective-start = bf16[64,32]{1,0} fusion(%piece), kind=kCustom, calls=%step
  %fusion.7 = bf16[64,32]{1,0} fusion(%piece), kind=kOutput, calls=%step.2
  %scattered = f32[16,32]{1,0} fusion(%out), kind=kCustom, calls=%all-reduce-scatter.1
  %all-gather-start.3 = (f32[16,32]{1,0}, f32[64,32]{1,0}) all-gather-start(%scattered), channel_id=7, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %all-gather-done.3 = f32[64,32]{1,0} all-gather-done(%all-gather-start.3)
  %permuted = f32[64,32]{1,0} collective-permute(%all-gather-done.3), source_target_pairs={{0,1},{1,0}}
  %all-reduce.2 = f32[64,32]{1,0} all-reduce(%permuted), channel_id=8, replica_groups=mesh['a'=2,'b'=2,'c'=2], \
device_ids=([2,4]T(1,0)) {'a','c'}, use_global_device_ids=true, to_apply=%add
  ROOT %all-reduce.3 = f32[64,32]{1,0} all-reduce(%all-reduce.2), channel_id=3, replica_groups=[4,2]<=[8], to_apply=%add
}
"""


def test_collectives_of_handwritten_text():
    whole = 64 * 32
    found = [(c.kind, c.bytes, c.group, c.loops, round(c.count * c.sent)) for c in collectives(NESTED)]
    assert found == [
        ("all-gather", 2 * whole, 4, (), round(2 * whole * 3 / 4)),  # in steps, counted once
        ("reduce-scatter", 4 * whole, 4, (), round(4 * whole * 3 / 4)),
        ("all-gather", 4 * whole, 4, (), round(4 * whole * 3 / 4)),
        ("collective-permute", 4 * whole, 2, (), 4 * whole),
        ("all-reduce", 4 * whole, 4, (), 4 * whole * 2 * 3 // 4),
        ("all-reduce", 4 * whole, 2, (), 4 * whole),
        ("all-gather", 2 * whole, 8, (2, 3), round(6 * 2 * whole * 7 / 8)),
    ]
    assert "bf16[64,32] over 8, 2 x 3 times (jit(f)/while/body/gather)" in str(collectives(NESTED)[-1])


COMPILED = """
import jax, jax.numpy as jnp
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxrl.aot.hlo import collectives
mesh = jax.make_mesh((2, 4), ("a", "b"))
@partial(jax.shard_map, mesh=mesh, in_specs=(P("b"), P("a")), out_specs=P("a"), check_vma=False)
def f(w, x):
    def outer(x, _):
        def inner(x, _):
            whole = jax.lax.all_gather(w * x[0], "b", tiled=True)  # f32[32, 32]; changes with x, stays in the loop
            return jnp.tanh(x @ whole), None
        x, _ = jax.lax.scan(inner, x, None, length=5)
        return jax.lax.psum(x, "a"), None  # f32[8, 32]
    x, _ = jax.lax.scan(outer, x, None, length=3)
    piece = jax.lax.psum_scatter(x, "b", tiled=True)  # f32[8, 32] in
    return jax.lax.all_gather(jax.lax.ppermute(piece, "b", [(i, (i + 1) % 4) for i in range(4)]), "b", tiled=True)
kept = [NamedSharding(mesh, P(axis)) for axis in ("b", "a")]
shapes = [jax.ShapeDtypeStruct((n, 32), jnp.float32, sharding=s) for n, s in zip((32, 16), kept)]
for c in sorted(collectives(jax.jit(f).lower(*shapes).compile().as_text()), key=str):
    print(c.kind, c.bytes, c.group, *c.loops)
"""


def test_collectives_of_a_program_for_eight_devices():
    found = [line for line in on_eight_devices(COMPILED).splitlines() if line]
    hand = [
        f"all-gather {8 * 32 * 4} 4",
        f"all-gather {32 * 32 * 4} 4 3 5",
        f"all-reduce {8 * 32 * 4} 2 3",
        f"collective-permute {2 * 32 * 4} 2",
        f"reduce-scatter {8 * 32 * 4} 4",
    ]
    assert sorted(found) == hand


def test_memory_traffic_against_xla_without_loops():
    def f(x, w):
        return jnp.tanh(x @ w) @ w.T

    shapes = jax.ShapeDtypeStruct((256, 128), jnp.float32), jax.ShapeDtypeStruct((128, 512), jnp.float32)
    compiled = jax.jit(f).lower(*shapes).compile()
    assert hbm_bytes(compiled.as_text()) == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.1)


def test_memory_traffic_of_a_loop_counts_its_slices():
    """A layer reads its own slice of the stacked weights, not all of them."""
    L, D, n = 7, 256, 64

    def f(x, stacked):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked)[0]

    shapes = jax.ShapeDtypeStruct((n, D), jnp.float32), jax.ShapeDtypeStruct((L, D, D), jnp.float32)
    layer = 4 * (D * D + 2 * n * D)
    found = hbm_bytes(jax.jit(f).lower(*shapes).compile().as_text())
    assert L * layer <= found <= 4 * L * layer  # the weights' slice may be copied, x is read by more than the matmul


PREFETCHED = """
ENTRY %main (w: f32[1024,1024], n: f32[64]) -> f32[1024] {
  %w = f32[1024,1024]{1,0} parameter(0)
  %n = f32[64]{0} parameter(1)
  %slice-start.1 = ((f32[1024,1024]{1,0}), f32[256,1024]{1,0:S(1)}, s32[]) slice-start(%w), slice={[0:256], [0:1024]}
  %slice-done.1 = f32[256,1024]{1,0:S(1)} slice-done(%slice-start.1)
  %copy-start.1 = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%n)
  %copy-done.1 = f32[64]{0:S(1)} copy-done(%copy-start.1)
  ROOT %custom-call.1 = f32[1024]{0} custom-call(%slice-done.1, %copy-done.1), custom_call_target="mine"
}
"""


def test_memory_traffic_of_prefetches_into_on_chip_memory():
    """They read what they fetch: a slice of the weights, and the whole of a copied array."""
    assert hbm_bytes(PREFETCHED) == 4 * (256 * 1024 + 64 + 1024)
