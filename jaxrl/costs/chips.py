"""Memory, speed and links of accelerators, from their makers' data sheets.

Google: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, tables of key specifications. Interconnect bandwidth is what a
chip can send (half of the "bidirectional" figure: v5e 400, v5p 1200, v6e 800, TPU7x 1200 GB/s; v4's six links of
50 GB/s are in Jouppi et al., arXiv 2304.01433, table 4). The data center network is given per chip (v5p 50 Gb/s, TPU7x
100 Gb/s) or per pod of 256 chips (v5e 6.4 Tb/s, v6e 25.6 Tb/s); v4 is taken to have v5e's.
NVIDIA: data sheets of A100 80GB SXM, H100 SXM, H200 SXM, HGX B200; dense bf16 (half of the figure with sparsity),
NVLink's total halved for one direction, and the adapters of a DGX of eight (A100 8 x 200 Gb/s, later 8 x 400 Gb/s).
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip."""

    name: str
    kind: str  # prefix of its JAX device_kind
    flops: float  # dense bf16 operations a second
    hbm_bytes: float
    hbm_bandwidth: float  # bytes a second
    interconnect: float  # bytes a second that it can send to its neighbours, all links together
    network: float  # bytes a second of its host, to other slices or nodes
    chips_per_host: int
    devices: int = 1  # JAX devices per chip

    def share(self, devices: int) -> Chip:
        """What one device has where JAX shows the chip as `devices` devices."""
        return self._replace(
            flops=self.flops / devices,
            hbm_bytes=self.hbm_bytes / devices,
            hbm_bandwidth=self.hbm_bandwidth / devices,
            interconnect=self.interconnect / devices,
        )


GiB, GB = 2.0**30, 1e9

# Of two kinds where one is a prefix of the other, the longer one comes first.
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * GiB, 1200 * GB, 300 * GB, 12.5 * GB, 4),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GiB, 819 * GB, 200 * GB, 25 * GB, 8),
    Chip("v5e", "TPU v5e", 197e12, 16 * GiB, 819 * GB, 200 * GB, 25 * GB, 8),
    Chip("v5p", "TPU v5", 459e12, 95 * GiB, 2765 * GB, 600 * GB, 25 * GB, 4),
    Chip("v6e", "TPU v6", 918e12, 32 * GiB, 1638 * GB, 400 * GB, 100 * GB, 8),
    Chip("tpu7x", "TPU7x", 2307e12, 192 * GiB, 7380 * GB, 600 * GB, 50 * GB, 4, devices=2),
    Chip("a100-40gb", "NVIDIA A100-SXM4-40GB", 312e12, 40 * GB, 1555 * GB, 300 * GB, 200 * GB, 8),
    Chip("a100-40gb", "NVIDIA A100-PCIE-40GB", 312e12, 40 * GB, 1555 * GB, 32 * GB, 200 * GB, 8),
    Chip("a100", "NVIDIA A100", 312e12, 80 * GB, 2039 * GB, 300 * GB, 200 * GB, 8),
    Chip("h100-pcie", "NVIDIA H100 PCIe", 756e12, 80 * GB, 2039 * GB, 300 * GB, 400 * GB, 8),
    Chip("h100", "NVIDIA H100", 989e12, 80 * GB, 3350 * GB, 450 * GB, 400 * GB, 8),
    Chip("h200", "NVIDIA H200", 989e12, 141 * GB, 4800 * GB, 450 * GB, 400 * GB, 8),
    Chip("b200", "NVIDIA B200", 2250e12, 180 * GB, 7700 * GB, 900 * GB, 400 * GB, 8),
)

# Slices to compile for: chips along each axis of the torus.
SLICES = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device_kind or of a name (v5e, h100); None if it is not known."""
    return next((c for c in CHIPS if device_kind.startswith(c.kind) or device_kind == c.name), None)
