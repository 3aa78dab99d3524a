"""Hardware that plans are made for: what the vendors' data sheets say of it."""

import difflib
from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Hardware:
    """A device as its data sheet has it."""

    name: str
    products: float
    """FLOP/s of bfloat16 matrix products with sums in float32, without sparsity; a multiply-add is two."""
    bandwidth: float
    """Bytes/s to its memory."""
    memory: float
    """Bytes."""
    link: float
    """Bytes/s to the other devices of its machine, in one direction."""
    watts: float
    """Of the whole board."""
    source: str


HOPPER = "NVIDIA H100 Tensor Core GPU data sheet; its figures with sparsity halved"
AMPERE = "NVIDIA A100 Tensor Core GPU data sheet"
ADA = "NVIDIA Ada GPU architecture white paper, appendix A: BF16 tensor with FP32 accumulate"
BLACKWELL = "NVIDIA RTX Blackwell GPU architecture white paper, appendix A: BF16 tensor with FP32 accumulate"
GA102 = "NVIDIA Ampere GA102 GPU architecture white paper, appendix A: BF16 tensor with FP32 accumulate"
HARDWARE: dict[str, Hardware] = {
    "b200": Hardware(
        "NVIDIA B200 SXM",
        2250 * TERA,
        7.7e12,
        180 * GIGA,
        900 * GIGA,
        1000,
        "NVIDIA HGX B200 data sheet, an eighth of its figures, with sparsity halved; NVLink 5: 1.8 TB/s both ways",
    ),
    "h200": Hardware(
        "NVIDIA H200 SXM",
        989 * TERA,
        4.8e12,
        141 * GIGA,
        450 * GIGA,
        700,
        "NVIDIA H200 Tensor Core GPU data sheet; its figures with sparsity halved; NVLink 4: 900 GB/s both ways",
    ),
    "h100": Hardware(
        "NVIDIA H100 SXM 80 GB",
        989 * TERA,
        3.35e12,
        80 * GIGA,
        450 * GIGA,
        700,
        f"{HOPPER}; NVLink 4: 900 GB/s both ways",
    ),
    "h100-pcie": Hardware(
        "NVIDIA H100 PCIe 80 GB",
        756 * TERA,
        2.0e12,
        80 * GIGA,
        64 * GIGA,
        350,
        f"{HOPPER}; PCIe 5.0: 128 GB/s both ways, without the NVLink bridge",
    ),
    "a100": Hardware(
        "NVIDIA A100 SXM 80 GB",
        312 * TERA,
        2.039e12,
        80 * GIGA,
        300 * GIGA,
        400,
        f"{AMPERE}; NVLink 3: 600 GB/s both ways",
    ),
    "a100-40": Hardware(
        "NVIDIA A100 SXM 40 GB",
        312 * TERA,
        1.555e12,
        40 * GIGA,
        300 * GIGA,
        400,
        f"{AMPERE}; NVLink 3: 600 GB/s both ways",
    ),
    "l40s": Hardware(
        "NVIDIA L40S",
        362 * TERA,
        864 * GIGA,
        48 * GIGA,
        32 * GIGA,
        350,
        "NVIDIA L40S data sheet; PCIe 4.0: 64 GB/s both ways",
    ),
    "l4": Hardware(
        "NVIDIA L4",
        121 * TERA,
        300 * GIGA,
        24 * GIGA,
        32 * GIGA,
        72,
        "NVIDIA L4 data sheet, its figure with sparsity halved; PCIe 4.0: 64 GB/s both ways",
    ),
    "5090": Hardware(
        "NVIDIA GeForce RTX 5090",
        209.5 * TERA,
        1792 * GIGA,
        32 * GIGA,
        64 * GIGA,
        575,
        f"{BLACKWELL}; PCIe 5.0: 128 GB/s both ways",
    ),
    "4090": Hardware(
        "NVIDIA GeForce RTX 4090",
        165.2 * TERA,
        1008 * GIGA,
        24 * GIGA,
        32 * GIGA,
        450,
        f"{ADA}; PCIe 4.0: 64 GB/s both ways",
    ),
    "3090": Hardware(
        "NVIDIA GeForce RTX 3090",
        71 * TERA,
        936 * GIGA,
        24 * GIGA,
        32 * GIGA,
        350,
        f"{GA102}; PCIe 4.0: 64 GB/s both ways",
    ),
}


def hardware(name: str) -> Hardware:
    """A device of the table. Raises ValueError, with the list, for one that it does not have."""
    if name.lower() in HARDWARE:
        return HARDWARE[name.lower()]
    near = difflib.get_close_matches(name.lower(), HARDWARE, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(
        f"nothing is known of the hardware {name!r}; {hint}there are {', '.join(HARDWARE)}. Without --hardware, steps "
        "are measured on this machine"
    )
