"""Published checkpoints by name: what their folders hold that today's transformers would not write.

Each row is a tiny random checkpoint made to look like the folder on the hub: its class, its older ``config.json``, its
names of tensors, its dtype and container, and Sentence-Transformers' files. Sizes are small, facts of the layout are
the checkpoint's. Everything is data; ``hub_folders.py`` makes the folders, ``test_hub_layouts.py`` opens them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
         "max_position_embeddings": 64}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL | {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": SMALL | {"pad_token_id": 1, "type_vocab_size": 1},
    "camembert": SMALL | {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40,
                   "max_position_embeddings": 64},
    "albert": SMALL | {"embedding_size": 16},
    "electra": SMALL | {"embedding_size": 32},
    "mpnet": SMALL,
    "deberta": SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": -1,
                        "position_biased_input": False, "type_vocab_size": 0},
    "deberta-v2": SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1,
                           "position_biased_input": False, "type_vocab_size": 0, "position_buckets": 16,
                           "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "modernbert": SMALL | {"global_attn_every_n_layers": 2, "local_attention": 8, "classifier_pooling": "mean"},
    "gte": SMALL,
    "nomic_bert": SMALL,
    "jina_embeddings_v3": SMALL | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "bart": {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
             "max_position_embeddings": 64, "eos_token_id": 2, "pad_token_id": 1},
    "gpt2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 2},
    "llama": SMALL | {"num_key_value_heads": 2, "pad_token_id": 2},
    "mistral": SMALL | {"num_key_value_heads": 2, "pad_token_id": 2, "sliding_window": 16},
    "qwen2": SMALL | {"num_key_value_heads": 2, "pad_token_id": 2},
    "qwen3": SMALL | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2},
}  # fmt: skip
"""Model type -> tiny sizes with the published settings."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One published checkpoint.

    Attributes:
        model_type: transformers' type of the same model.
        labels: of its head; 0 for an embedder.
        head: ``sequence``, ``tokens``, ``causal`` or ``none``, as in ``tiny.save``.
        dtype: of the stored weights.
        changes: names of the changes of ``hub_folders.CHANGES``, in order.
        config: fields of the published ``config.json`` on top; None removes one.
        pooling: ``mean``, ``cls``, ``lasttoken`` for embedders with Sentence-Transformers' files, else empty.
        sizes: what differs from ``SIZES``.
        refused: pattern of the message where the checkpoint is refused, by intention.
        warned: a word of the warning that opening it must log, else empty: it must log none.
        tail: ids that every text ends with (a padding token, say).
        dense: width of a Dense module after the pooling, 0 for none.
        activation: of that module, a class of ``torch.nn``.
    """

    model_type: str
    labels: int = 2
    head: str = "sequence"
    dtype: str = "float32"
    changes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    warned: str = ""
    tail: tuple[int, ...] = ()
    dense: int = 0
    activation: str = "Identity"

    @property
    def per_token(self) -> bool:
        """Whether every token has answers of its own."""
        return self.head in ("tokens", "masked")


V3 = {"torch_dtype": None, "output_past": True, "_num_labels": 2, "pruned_heads": {}, "torchscript": False,
      "finetuning_task": "sst-2", "use_bfloat16": False, "output_attentions": False, "is_decoder": False,
      "length_penalty": 1.0, "num_beams": 1, "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
      "transformers_version": None, "dtype": None}  # fmt: skip
"""A dump of everything, as the versions before 3 wrote it."""
V4 = {"_name_or_path": "x/y", "gradient_checkpointing": False, "position_embedding_type": "absolute", "use_cache": True,
      "transformers_version": "4.9.2", "torch_dtype": "float32", "dtype": None, "classifier_dropout": None}  # fmt: skip
GOOGLE = {"directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
          "pooler_size_per_head": 128, "pooler_type": "first_token_transform"}  # fmt: skip
SBERT_CE = "sbert_ce_default_activation_function"
IDENTITY = "torch.nn.modules.linear.Identity"
DISTIL = {"tie_weights_": True, "sinusoidal_pos_embds": False, "seq_classif_dropout": 0.2, "qa_dropout": 0.1}
DEBERTA = {"pooler_dropout": 0, "pooler_hidden_act": "gelu", "pos_att_type": "p2c|c2p", "legacy": True}
OLD_BART = {"normalize_before": False, "add_final_layer_norm": False, "extra_pos_embeddings": 2, "classif_dropout": 0.0,
            "normalize_embedding": True, "static_position_embeddings": False, "add_bias_logits": False,
            "force_bos_token_to_be_generated": False, "max_length": 20}  # fmt: skip
LLAMA = {"torch_dtype": "bfloat16", "dtype": None, "rope_theta": 500000.0, "rope_scaling": None,
         "rope_parameters": None, "pretraining_tp": 1}  # fmt: skip
QWEN_CODE = {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model",
                          "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"},
             "architectures": ["Qwen2ForCausalLM"]}  # fmt: skip
JINA_FLASH = "modeling_xlm_roberta.XLMRobertaForSequenceClassification"
JINA_MAP = {kind: f"jinaai/jina-bert-implementation--modeling_bert.JinaBert{name}" for kind, name in
            {"AutoModel": "Model", "AutoModelForMaskedLM": "ForMaskedLM",
             "AutoModelForSequenceClassification": "ForSequenceClassification"}.items()}  # fmt: skip
JINA_CODE = {"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"},
             "position_embedding_type": "alibi"}  # fmt: skip
MULTI = {"problem_type": "multi_label_classification"}
ONES = {"labels": 1}

CLASSIFIERS: dict[str, Layout] = {
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": Layout("distilbert", config=V3 | DISTIL),
    "lxyuan/distilbert-base-multilingual-cased-sentiments-student": Layout("distilbert", 3, config=V4 | DISTIL),
    "bhadresh-savani/distilbert-base-uncased-emotion": Layout("distilbert", 6, changes=("bin",), config=V4 | DISTIL),
    "martin-ha/toxic-comment-model": Layout("distilbert", changes=("bin",), config=V4),
    "cardiffnlp/twitter-roberta-base-sentiment-latest": Layout("roberta", 3, changes=("position_ids",), config=V4),
    "cardiffnlp/twitter-roberta-base-sentiment": Layout("roberta", 3, changes=("bin", "pooler"), config=V3),
    "SamLowe/roberta-base-go_emotions": Layout("roberta", 7, config=V4 | MULTI),
    "j-hartmann/emotion-english-distilroberta-base": Layout("roberta", 7, changes=("position_ids", "bin"), config=V4),
    "siebert/sentiment-roberta-large-english": Layout("roberta", 2, changes=("position_ids",), config=V4),
    "facebook/roberta-hate-speech-dynabench-r4-target": Layout("roberta", 2, changes=("bin",), config=V4),
    "finiteautomata/bertweet-base-sentiment-analysis": Layout(
        "roberta", 3, config=V4 | {"tokenizer_class": "BertweetTokenizer"}, sizes={"max_position_embeddings": 34}
    ),
    "wonrax/phobert-base-vietnamese-sentiment": Layout(
        "roberta", 3, config=V4 | {"tokenizer_class": "PhobertTokenizer"}, sizes={"max_position_embeddings": 42}
    ),
    "nlptown/bert-base-multilingual-uncased-sentiment": Layout(
        "bert", 5, changes=("position_ids",), config=V3 | GOOGLE),
    "ProsusAI/finbert": Layout("bert", 3, changes=("bin", "position_ids"), config=V4),
    "yiyanghkust/finbert-tone": Layout("bert", 3, changes=("bin",), config=V3),
    "textattack/bert-base-uncased-SST-2": Layout("bert", changes=("gamma_beta", "bin"), config=V3),
    "unitary/toxic-bert": Layout("bert", 6, config=V4 | MULTI),
    "Intel/polite-guard": Layout("bert", 4, config=V4),
    "HuggingFaceFW/fineweb-edu-classifier": Layout("bert", 1, config=V4 | {"problem_type": "regression"}),
    "papluca/xlm-roberta-base-language-detection": Layout("xlm-roberta", 5, config=V4 | {"output_past": True}),
    "textattack/albert-base-v2-imdb": Layout(
        "albert", changes=("bin",), config=V3 | {"down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0,
                                                 "num_memory_blocks": 0}),
    "jason9693/Qwen2.5-1.5B-apeach": Layout("qwen2", config=LLAMA | {"rope_theta": 1000000.0}),
    "nie3e/sentiment-polish-gpt2-small": Layout("gpt2", 3, changes=("gpt2_masks",), config={"n_ctx": 64}, tail=(2,)),
}  # fmt: skip

PAIRS: dict[str, Layout] = {
    "facebook/bart-large-mnli": Layout("bart", 3, config=V3 | OLD_BART, tail=(2,)),
    "valhalla/distilbart-mnli-12-1": Layout("bart", 3, changes=("bin",), config=OLD_BART, tail=(2,)),
    "FacebookAI/roberta-large-mnli": Layout("roberta", 3, changes=("bin", "pooler"), config=V3),
    "joeddav/xlm-roberta-large-xnli": Layout("xlm-roberta", 3, changes=("pooler",), config=V3),
    "microsoft/deberta-large-mnli": Layout("deberta", 3, changes=("bin",), config=DEBERTA),
    "MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli": Layout("deberta-v2", 3, config=DEBERTA),
    "MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7": Layout("deberta-v2", 3, "sequence", "float16"),
    "tasksource/deberta-small-long-nli": Layout("deberta-v2", 3, changes=("loss",), config=DEBERTA),
    "MoritzLaurer/ModernBERT-large-zeroshot-v2.0": Layout("modernbert", 2, "sequence", "bfloat16"),
    "typeform/distilbert-base-uncased-mnli": Layout("distilbert", 3, changes=("bin",), config=V3 | DISTIL),
    "cross-encoder/ms-marco-MiniLM-L6-v2": Layout("bert", **ONES, config=V4 | {SBERT_CE: IDENTITY}),
    "cross-encoder/ms-marco-TinyBERT-L2-v2": Layout("bert", **ONES, changes=("position_ids",), config=V4),
    "cross-encoder/ms-marco-electra-base": Layout("electra", **ONES, changes=("bin",), config=V4),
    "cross-encoder/nli-deberta-v3-base": Layout("deberta-v2", 3, changes=("bin",), config=DEBERTA),
    "cross-encoder/quora-roberta-base": Layout("roberta", **ONES, changes=("position_ids", "bin"), config=V4),
    "BAAI/bge-reranker-base": Layout("xlm-roberta", **ONES, changes=("position_ids",), config=V4),
    "BAAI/bge-reranker-v2-m3": Layout("xlm-roberta", **ONES, config=V4),
    "mixedbread-ai/mxbai-rerank-base-v1": Layout("deberta-v2", 1, "sequence", "float16", config=DEBERTA),
    "Alibaba-NLP/gte-multilingual-reranker-base": Layout("gte", 1, "sequence", "float16", ("new",)),
    "Alibaba-NLP/gte-reranker-modernbert-base": Layout("modernbert", 1, "sequence", "float16"),
    "jinaai/jina-reranker-v2-base-multilingual": Layout(
        "xlm-roberta", 1, "sequence", "bfloat16", ("flash",), {
            "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
                         "AutoModelForSequenceClassification": JINA_FLASH},
            "use_flash_attn": True, "position_embedding_type": "absolute"}),
    "tomaarsen/Qwen3-Reranker-0.6B-seq-cls": Layout("qwen3", 1, config=LLAMA, tail=(2,)),
    "nvidia/llama-nemotron-rerank-1b-v2": Layout(
        "llama", 1, "sequence", "bfloat16", ("bidirectional",), {"pooling": "avg", "temperature": 1.0}),
    "a llama_bidirec with a temperature": Layout(
        "llama", 1, changes=("bidirectional",), config={"pooling": "avg", "temperature": 0.2},
        refused="temperature=0.2"),
    "jinaai/jina-reranker-v1-turbo-en": Layout(
        "bert", 1, changes=("jina_bert",), config={"architectures": ["JinaBertForSequenceClassification"]}),
    "jinaai/jina-reranker-v1-tiny-en": Layout(
        "bert", 1, "sequence", "float16", ("jina_bert",), {"num_attention_heads": 12, "feed_forward_type": "reglu"},
        sizes={"num_attention_heads": 12, "hidden_size": 48}),
}  # fmt: skip

REWARDS_AND_GUARDS: dict[str, Layout] = {
    "OpenAssistant/reward-model-deberta-v3-large-v2": Layout("deberta-v2", 1, changes=("bin",), config=DEBERTA),
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": Layout("llama", 1, "sequence", "bfloat16", config=LLAMA),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": Layout("qwen3", 1, config=LLAMA, tail=(2, 2)),
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": Layout("llama", 1, changes=("inv_freq",), config=LLAMA),
    "NCSOFT/Llama-3-OffsetBias-RM-8B": Layout("llama", 1, config=LLAMA | {"pad_token_id": None}, tail=(2,)),
    "weqweasdas/RM-Mistral-7B": Layout("mistral", 1, config={"rope_theta": 10000.0, "rope_parameters": None}),
    "internlm/internlm2-1_8b-reward": Layout(
        "llama", 1, config={"model_type": "internlm2", "auto_map": {"AutoModel": "modeling_internlm2.InternLM2Model"}},
        refused="'internlm2' is not known to transformers .* own code is never run"),
    "meta-llama/Llama-Prompt-Guard-2-86M": Layout("deberta-v2", 2),
    "meta-llama/Prompt-Guard-86M": Layout("deberta-v2", 3, config=DEBERTA),
    "protectai/deberta-v3-base-prompt-injection-v2": Layout("deberta-v2", 2, config=DEBERTA),
    "KoalaAI/Text-Moderation": Layout("deberta-v2", 5, config=DEBERTA),
    "qualifire/prompt-injection-sentinel": Layout("modernbert", 2, config={"reference_compile": False}),
}  # fmt: skip

TOKENS: dict[str, Layout] = {
    "dslim/bert-base-NER": Layout("bert", 5, "tokens", changes=("pooler",), config=V3),
    "dbmdz/bert-large-cased-finetuned-conll03-english": Layout(
        "bert", 5, "tokens", changes=("bin",), config=V3 | GOOGLE),
    "Davlan/bert-base-multilingual-cased-ner-hrl": Layout("bert", 5, "tokens", config=V4 | GOOGLE),
    "Jean-Baptiste/camembert-ner": Layout("camembert", 5, "tokens", changes=("position_ids",), config=V3),
    "FacebookAI/xlm-roberta-large-finetuned-conll03-english": Layout("xlm-roberta", 5, "tokens", config=V3),
    "d4data/biomedical-ner-all": Layout("distilbert", 5, "tokens", config=V4 | DISTIL),
    "obi/deid_roberta_i2b2": Layout("roberta", 5, "tokens", changes=("bin", "position_ids"), config=V4),
    "google-bert/bert-base-uncased": Layout("bert", 0, "masked", changes=("gamma_beta", "next"), config=V3),
    "emilyalsentzer/Bio_ClinicalBERT": Layout("bert", 0, "masked", changes=("bin", "decoder"), config=V3),
    "Isotonic/deberta-v3-base_finetuned_ai4privacy_v2": Layout("deberta-v2", 5, "tokens", config=DEBERTA),
}  # fmt: skip

EMBEDDERS: dict[str, Layout] = {
    "sentence-transformers/all-MiniLM-L6-v2": Layout("bert", 0, "none", changes=("position_ids",), pooling="mean"),
    "sentence-transformers/all-mpnet-base-v2": Layout("mpnet", 0, "none", changes=("bin",), pooling="mean"),
    "BAAI/bge-small-en-v1.5": Layout("bert", 0, "none", config=V4, pooling="cls"),
    "intfloat/multilingual-e5-small": Layout("bert", 0, "none", config=V4, pooling="mean"),
    "Snowflake/snowflake-arctic-embed-m": Layout("bert", 0, "none", config=V4, pooling="cls"),
    "sentence-transformers/msmarco-distilbert-base-v2": Layout(
        "distilbert", 0, "none", changes=("bin", "below"), config=V3 | DISTIL, pooling="mean"),
    "nomic-ai/nomic-embed-text-v1": Layout("nomic_bert", 0, "none", changes=("nomic",), pooling="mean"),
    "nomic-ai/nomic-embed-text-v2-moe": Layout(
        "nomic_bert", 0, "none", changes=("nomic_moe",), pooling="mean",
        sizes={"num_hidden_layers": 4, "type_vocab_size": 1}),
    "a nomic_bert whose experts choose": Layout(
        "nomic_bert", 0, "none", changes=("nomic_moe",), config={"expert_choice_router": True}, pooling="mean",
        refused="expert_choice_router=True"),
    "jinaai/jina-embeddings-v3": Layout(
        "jina_embeddings_v3", 0, "none", changes=("adapters",), pooling="mean"),
    "Qwen/Qwen3-Embedding-0.6B": Layout("qwen3", 0, "none", config=LLAMA, pooling="lasttoken", tail=(2,)),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": Layout(
        "qwen2", 0, "none", config=LLAMA | QWEN_CODE, pooling="lasttoken", changes=("both_ways",)),
    "NovaSearch/stella_en_1.5B_v5": Layout(
        "qwen2", 0, "none", config=LLAMA | QWEN_CODE, pooling="mean", changes=("both_ways",), dense=24),
    "sentence-transformers/distiluse-base-multilingual-cased-v2": Layout(
        "distilbert", 0, "none", config=V3 | DISTIL, pooling="mean", dense=16, activation="Tanh"),
    "a model below its modules, a Dense one among them": Layout(
        "distilbert", 0, "none", changes=("below",), config=V3, pooling="mean", dense=16, activation="Tanh"),
    "a qwen2 with unknown code": Layout(
        "qwen2", 0, "none", config=LLAMA | {"auto_map": {"AutoModel": "modeling_mine.MyModel"}}, pooling="lasttoken",
        warned="modeling_mine.MyModel"),
    "a bert with a field of its own": Layout(
        "bert", 0, "none", config={"head_scale": 3.0}, pooling="cls", warned="head_scale=3.0"),
    "jinaai/jina-embeddings-v2-base-en": Layout(
        "bert", 0, "none", changes=("jina_bert",), pooling="mean", sizes={"num_attention_heads": 8}),
    "jinaai/jina-embeddings-v2-base-code": Layout("bert", 0, "none", config=JINA_CODE, refused="qk-post-norm"),
    "a bert that scores by distance, without code": Layout(
        "bert", 0, "none", config={"position_embedding_type": "relative_key"}, pooling="mean",
        refused="position_embedding_type='relative_key'"),
    "naver/splade-v3": Layout("bert", 0, "none", changes=("splade",), refused="sparse encoder"),
}  # fmt: skip

LAYOUTS: dict[str, Layout] = CLASSIFIERS | PAIRS | REWARDS_AND_GUARDS | TOKENS | EMBEDDERS
