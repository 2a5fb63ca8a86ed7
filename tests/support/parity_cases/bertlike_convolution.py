"""ConvBERT, Nyströmformer, SqueezeBERT, MobileBERT."""

from __future__ import annotations

from typing import Any

from parity_cases.first import BERT

SQUEEZE = BERT | {"embedding_size": 48, "hidden_act": "gelu"}
MOBILE = BERT | {"embedding_size": 20, "intra_bottleneck_size": 24, "num_feedforward_networks": 3}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "convbert": ("convbert", BERT | {"num_labels": 2, "embedding_size": 48, "conv_kernel_size": 5}),
    "convbert-groups-projected": ("convbert", BERT | {"num_labels": 7, "embedding_size": 20, "num_groups": 2,
                                                      "conv_kernel_size": 9, "hidden_act": "relu"}),
    "convbert-one-head-left": ("convbert", BERT | {"num_labels": 1, "embedding_size": 48, "head_ratio": 8}),
    "nystromformer": ("nystromformer", BERT | {"num_labels": 2}),
    "nystromformer-short-filter": ("nystromformer", BERT | {"num_labels": 7, "conv_kernel_size": 3, "num_landmarks": 4,
                                                            "segment_means_seq_len": 4, "hidden_act": "relu"}),
    "squeezebert": ("squeezebert", SQUEEZE | {"num_labels": 2}),
    "squeezebert-groups": ("squeezebert", SQUEEZE | {"num_labels": 7, "q_groups": 1, "k_groups": 2, "v_groups": 3,
                                                     "post_attention_groups": 2, "intermediate_groups": 8,
                                                     "output_groups": 1, "layer_norm_eps": 1e-3}),
    "mobilebert": ("mobilebert", MOBILE | {"num_labels": 2}),
    "mobilebert-layer-norms": ("mobilebert", MOBILE | {"num_labels": 7, "normalization_type": "layer_norm",
                                                       "use_bottleneck_attention": True, "layer_norm_eps": 1e-3}),
    "mobilebert-plain": ("mobilebert", MOBILE | {"num_labels": 1, "use_bottleneck": False, "trigram_input": False,
                                                 "embedding_size": 48, "num_feedforward_networks": 1,
                                                 "classifier_activation": False, "hidden_act": "gelu"}),
    "mobilebert-one-bottleneck": ("mobilebert", MOBILE | {"num_labels": 2, "intra_bottleneck_size": 48,
                                                          "key_query_shared_bottleneck": False}),
}  # fmt: skip
