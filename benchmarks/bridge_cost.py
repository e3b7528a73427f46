"""What the language model costs in a forward pass of the tiny presets.

    python benchmarks/bridge_cost.py [--language-model MINILM]

MINILM is the folder of a language model; without it, random blocks of the same shape as MiniLM's (384 wide) are used,
which cost the same. As the engine predicts on a CPU: norms folded, one thread; network and bridge alternate, medians of
`--repeats`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation
from lmseg_core.blocks import fold

MINILM = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536,
}  # fmt: skip
TILES = {2: (256, 256), 3: (40, 48, 40)}
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


def main() -> None:
    """Print the share of the bridge, in 2D and 3D."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language-model", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write("| tiny preset | forward pass | language model | share |\n| --- | ---: | ---: | ---: |\n")
    for ndim, tile in TILES.items():
        whole, bridge = measure(ndim, tile, options.language_model, options.repeats)
        size = " x ".join(map(str, tile))
        sys.stdout.write(f"| {ndim}D, {size} | {whole:.0f} ms | {bridge:.0f} ms | {bridge / whole:.1%} |\n")


@torch.inference_mode()
def measure(ndim: int, tile: tuple[int, ...], folder: Path | None, repeats: int) -> tuple[float, float]:
    """Return the milliseconds of a forward pass and of its bridge, two blocks deep."""
    config = LMSegConfig.preset("tiny", ndim=ndim, id2label={i: str(i) for i in range(6)})
    if folder is not None:
        network = LMSegForSemanticSegmentation.with_language_model(config, str(folder), 2)
    else:
        told = config.to_dict() | {"bridge": "language", "lm_config": MINILM}
        network = LMSegForSemanticSegmentation(LMSegConfig(**told))
    network.eval().to(memory_format=LAYOUT[ndim])
    fold(network)
    image = torch.randn(1, config.in_channels, *tile).contiguous(memory_format=LAYOUT[ndim])
    bottleneck = network.encoder(image)[-1]
    bridge = network.bridge
    assert bridge is not None
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        times[0].append(milliseconds(lambda: network(pixel_values=image)))
        times[1].append(milliseconds(lambda: bridge(bottleneck)))
    return statistics.median(times[0]), statistics.median(times[1])


def milliseconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
