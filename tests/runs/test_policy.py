"""How a policy computes where it is."""

from __future__ import annotations

import jax
import pytest

from jaxrl.config import Config
from jaxrl.runs.policy import make_compute
from models.sharding import make_mesh


@pytest.mark.parametrize("dtype, unrolled", [("bfloat16", True), ("float32", False)])
def test_layers_are_unrolled_where_one_cpu_computes_in_bf16(dtype, unrolled):
    config = Config()
    config.model.compute_dtype = dtype
    assert make_compute(config, make_mesh(devices=jax.devices()[:1])).unroll is unrolled
