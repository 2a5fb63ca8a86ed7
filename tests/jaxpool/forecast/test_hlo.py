"""Counts read from HLO against counts on paper; the TPU's compiler itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxpool.engine.buckets import Bucket
from jaxpool.engine.chips import CHIPS
from jaxpool.forecast.hlo import Counts, _taps, count
from jaxpool.forecast.tpu import Forecast

needs_tpu_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def model(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, one: (jnp.tanh(c @ one), None), x, w)[0]

    x, w = jax.ShapeDtypeStruct((256, 128), jnp.float32), jax.ShapeDtypeStruct((7, 128, 128), jnp.float32)
    text = jax.jit(model).lower(x, w).compile().as_text()
    assert text is not None
    found = count(text)
    assert found.flops == 7 * 2 * 256 * 128 * 128
    assert found.unknown_loops == 0


TPU = """HloModule m, is_scheduled=true

%fused (p0: bf16[64,256], p1: bf16[3,256,128], p2: s32[]) -> bf16[64,128] {
  %p0 = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[3,256,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[]{:T(128)S(6)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %one = bf16[1,256,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,256,128}
  %flat = bf16[256,128]{1,0:T(8,128)(2,1)} bitcast(%one)
  ROOT %product = bf16[64,128]{1,0:T(8,128)(2,1)} convolution(%p0, %flat), dim_labels=bf_io->bf
}

%body (s: (s32[])) -> (s32[]) {
  %s = STATE parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%s), index=1
  %w = bf16[3,256,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%s), index=2
  %c = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} custom-call(%x), custom_call_target="other", kernel_metadata={{
"xprof_metadata":"{block_q: 512}"
}}, metadata={op_name="of several lines"}
  %y = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%x, %w, %i), calls=%fused, backend_config={"estimated_cycles":"1000"}
  %r = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%y), replica_groups={{0,1}}, to_apply=%sum
  %k = bf16[64,128]{1,0:T(8,128)(2,1)} custom-call(%r), custom_call_target="tpu_custom_call", op_name="splash_attention"
  ROOT %t = STATE tuple(%i, %x, %w)
}

%condition (s: (s32[])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  %s = STATE parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (a: (s32[])) -> s32[] {
  %a = STATE parameter(0)
  %w = STATE while(%a), condition=%condition, body=%body
  ROOT %i = s32[]{:T(128)} get-tuple-element(%w), index=0
}
""".replace("STATE", "(s32[], bf16[64,256]{1,0:T(8,128)(2,1)S(1)}, bf16[3,256,128]{2,1,0:T(8,128)(2,1)})")


def test_what_a_tpus_module_says() -> None:
    found = count(TPU)
    assert found.flops == 3 * 2 * 64 * 256 * 128
    assert found.cycles == 3000
    assert found.collectives == {"all-reduce": 3}
    assert found.kernels == {"splash_attention": 3}
    out = 64 * 128 * 2
    # Of the stacked weights one layer is read; the input lies beside the cores and moves for nothing.
    # The index is four bytes; what the condition compares is counted nowhere.
    assert found.bytes == 3 * ((256 * 128 * 2 + out + 4) + 2 * out + 2 * out)


def test_batches_that_are_windows_count_once() -> None:
    # A batch of 12 as a window of 12 with padding: one place of each falls on an input.
    assert _taps(size=12, out=12, window=12, stride=11, pad=0, spread=12, spread_window=1) in range(1, 145)
    assert _taps(size=5, out=5, window=3, stride=1, pad=1, spread=1, spread_window=1) == 13
    assert _taps(size=8, out=8, window=1, stride=1, pad=0, spread=1, spread_window=1) == 8


def test_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        count("nothing")


def test_a_forecast_names_its_bound() -> None:
    chip = CHIPS["v5e"]

    def of(flops: float, moved: float, cycles: float) -> Forecast:
        return Forecast(Bucket(32, 512), 1e9, Counts(flops, moved, cycles), chip, "bfloat16")

    assert of(chip.peak, 0, 0).bound == "products"
    assert of(chip.peak, 0, 0).share_of_peak == pytest.approx(1)
    assert of(0, chip.bandwidth, chip.hertz).bound == "memory"
    busy = of(chip.peak, 0, 2 * chip.hertz)
    assert busy.bound == "other work"
    assert busy.texts_per_second == pytest.approx(16)
    assert busy.fits
    assert not Forecast(Bucket(1, 1), 1e12, Counts(), chip, "bfloat16").fits


def compiled(model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "jaxpool", "compile", str(model), *options]
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(words, capture_output=True, text=True, timeout=500, env=environment)


@needs_tpu_compiler
def test_the_command_reads_config_json_alone_and_counts_as_on_paper(tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 256,
              "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = tmp_path / "report.json"
    run = compiled(tmp_path, "--topology", "v5e:2x2", "--shapes", "32x128", "--dtype", "bfloat16",
                   "--json", str(report), "--texts", "1e9", "--pods", "4")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "32x128" in run.stdout
    assert "4 x v5e:2x2" in run.stdout
    figures = json.loads(report.read_text())
    [program] = figures["programs"]
    layer = 2 * 128 * (4 * 256**2 + 2 * 256 * 512) + 4 * 128**2 * 256
    # the last layer has keys and values of all tokens, and the rest of the pooled one alone
    last = 2 * 128 * 2 * 256**2 + 2 * (2 * 256**2 + 2 * 256 * 512) + 4 * 128 * 256
    assert program["flops"] == pytest.approx(8 * (2 * layer + last), rel=0.02)  # 8 rows on each of 4 chips
    assert program["cycles"] > 0
    assert program["unknown_loops"] == 0
    assert program["bytes"] > 3 * 2 * (4 * 256**2 + 2 * 256 * 512)
    assert figures["mix"]["hours"] > 0


@needs_tpu_compiler
def test_a_model_too_large_for_a_chip_is_refused_in_words(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "hidden_size": 8192,
              "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672, "vocab_size": 128256,
              "num_key_value_heads": 8, "pad_token_id": 0}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = compiled(tmp_path, "--topology", "v5e:2x2", "--shapes", "4x128", "--dtype", "bfloat16")
    assert run.returncode == 1
    assert "a v5e has 17.2 GB" in run.stderr
    assert "--tensor-parallel-size" in run.stderr
