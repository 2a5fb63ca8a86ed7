"""vLLM's engine arguments that ``LLM`` does not name: which change nothing here, and which cannot be had."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypedDict

NO_CACHE = "there is no key-value cache: every prompt is read once"
NO_GENERATION = "nothing is generated"
XLA = "XLA compiles one program per bucket; there is no eager mode, kernel choice or CUDA graph"
ONE_PROCESS = "devices are driven by one process over a JAX mesh"
PLANNER = "the planner decides how prompts are batched"
TEXT_ONLY = "only text is read"
MEMORY = "weights are placed as they are; JAX owns the device memory"
SAMPLING = "a forward pass draws nothing at random"

IGNORED: dict[str, str] = {
    "allowed_local_media_path": TEXT_ONLY,
    "allowed_media_domains": TEXT_ONLY,
    "attention_config": XLA,
    "block_size": NO_CACHE,
    "calculate_kv_scales": NO_CACHE,
    "chat_template": "offline prompts are texts; render a chat with get_tokenizer()",
    "compilation_config": XLA,
    "cuda_graph_sizes": XLA,
    "disable_cascade_attn": XLA,
    "disable_custom_all_reduce": XLA,
    "disable_log_stats": "nothing is logged per step",
    "disable_mm_preprocessor_cache": TEXT_ONLY,
    "distributed_executor_backend": ONE_PROCESS,
    "enable_chunked_prefill": PLANNER,
    "enable_prefix_caching": NO_CACHE,
    "enable_sleep_mode": MEMORY,
    "enforce_eager": XLA,
    "generation_config": NO_GENERATION,
    "gpu_memory_utilization": MEMORY,
    "kv_cache_dtype": NO_CACHE,
    "kv_cache_memory_bytes": NO_CACHE,
    "limit_mm_per_prompt": TEXT_ONLY,
    "load_format": "the files in the folder decide",
    "logits_processors": NO_GENERATION,
    "long_prefill_token_threshold": PLANNER,
    "max_logprobs": NO_GENERATION,
    "max_num_partial_prefills": PLANNER,
    "max_num_seqs": PLANNER,
    "max_parallel_loading_workers": "one tensor at a time is read",
    "max_seq_len_to_capture": XLA,
    "mm_processor_cache_gb": TEXT_ONLY,
    "mm_processor_kwargs": TEXT_ONLY,
    "model_impl": "there is one implementation",
    "num_gpu_blocks_override": NO_CACHE,
    "optimization_level": XLA,
    "override_generation_config": NO_GENERATION,
    "scheduler_cls": PLANNER,
    "scheduling_policy": PLANNER,
    "seed": SAMPLING,
    "served_model_name": "a name for the server alone",
    "skip_mm_profiling": TEXT_ONLY,
    "swap_space": NO_CACHE,
    "tokenizer_mode": "the checkpoint's own tokenizer is used, fast where there is one",
    "use_tqdm_on_load": "loading is quick enough without a bar",
}
"""Accepted for compatibility and without effect; the value is why."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "cpu_offload_gb": ((0, None), "weights are not offloaded"),
    "disable_sliding_window": ((False, None), "windows are part of the model; use max_model_len"),
    "enable_expert_parallel": ((False, None), "experts are not sharded yet"),
    "enable_lora": ((False, None), "adapters are not supported yet"),
    "enable_prompt_embeds": ((False, None), "prompts are texts or token ids"),
    "io_processor_plugin": ((None,), "there are no input processor plugins"),
    "pipeline_parallel_size": ((1, None), "use tensor_parallel_size or data_parallel_size"),
    "quantization": ((None,), "quantised weights are not supported yet"),
    "speculative_config": ((None,), NO_GENERATION),
}
"""Would change results: the values that ask for nothing, and why any other is an error."""


class EngineArgs(TypedDict, total=False):
    """The names of both tables, for type checkers, which otherwise would take any misspelling for one of them."""

    allowed_local_media_path: Any
    allowed_media_domains: Any
    attention_config: Any
    block_size: Any
    calculate_kv_scales: Any
    chat_template: Any
    compilation_config: Any
    cpu_offload_gb: Any
    cuda_graph_sizes: Any
    disable_cascade_attn: Any
    disable_custom_all_reduce: Any
    disable_log_stats: Any
    disable_mm_preprocessor_cache: Any
    disable_sliding_window: Any
    distributed_executor_backend: Any
    enable_chunked_prefill: Any
    enable_expert_parallel: Any
    enable_lora: Any
    enable_prefix_caching: Any
    enable_prompt_embeds: Any
    enable_sleep_mode: Any
    enforce_eager: Any
    generation_config: Any
    gpu_memory_utilization: Any
    io_processor_plugin: Any
    kv_cache_dtype: Any
    kv_cache_memory_bytes: Any
    limit_mm_per_prompt: Any
    load_format: Any
    logits_processors: Any
    long_prefill_token_threshold: Any
    max_logprobs: Any
    max_num_partial_prefills: Any
    max_num_seqs: Any
    max_parallel_loading_workers: Any
    max_seq_len_to_capture: Any
    mm_processor_cache_gb: Any
    mm_processor_kwargs: Any
    model_impl: Any
    num_gpu_blocks_override: Any
    optimization_level: Any
    override_generation_config: Any
    pipeline_parallel_size: Any
    quantization: Any
    scheduler_cls: Any
    scheduling_policy: Any
    seed: Any
    served_model_name: Any
    skip_mm_profiling: Any
    speculative_config: Any
    swap_space: Any
    tokenizer_mode: Any
    use_tqdm_on_load: Any


def check_engine_args(given: Mapping[str, Any], named: set[str]) -> None:
    """Accepts arguments that change nothing.

    Args:
        given: keyword arguments of ``LLM`` beyond those in its signature.
        named: the names in its signature, for the message.

    Raises:
        TypeError: an argument nobody knows.
        NotImplementedError: an argument of vLLM's that jaxpool cannot honour.
    """
    for name, value in given.items():
        if name in IGNORED:
            continue
        if name not in REFUSED:
            near = difflib.get_close_matches(name, [*named, *IGNORED, *REFUSED], n=1, cutoff=0.7)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"LLM() got an unexpected keyword argument {name!r}; it takes {', '.join(sorted(named))} "
                f"and accepts without effect {', '.join(sorted(IGNORED))}.{hint}"
            )
        harmless, reason = REFUSED[name]
        if value not in harmless:
            raise NotImplementedError(f"{name}={value!r} is not possible in jaxpool: {reason}.")
