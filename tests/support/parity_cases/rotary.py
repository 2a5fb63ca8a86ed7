"""EuroBERT, GTE, Nomic BERT, jina-embeddings-v3: poolers, biases, scaled rotary positions, segment types."""

from __future__ import annotations

from typing import Any

from parity_cases.first import BERT, LINEAR, LLAMA, YARN

SMALL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EUROBERT = LLAMA | SMALL | {"mask_token_id": 3}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "eurobert": ("eurobert", EUROBERT | {"num_labels": 2}),
    "eurobert-bos-biases": ("eurobert", EUROBERT | {
        "num_labels": 7, "classifier_pooling": "bos", "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "eurobert-mean-head-dim": ("eurobert", EUROBERT | {
        "num_labels": 1, "classifier_pooling": "mean", "head_dim": 10, "num_key_value_heads": 6, "rms_norm_eps": 1e-3}),
    "gte": ("gte", BERT | {"num_labels": 2, "type_vocab_size": 2}),
    "gte-no-types-scaled": ("gte", BERT | {
        "num_labels": 7, "type_vocab_size": 0, "hidden_act": "relu", "rope_parameters": LINEAR}),
    "nomic": ("nomic_bert", BERT | {"num_labels": 2}),
    "nomic-head-dim-gelu": ("nomic_bert", BERT | {
        "num_labels": 1, "head_dim": 10, "hidden_act": "gelu", "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "jina-v3": ("jina_embeddings_v3", BERT | SMALL | {"num_labels": 3}),
    "jina-v3-yarn": ("jina_embeddings_v3", BERT | SMALL | {
        "num_labels": 7, "rope_parameters": YARN, "type_vocab_size": 2, "hidden_act": "gelu_new"}),
}  # fmt: skip
