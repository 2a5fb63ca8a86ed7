"""Model types that have a sequence classifier in transformers and none here yet, each with the reason.

``find`` quotes the reason; a test holds this table against transformers' own list, so that no type is forgotten.
"""

from __future__ import annotations

_BOXES = "it reads the position of every token on a page, which a text alone does not have"
_LINEAR = "it mixes gated linear attention into its layers, which no operation here computes yet"
_RARE = "few classifiers of this kind are published; nobody has asked for it so far"

NOT_YET: dict[str, str] = {
    "axk1": "its mixture of experts with latent attention has variants not checked yet",
    "axk2": "its mixture of experts with latent attention has variants not checked yet",
    "bigbird_pegasus": "its encoder attends to random blocks, chosen anew at every call",
    "canine": "it reads characters, hashes them and downsamples by convolution",
    "cohere_compass_text": _RARE,
    "diffllama": "its attention is the difference of two, which no operation here computes yet",
    "doge": "its attention keeps only the keys that it scores highest, by a mask that depends on the values",
    "gpt-sw3": "its model_type is gpt2 in every published config",
    "jetmoe": "its attention heads are experts too",
    "layoutlm": _BOXES,
    "layoutlmv2": _BOXES,
    "layoutlmv3": _BOXES,
    "lilt": _BOXES,
    "markuplm": "it reads the XPath of every token in an HTML page",
    "minimax": _LINEAR,
    "modernvbert": "a vision model; its text part is modernbert",
    "mra": "its attention picks blocks by a multi-resolution approximation",
    "perceiver": "it reads bytes through a latent array",
    "qwen3_5": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "reformer": "it hashes queries into buckets with random rotations",
    "roc_bert": "it reads the shape and the pronunciation of every character besides its id",
    "t5gemma": _RARE,
    "t5gemma2": _RARE,
    "tapas": "it reads the row and column of every token in a table",
    "ultrabert": _RARE,
    "ultravbert": _RARE,
    "yoso": "its attention samples by hashing",
    "zamba": "it shares attention blocks between state-space layers with adapters",
    "zamba2": "it shares attention blocks between state-space layers with adapters",
}
