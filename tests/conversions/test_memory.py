"""Peak resident memory of loading, measured in a process of its own: the weights and little more."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

LAYERS, WIDTH, VOCAB = 16, 1024, 12_000
MATRICES = {"up": (3 * WIDTH // 2, WIDTH), "down": (WIDTH, 3 * WIDTH // 2)}

MEASURE = """
    import sys
    import jax
    import numpy as np
    from jaxpool_conversions.heads import find_head
    from jaxpool_conversions.load import load
    from jaxpool_conversions.reader import Reader
    from jaxpool_conversions.rules import Rule, Table, Transpose

    folder, dtype, layers, width, vocab = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

    def resident(field):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

    table = Table("", (
        Rule("embed.weight", "backbone.embed"),
        *(Rule(f"layer.{{layer}}.{name}.weight", f"backbone.{name}", (Transpose(),)) for name in ("up", "down")),
    ))
    shapes = {"backbone.embed": (vocab, width), "backbone.up": (layers, width, 3 * width // 2),
              "backbone.down": (layers, 3 * width // 2, width), "head.out.kernel": (width, 2)}
    targets = {path: jax.ShapeDtypeStruct(shape, jax.numpy.dtype(dtype)) for path, shape in shapes.items()}
    jax.block_until_ready(jax.numpy.zeros(1))  # what jax itself takes is not ours
    before = resident("VmRSS")
    with Reader(folder) as reader:
        leaves = load(reader, table, find_head(reader, table, num_labels=2, width=width), targets)
    jax.block_until_ready(leaves)
    weights = sum(leaf.nbytes for leaf in leaves.values())
    print(resident("VmHWM") - before, weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_peak_is_the_weights_and_fifteen_percent(tmp_path: Path, stored: str, wanted: str) -> None:
    rng = np.random.default_rng(0)
    kind = np.dtype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
    index: dict[str, str] = {}
    for shard in range(4):
        shapes = {f"layer.{i}.{name}.weight": s for i in range(shard, LAYERS, 4) for name, s in MATRICES.items()}
        if shard == 0:
            shapes |= {"embed.weight": (VOCAB, WIDTH), "score.weight": (2, WIDTH)}
        values = {name: rng.standard_normal(shape, dtype=np.float32).astype(kind) for name, shape in shapes.items()}
        save_file(values, tmp_path / f"{shard}.safetensors")
        index |= dict.fromkeys(values, f"{shard}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    sizes = [str(n) for n in (LAYERS, WIDTH, VOCAB)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path), wanted, *sizes],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, weights = map(float, done.stdout.split())
    assert weights > 100e6
    fixed = 24e6  # one memory map and pieces of a tensor: the same for a model of any size
    assert peak < 1.05 * weights + fixed, f"peak growth is {peak / weights:.2f} times the weights"
