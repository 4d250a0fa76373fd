"""The pool over a Ray cluster of two nodes on this machine, one of which is killed in mid-batch."""

from __future__ import annotations

import time

import pytest

from sandbox.pool import Pool
from sandbox.verdict import CallTest, Limits, Program

ray = pytest.importorskip("ray", reason="the ray extra is not installed")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def programs(count: int, sleep_s: float) -> list[Program]:
    code = f"import time\ndef f(x):\n    time.sleep({sleep_s})\n    return x if x % 3 else -1"
    return [Program(code, (CallTest("f", (i,), i),), Limits(wall_s=10)) for i in range(count)]


@pytest.mark.slow
def test_a_lost_node_loses_and_doubles_no_verdict(cluster):
    from sandbox.ray_pool import RayPool

    with RayPool(workers=1) as pool:
        assert [v.passed for v in pool.run(programs(8, 0.0))] == [bool(i % 3) for i in range(8)]
        deadline = time.monotonic() + 60
        while sum(t.is_alive() for t in pool._nodes.values()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        futures = [pool.submit(p) for p in programs(60, 0.1)]
        delivered: list[int] = []
        for i, future in enumerate(futures):
            future.add_done_callback(lambda _, i=i: delivered.append(i))
        time.sleep(1.0)
        cluster.remove_node(next(n for n in cluster.worker_nodes), allow_graceful=False)
        statuses = [f.result(timeout=120).status for f in futures]
        assert statuses == ["passed" if i % 3 else "wrong_answer" for i in range(60)]
        assert sorted(delivered) == list(range(60))
        assert pool.sandbox_errors == 0
        with Pool(1) as local:  # the same verdicts as without Ray
            alone = local.run(programs(8, 0.0))
        assert [v.tests for v in pool.run(programs(8, 0.0))] == [v.tests for v in alone]


def test_an_unknown_layer_is_an_error_at_once(cluster):
    from sandbox.ray_pool import RayPool

    with pytest.raises(ValueError, match="nonsense"):
        RayPool(workers=1, least="nonsense")


def test_too_little_isolation_is_an_error_at_once(cluster, monkeypatch):
    from sandbox import ray_pool
    from sandbox.layers import IsolationError

    class Refusing:
        def __init__(self, *_):
            pass

        def workers(self) -> int:
            raise IsolationError("no seccomp here")

    monkeypatch.setattr(ray_pool, "_NodePool", Refusing)
    with pytest.raises(IsolationError, match=r"^no seccomp here$"):
        ray_pool.RayPool(workers=1)
