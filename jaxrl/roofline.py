"""What a compiled program needs and how fast it could run at best (Williams et al. 2009, "Roofline")."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from jaxrl.chips import Chip
from jaxrl.hlo import Collective


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    arguments: float
    outputs: float  # that do not take an argument's place
    temporaries: float
    aliased: float  # outputs in the place of arguments

    @property
    def total(self) -> float:
        return self.arguments + self.outputs + self.temporaries


@dataclass(frozen=True)
class Times:
    """Seconds of one execution, if each resource were the only one that is waited for."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def best(self) -> float:
        """Everything overlaps."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def worst(self) -> float:
        """Nothing overlaps."""
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
    """Of one execution: `executed` operations on all devices together; bytes of one device."""
    sent = sum(c.count * c.sent for c in collectives)
    return Times(executed / devices / chip.flops, hbm_bytes / chip.hbm_bandwidth, sent / chip.interconnect)


def by_kind(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    """For each kind of collective, how many are executed, and the bytes that one device sends for them."""
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "sent_bytes": 0.0})
    for c in collectives:
        kinds[c.kind]["count"] += c.count
        kinds[c.kind]["sent_bytes"] += c.count * c.sent
    return dict(sorted(kinds.items(), key=lambda kind: -kind[1]["sent_bytes"]))
