"""Memory of an executable, and the shortest time that it could take (Williams et al. 2009, "Roofline")."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from jaxrl.aot.hlo import Collective
from jaxrl.costs.chips import Chip


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    arguments: float
    outputs: float  # that do not reuse an argument's memory
    temporaries: float
    aliased: float  # outputs in the memory of donated arguments

    @property
    def total(self) -> float:
        return self.arguments + self.outputs + self.temporaries


@dataclass(frozen=True)
class Times:
    """Seconds of one execution if each resource alone were the limit."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def best(self) -> float:
        """If everything overlaps."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def worst(self) -> float:
        """If nothing overlaps."""
        return self.compute + self.hbm + self.interconnect

    @property
    def limit(self) -> str:
        named = {"compute": self.compute, "HBM": self.hbm, "interconnect": self.interconnect}
        return max(named, key=lambda name: named[name])


def memory_of(stats: Any) -> Memory:
    """From jax.stages.Compiled.memory_analysis()."""
    aliased = float(stats.alias_size_in_bytes)
    return Memory(
        arguments=float(stats.argument_size_in_bytes),
        outputs=float(stats.output_size_in_bytes) - aliased,
        temporaries=float(stats.temp_size_in_bytes),
        aliased=aliased,
    )


def times_of(chip: Chip, devices: int, executed: float, hbm_bytes: float, collectives: list[Collective]) -> Times:
    """Of one execution; `executed` counts operations on all devices together, `hbm_bytes` those of one device."""
    sent = sum(c.count * c.sent for c in collectives)
    return Times(executed / devices / chip.flops, hbm_bytes / chip.hbm_bandwidth, sent / chip.interconnect)


def by_kind(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    """For each kind of collective: executions, and the bytes that one device sends in them."""
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "sent_bytes": 0.0})
    for c in collectives:
        kinds[c.kind]["count"] += c.count
        kinds[c.kind]["sent_bytes"] += c.count * c.sent
    return dict(sorted(kinds.items(), key=lambda kind: -kind[1]["sent_bytes"]))
