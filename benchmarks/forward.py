"""The forward pass of a JiT as the library runs it, against the same network in float32, eager, with attention by hand.

    python benchmarks/forward.py                    # B/16 at 256 px, batch 8: the default configuration of `load`
    python benchmarks/forward.py --variant S/16     # another

Every row is timed in turn, round by round, in one process, and the fastest of its rounds counts: ratios hold on a
noisy machine where seconds do not. Writes benchmarks/results/forward-DEVICE.json. On a GPU the measured peak of a
bfloat16 matrix product is printed beside, and the share of it that each row reaches.
"""

import json
from dataclasses import dataclass

import torch
import tyro
from machine import facts, fastest, result_path

from justimage.execution import best_device, cast_parameters, compile_blocks, compiling_pays
from justimage.networks.cost import cost_of
from justimage.networks.jit import JiT, JiTConfig
from justimage.precision import fast_dtype
from justimage.speed.plain import attention_by_hand
from justimage.speed.timing import matmul_peak


def network(config: JiTConfig, device: torch.device) -> JiT:
    """Random weights, all of them: a zero head would take as long, but might not seem to."""
    net = JiT(config).to(device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.02, generator=generator)
    return net


@dataclass(frozen=True)
class Options:
    """What is timed."""

    variant: str = "B/16"
    size: int = 256
    batch: int = 8
    rounds: int = 5
    compiled: bool = True
    """Also the rows with compiled blocks; compiling takes a minute on a CPU."""


def main(options: Options) -> None:
    """Time all rows, print the table, write the file."""
    device = best_device()
    config = JiTConfig.variant(options.variant, size=options.size)
    z = torch.randn(options.batch, config.channels, *config.size, device=device)
    t, y = torch.rand(options.batch, device=device), torch.arange(options.batch, device=device)
    default_dtype = fast_dtype(device)

    reference = network(config, device)
    for block in reference.blocks:
        block.attention.forward = attention_by_hand.__get__(block.attention)  # type: ignore[union-attr]
    flop = 2 * cost_of(config).multiply_adds

    default = network(config, device)
    cast_parameters(default, default_dtype)
    compiles = compiling_pays(default, device, default_dtype)
    if compiles:
        compile_blocks(default)
    nets = {"float32, eager, attention by hand": reference, "float32, eager": network(config, device)}
    nets["default"] = default
    if options.compiled and not compiles:
        nets["float32, compiled blocks"] = network(config, device)
        compile_blocks(nets["float32, compiled blocks"])

    with torch.no_grad():
        outputs = {name: net(z, t, y).float() for name, net in nets.items()}  # and warm up
        first = outputs["float32, eager, attention by hand"]
        errors = {name: float((out - first).norm() / first.norm()) for name, out in outputs.items()}
        seconds = fastest({name: lambda net=net: net(z, t, y) for name, net in nets.items()}, options.rounds, device)
    peaks = {dtype: matmul_peak(dtype, device) for dtype in {torch.float32, default_dtype}}

    slowest = seconds["float32, eager, attention by hand"]
    rows = []
    for name, took in seconds.items():
        dtype = default_dtype if name == "default" else torch.float32
        rows.append(
            {
                "row": name,
                "ms_per_image": round(1e3 * took / options.batch, 2),
                "times_faster": round(slowest / took, 2),
                "GFLOP_per_s": round(flop * options.batch / took / 1e9, 1),
                "share_of_matmul_peak": round(flop * options.batch / took / peaks[dtype], 3),
                "relative_difference": round(errors[name], 6),
            }
        )
    result = {
        "what": f"forward pass, JiT-{options.variant} at {options.size} px, batch {options.batch}",
        **facts(device),
        "default": f"{str(default_dtype).removeprefix('torch.')}, {'compiled blocks' if compiles else 'eager'}",
        "GFLOP_per_image": round(flop / 1e9, 2),
        "matmul_peak_GFLOP_per_s": {str(d).removeprefix("torch."): round(p / 1e9, 1) for d, p in peaks.items()},
        "rows": rows,
    }
    print(f"{result['what']}, on {result['device']}, {result['threads']} threads, torch {result['torch']}")
    print(f"default here: {result['default']}; matmul peak {result['matmul_peak_GFLOP_per_s']} GFLOP/s")
    for row in rows:
        print(
            f"{row['row']:36} {row['ms_per_image']:9.2f} ms/image  {row['times_faster']:5.2f} x  "
            f"{row['GFLOP_per_s']:8.1f} GFLOP/s  {100 * row['share_of_matmul_peak']:5.1f} % of the peak"
        )
    path = result_path(f"forward-{options.variant.replace('/', '').lower()}", device, ".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Options))
