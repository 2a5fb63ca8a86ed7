"""Fields of a ``config.json`` that transformers' class for its model type does not have.

transformers keeps most of them and drops some (what it takes for settings of generation), and reads none. Some come
from older versions and mean nothing any more; some belong to code that came with the checkpoint, and may mean much.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from jaxpool.errors import ConfigError

logger = logging.getLogger("jaxpool.config")

INERT = frozenset(
    {
        # what the file is, and who wrote it
        "model_type", "auto_map", "transformers_version", "torch_dtype", "name_or_path", "tokenizer_class",
        "processor_class", "model_max_length", "finetuning_task", "task_specific_params", "custom_pipelines",
        "num_labels",
        "unsloth_version", "unsloth_fixed", "adapter_version", "language", "license", "library_name", "dataset",
        "tie_weights_", "rope_theta", "rope_scaling", "global_attn_every_n_layers",
        # switches of BART that made its relatives: built in there, refused for BART itself
        "normalize_before", "add_final_layer_norm", "static_position_embeddings", "normalize_embedding",
        "extra_pos_embeddings", "add_bias_logits", "force_bos_token_to_be_generated",
        # folded into others by transformers
        "sliding_window_pattern", "original_max_position_embeddings",
        # training only
        "gradient_checkpointing", "classifier_dropout_prob", "cls_dropout", "layerdrop", "label_smoothing",
        "encoder_layerdrop", "decoder_layerdrop", "attention_dropout", "hidden_dropout", "hidden_dropout_prob",
        "attention_probs_dropout_prob", "dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "emb_pdrop",
        "activation_dropout", "classif_dropout", "initializer_range", "initializer_factor", "pretraining_tp",
        "loss_type", "use_xentropy", "lora_main_params_trainable", "load_trained_adapters", "summary_first_dropout",
        "lora_dropout_p", "mlm_probability", "freeze_base", "warmup_steps", "train_batch_size", "reference_compile",
        "router_aux_loss_coef", "output_router_logits", "use_mem_efficient_attention", "unpad_inputs",
        # generation only
        "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
        "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
        "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
        "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
        "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
        "prefix", "use_cache", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
        "pad_token_id", "bos_token", "eos_token", "pad_token", "decoder_start_token_id", "eod_token_id",
        "max_answer_length", "final_logits_bias",
        # of heads and frameworks that nobody uses here
        "tie_word_embeddings", "tie_encoder_decoder", "cross_attention_hidden_size", "is_encoder_decoder",
        "add_cross_attention", "torchscript", "use_bfloat16", "tf_legacy_loss", "predict_special_tokens",
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_last_dropout",
        "legacy", "sparse_prediction", "sparse_pred_ignore_index", "decoder_bias", "deterministic_flash_attn",
        # BERT's and ALBERT's first releases wrote the sizes of things that were never built
        "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
        "pooler_size_per_head", "pooler_type", "down_scale_factor", "gap_size", "net_structure_type",
        "num_memory_blocks", "n_ctx", "output_past", "gpu_id", "stable_embedding",
        # what is returned, or how the same numbers are computed
        "output_attentions", "output_hidden_states", "output_past_key_values", "return_dict", "return_unused_kwargs",
        "use_flash_attn", "use_flash_attention", "use_flash_attention_2",
        "flash_attn", "attn_implementation",
        "fused_bias_fc", "dense_seq_output", "fused_dropout_add_ln",
        "fused_mlp", "pad_vocab_size_multiple", "moe_impl", "moe_resid_pdrop", "add_pooling_layer",
        "chunk_size_feed_forward",
        "reorder_and_upcast_attn", "onnx_export", "torch_compile", "use_return_dict",
        "ignore_attention_mask", "attention_mode", "embedding_size_per_head", "pad_to_multiple_of",
        # read elsewhere in jaxpool
        "architectures", "dtype", "id2label", "label2id", "problem_type", "head_dtype", "sentence_transformers",
        "sbert_ce_default_activation_function", "is_matryoshka", "matryoshka_dimensions", "classifier_from_token",
        "method", "is_original_qwen3_reranker", "is_causal", "use_sep_token", "use_pad_token", "n_positions",
        "max_position_embeddings", "max_seq_len", "seq_length", "max_sequence_length", "quantization_config",
        "compression_config", "text_config",
    }
)  # fmt: skip
"""Names that can change no classification where the config class lacks them."""

REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {"pruned_heads": (None, {}, [])},
    "bart": {
        "normalize_before": (None, False),
        "add_final_layer_norm": (None, False),
        "static_position_embeddings": (None, False),
        "normalize_embedding": (None, True),
        "extra_pos_embeddings": (None, 2),
    },
    "jamba": {"is_causal": (None, True)},
    "modernbert-decoder": {"is_causal": (None, True)},
    "roberta": {"position_embedding_type": (None, "absolute")},
    "xlm-roberta": {"position_embedding_type": (None, "absolute")},
}
"""Model type, or "" for all -> names that change the answer -> the values under which they do not.

BART's switches made its relatives once, which are classes of their own now.
"""


def check(raw: Mapping[str, Any], known: Collection[str], model_type: str) -> None:
    """Looks at what nobody has read; one warning names all of it.

    Args:
        raw: the fields of ``config.json``.
        known: those that the config class has, or that the family has read.
        model_type: for the message.

    Raises:
        ConfigError: a field is known to change the answer, in a way that jaxpool does not implement.
    """
    strange = [name for name in raw if name not in known and name not in INERT and not name.startswith("_")]
    refused = REFUSED[""] | REFUSED.get(model_type, {})
    for name in refused.keys() & raw.keys() - set(known):
        if raw[name] not in refused[name]:
            raise ConfigError(
                f"config.json sets {name}={raw[name]!r}, which jaxpool does not implement for model_type "
                f"{model_type!r}; it implements {refused[name][-1]!r}."
            )
    # False, null and empty ask for nothing.
    telling = [f"{name}={raw[name]!r:.60}" for name in strange if name not in refused and raw[name]]
    if telling:
        logger.warning(
            "config.json sets %s, which transformers' class for model_type %r does not have: nobody reads it. If the "
            "checkpoint came with code of its own, compare a few scores with that code.",
            ", ".join(telling),
            model_type,
        )
