"""RoBERTa, DistilBERT, ELECTRA, ALBERT, MPNet and other encoders that are settings of BERT's."""

from __future__ import annotations

from typing import Any

from parity_cases.first import BERT

ROBERTA = BERT | {"pad_token_id": 1, "type_vocab_size": 1}
DISTILBERT = {
    "vocab_size": 101,
    "dim": 48,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 56,
    "max_position_embeddings": 64,
}
LUKE = {"entity_vocab_size": 11, "entity_emb_size": 24}
XMOD = ROBERTA | {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"}
ESM = BERT | {"pad_token_id": 1, "mask_token_id": 32, "vocab_size": 33}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("roberta", ROBERTA | {"num_labels": 2}),
    "roberta-pad-9-types": ("roberta", ROBERTA | {"num_labels": 7, "pad_token_id": 9, "type_vocab_size": 3,
                                                  "hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "roberta-1-label-odd": ("roberta", ROBERTA | {"num_labels": 1, "hidden_size": 33, "num_attention_heads": 3,
                                                  "pad_token_id": 0, "problem_type": "regression"}),
    "xlm-roberta": ("xlm-roberta", ROBERTA | {"num_labels": 3}),
    "xlm-roberta-multi-label": ("xlm-roberta", ROBERTA | {"num_labels": 4, "hidden_act": "gelu_new",
                                                          "problem_type": "multi_label_classification"}),
    "camembert": ("camembert", ROBERTA | {"num_labels": 2}),
    "camembert-7-labels": ("camembert", ROBERTA | {"num_labels": 7, "type_vocab_size": 2, "num_hidden_layers": 1}),
    "data2vec-text": ("data2vec-text", ROBERTA | {"num_labels": 1}),
    "data2vec-text-silu": ("data2vec-text", ROBERTA | {"num_labels": 2, "hidden_act": "silu"}),
    "distilbert": ("distilbert", DISTILBERT | {"num_labels": 2}),
    "distilbert-relu-1-label": ("distilbert", DISTILBERT | {"num_labels": 1, "activation": "relu", "n_heads": 3,
                                                            "dim": 33, "sinusoidal_pos_embds": True}),
    "distilbert-multi-label": ("distilbert", DISTILBERT | {"num_labels": 7, "n_layers": 1,
                                                           "problem_type": "multi_label_classification"}),
    "electra-projected": ("electra", BERT | {"num_labels": 2, "embedding_size": 20}),
    "electra-same-width": ("electra", BERT | {"num_labels": 7, "embedding_size": 48, "hidden_act": "relu"}),
    "albert": ("albert", BERT | {"num_labels": 2, "embedding_size": 20}),
    "albert-groups-uneven": ("albert", BERT | {"num_labels": 7, "embedding_size": 24, "num_hidden_layers": 5,
                                               "num_hidden_groups": 2, "hidden_act": "gelu"}),
    "albert-layers-in-groups": ("albert", BERT | {"num_labels": 3, "embedding_size": 24, "num_hidden_layers": 4,
                                                  "num_hidden_groups": 2, "inner_group_num": 2}),
    "albert-every-layer-own": ("albert", BERT | {"num_labels": 1, "embedding_size": 48, "num_hidden_groups": 3}),
    "mpnet": ("mpnet", BERT | {"num_labels": 2}),
    "mpnet-7-labels": ("mpnet", BERT | {"num_labels": 7, "hidden_act": "gelu_new", "hidden_size": 33,
                                        "num_attention_heads": 3, "layer_norm_eps": 1e-5}),
    "ernie": ("ernie", BERT | {"num_labels": 2}),
    "ernie-tasks": ("ernie", BERT | {"num_labels": 3, "use_task_id": True, "task_type_vocab_size": 5}),
    "megatron-bert": ("megatron-bert", BERT | {"num_labels": 2}),
    "megatron-bert-relu": ("megatron-bert", BERT | {"num_labels": 1, "hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "roberta-prelayernorm": ("roberta-prelayernorm", ROBERTA | {"num_labels": 2}),
    "roberta-prelayernorm-7-labels": ("roberta-prelayernorm", ROBERTA | {"num_labels": 7, "pad_token_id": 3}),
    "xlm-roberta-xl": ("xlm-roberta-xl", ROBERTA | {"num_labels": 2}),
    "xlm-roberta-xl-relu": ("xlm-roberta-xl", ROBERTA | {"num_labels": 1, "hidden_act": "relu"}),
    "rembert": ("rembert", BERT | {"num_labels": 2, "input_embedding_size": 20, "output_embedding_size": 30}),
    "rembert-same-width": ("rembert", BERT | {"num_labels": 7, "input_embedding_size": 48}),
    "luke": ("luke", ROBERTA | LUKE | {"num_labels": 2}),
    "luke-plain-attention": ("luke", ROBERTA | LUKE | {"num_labels": 7, "use_entity_aware_attention": False,
                                                       "entity_emb_size": 48}),
    "roformer": ("roformer", BERT | {"num_labels": 2}),
    "roformer-projected": ("roformer", BERT | {"num_labels": 7, "embedding_size": 20, "hidden_act": "relu",
                                               "num_attention_heads": 2}),
    "esm-rotary": ("esm", ESM | {"num_labels": 2, "position_embedding_type": "rotary", "token_dropout": True}),
    "esm-absolute": ("esm", ESM | {"num_labels": 7, "position_embedding_type": "absolute", "rope_theta": 50.0,
                                   "emb_layer_norm_before": True}),
    "esm-rotary-theta": ("esm", ESM | {"num_labels": 1, "position_embedding_type": "rotary", "rope_theta": 50.0}),
    "ibert": ("ibert", ROBERTA | {"num_labels": 2}),
    "ibert-7-labels": ("ibert", ROBERTA | {"num_labels": 7, "layer_norm_eps": 1e-5, "type_vocab_size": 2}),
    "xmod": ("xmod", XMOD | {"num_labels": 2}),
    "xmod-pre-norm": ("xmod", XMOD | {"num_labels": 7, "pre_norm": True, "adapter_layer_norm": True,
                                      "ln_before_adapter": False, "adapter_reduction_factor": 3}),
    "xmod-bare": ("xmod", XMOD | {"num_labels": 1, "adapter_reuse_layer_norm": False, "hidden_act": "relu"}),
    "xmod-added-raw": ("xmod", XMOD | {"num_labels": 2, "ln_before_adapter": False, "default_language": "en_XX"}),
}  # fmt: skip
