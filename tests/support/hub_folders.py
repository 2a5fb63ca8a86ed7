"""Makes the folders of ``hub_layouts.py``, and torch's answers for them.

A change renames or adds what older versions or other code wrote; none of them changes what the model computes, so the
reference is transformers' class (or, for models with code of their own, that class with the mask their code has) on
the checkpoint before the change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from hub_layouts import JINA_MAP, SIZES, Layout
from own_code import OWN
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Fields = dict[str, Any]
Own = Callable[[Tensors, Fields, list[int]], torch.Tensor]


def ids_of(layout: Layout) -> list[list[int]]:
    """Two texts without special tokens, but for the layout's tail."""
    rng = np.random.default_rng(3)
    return [[*rng.integers(5, 60, length).tolist(), *layout.tail] for length in (10, 7)]


def make(folder: Path, layout: Layout) -> np.ndarray:
    """Writes the folder; returns torch's answers, one row per text, or per token of both."""
    sizes = SIZES[layout.model_type] | layout.sizes | ({"num_labels": layout.labels} if layout.labels else {})
    tiny.save(folder, layout.model_type, head=layout.head, dtype=layout.dtype, **sizes)
    tensors, path = load_file(folder / "model.safetensors"), folder / "config.json"
    fields: Fields = json.loads(path.read_text())
    fields = {name: value for name, value in (fields | layout.config).items() if value is not None}
    own = next((name for name in layout.changes if name in OWN), None)
    theirs = np.zeros(0) if layout.refused or own else answers(folder, layout, fields)
    for name in layout.changes:
        tensors, fields = CHANGES.get(name, lambda *same: same)(tensors, fields)
    if own and not layout.refused:
        with torch.no_grad():
            theirs = own_answers(tensors, layout, fields, OWN[own])
    path.write_text(json.dumps(fields))
    (folder / "model.safetensors").unlink()
    if "bin" in layout.changes:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    if layout.pooling:
        sentence_files(folder, layout)
        if layout.dense:
            theirs = dense_files(folder, layout, theirs)
    if "splade" in layout.changes:
        kinds = {"MLMTransformer": "", "SpladePooling": "1_SpladePooling"}
        modules = [
            {"path": kinds[kind], "type": f"sentence_transformers.sparse_encoder.models.{kind}"} for kind in kinds
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
    return theirs


def answers(folder: Path, layout: Layout, fields: Fields) -> np.ndarray:
    """What transformers computes of the folder in float32, with the fields of the published config that it reads."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForTextEncoding,
        AutoModelForTokenClassification,
    )

    read = {"rope_theta", "rope_parameters", "pad_token_id", "pooler_hidden_act", "pooling"} & layout.config.keys()
    path = folder / "config.json"
    kept = json.loads(path.read_text())
    wanted = {name: layout.config[name] for name in read}
    path.write_text(json.dumps({name: x for name, x in (kept | wanted).items() if x is not None or name in wanted}))
    config = AutoConfig.from_pretrained(folder)
    kinds = {"tokens": AutoModelForTokenClassification, "none": AutoModel, "masked": AutoModelForMaskedLM,
             "encoder": AutoModelForTextEncoding}  # fmt: skip
    kind = kinds.get(layout.head) or tiny.classifier(config)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    path.write_text(json.dumps(kept))
    both_ways = bool({"both_ways", "bidirectional"} & set(layout.changes))
    rows = []
    with torch.no_grad():
        for ids in ids_of(layout):
            row, length = torch.tensor([ids]), len(ids)
            # A mask of zeros for every pair hides nothing, whatever the class would hide by itself.
            mask = torch.zeros(1, 1, length, length) if both_ways else torch.ones(1, length, dtype=torch.long)
            if layout.head == "sequence" and not both_ways:
                rows.append(model(row, attention_mask=mask).logits[0])
            elif layout.head == "sequence":
                rows.append(model.score(model.model(row, attention_mask=mask).last_hidden_state[0].mean(0)))
            elif layout.per_token:
                rows.append(model(row, attention_mask=mask).logits[0])
            else:
                rows.append(embedded(model(row, attention_mask=mask).last_hidden_state[0], layout))
    return torch.cat(rows).numpy() if layout.per_token else torch.stack(rows).numpy()


def own_answers(tensors: Tensors, layout: Layout, fields: Fields, hidden: Own) -> np.ndarray:
    """The same of a model that transformers does not have: a pooler and a classifier on it, or an embedding."""
    bare = {name.removeprefix("bert."): x.float() for name, x in tensors.items()}
    rows = []
    for ids in ids_of(layout):
        x = hidden(bare, fields, ids)
        if layout.head == "sequence":
            first = torch.tanh(torch.nn.functional.linear(x[0], bare["pooler.dense.weight"], bare["pooler.dense.bias"]))
            rows.append(torch.nn.functional.linear(first, bare["classifier.weight"], bare["classifier.bias"]))
        else:
            rows.append(embedded(x, layout))
    return torch.stack(rows).numpy()


def embedded(hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The pooled vector; of length one, unless a Dense module follows, which ends the layouts that have one."""
    pooled = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[layout.pooling]
    return pooled if layout.dense else torch.nn.functional.normalize(pooled, dim=0)


def dense_files(folder: Path, layout: Layout, pooled: np.ndarray) -> np.ndarray:
    """A Dense module after Pooling, in place of Normalize; what it makes of pooled vectors."""
    width = pooled.shape[1]
    layer, activation = torch.nn.Linear(width, layout.dense), getattr(torch.nn, layout.activation)()
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1] = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps(modules))
    name = f"{type(activation).__module__}.{type(activation).__name__}"
    settings = {"in_features": width, "out_features": layout.dense, "bias": True, "activation_function": name}
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    torch.save({f"linear.{key}": x for key, x in layer.state_dict().items()}, folder / "2_Dense" / "pytorch_model.bin")
    with torch.no_grad():
        return activation(layer(torch.from_numpy(pooled))).numpy()


def sentence_files(folder: Path, layout: Layout) -> None:
    """Sentence-Transformers' modules; with ``below``, the model in a folder of its own, as version 0 wrote it."""
    inner = "0_Transformer" if "below" in layout.changes else ""
    if inner:
        (folder / inner).mkdir()
        for file in [path for path in folder.iterdir() if path.is_file()]:
            file.rename(folder / inner / file.name)
    kinds = {"Transformer": inner, "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
               for i, (kind, place) in enumerate(kinds.items())]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    flags = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    modes = {f"pooling_mode_{flag}": kind == layout.pooling for kind, flag in flags.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
    settings = {"max_seq_length": 256, "do_lower_case": False}
    (folder / inner / "sentence_bert_config.json").write_text(json.dumps(settings))


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """The tensors under names in which patterns are replaced."""
    names = {name: name for name in tensors}
    for pattern, new in pairs:
        names = {old: re.sub(pattern, new, name) for old, name in names.items()}
    return {names[old]: x for old, x in tensors.items()}


def _top(tensors: Tensors) -> str:
    """What stands before ``embeddings.``."""
    return next(name for name in tensors if "embeddings." in name).split("embeddings.")[0]


def _position_ids(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    counted = torch.arange(fields["max_position_embeddings"])[None]
    return tensors | {f"{_top(tensors)}embeddings.position_ids": counted}, fields


def _pooler(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    top, width = _top(tensors), fields["hidden_size"]
    pooler = {f"{top}pooler.dense.weight": torch.randn(width, width), f"{top}pooler.dense.bias": torch.randn(width)}
    return pooler | tensors, fields


def _new(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    theta = fields.pop("rope_parameters")["rope_theta"]
    own = {"model_type": "new", "architectures": ["NewForSequenceClassification"], "rope_theta": theta,
           "position_embedding_type": "rope", "pack_qkv": True, "layer_norm_type": "layer_norm",
           "logn_attention_scale": False, "unpad_inputs": False, "use_memory_efficient_attention": False,
           "auto_map": {"AutoModelForSequenceClassification":
                        "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification"}}  # fmt: skip
    return renamed(tensors, (r"^gte\.", "new.")), fields | own


def _flash(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    fused: Tensors = {}
    for name in [name for name in tensors if ".attention.self.query." in name]:
        parts = [tensors.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        fused[name.replace("attention.self.query", "mixer.Wqkv")] = torch.cat(parts)
    old = [(r"encoder\.layer\.", "encoder.layers."), (r"attention\.output\.dense", "mixer.out_proj"),
           (r"attention\.output\.LayerNorm", "norm1"), (r"intermediate\.dense", "mlp.fc1"),
           (r"output\.dense", "mlp.fc2"), (r"output\.LayerNorm", "norm2"),
           (r"embeddings\.LayerNorm", "emb_ln")]  # fmt: skip
    return renamed(tensors | fused, *old), fields


def _bidirectional(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    code = "llama_bidirectional_model.LlamaBidirectionalForSequenceClassification"
    own = {"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalForSequenceClassification"],
           "auto_map": {"AutoModelForSequenceClassification": code}}  # fmt: skip
    return tensors, fields | own


def _nomic(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
             "intermediate_size": "n_inner", "max_position_embeddings": "n_positions",
             "layer_norm_eps": "layer_norm_epsilon"}  # fmt: skip
    theta = fields.pop("rope_parameters")["rope_theta"]
    for name in ("head_dim", "hidden_act"):
        fields.pop(name)
    own = {"activation_function": "swiglu", "causal": False, "prenorm": False, "rotary_emb_base": theta,
           "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "qkv_proj_bias": False, "mlp_fc1_bias": False,
           "mlp_fc2_bias": False, "use_rms_norm": False, "use_flash_attn": True, "pad_vocab_size_multiple": 64,
           "fused_bias_fc": True, "fused_dropout_add_ln": True, "dense_seq_output": True, "max_trained_positions": 2048,
           "rotary_scaling_factor": None, "scale_attn_weights": True, "use_xentropy": True,
           "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}}  # fmt: skip
    return renamed(tensors, (r"^nomic_bert\.", "")), {names.get(k, k): v for k, v in fields.items()} | own


def _nomic_moe(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    tensors, fields = _nomic(tensors, fields)
    width, inner, experts = fields["n_embd"], fields["n_inner"], 4
    new: Tensors = {}
    for i in range(fields["n_layer"]):
        at = f"encoder.layers.{i}"
        sizes = {f"{at}.attn.Wqkv.bias": (3 * width,), f"{at}.attn.out_proj.bias": (width,)}
        if i % 2:
            sizes |= {f"{at}.mlp.router.layer.weight": (experts, width), f"{at}.mlp.experts.bias": (width,)}
            sizes |= {f"{at}.mlp.experts.mlp.{w}": (experts * inner, width) for w in ("w1", "w2")}
        else:
            sizes |= {f"{at}.mlp.fc1.weight": (inner, width), f"{at}.mlp.fc1.bias": (inner,),
                      f"{at}.mlp.fc2.weight": (width, inner), f"{at}.mlp.fc2.bias": (width,)}  # fmt: skip
        new |= {name: torch.randn(*size) * 0.2 for name, size in sizes.items()}
    kept = {name: x for name, x in tensors.items() if ".mlp." not in name}
    own = {"activation_function": "gelu", "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True,
           "moe_every_n_layers": 2, "num_experts": experts, "moe_top_k": 2, "moe_impl": "megablocks", "ffn_div": 1,
           "moe_normalize_expert_weights": False, "num_shared_experts": 0,
           "moe_resid_pdrop": 0.0, "add_pooling_layer": False}  # fmt: skip
    return kept | new, fields | own


def _adapters(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    adapted = {
        name: x for name, x in tensors.items() if re.search(r"(Wqkv|out_proj|fc1|fc2|_embeddings)\.weight", name)
    }
    kept = {f"roberta.{name}": x for name, x in tensors.items() if name not in adapted}
    for name, x in adapted.items():
        place = f"roberta.{name[:-7]}.parametrizations.weight"
        kept |= {
            f"{place}.original": x,
            f"{place}.0.lora_A": torch.rand(5, 4, 8),
            f"{place}.0.lora_B": torch.rand(5, 8, 4),
        }
    theta = fields.pop("rope_parameters")["rope_theta"]
    code = "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"
    own = {"model_type": "xlm-roberta", "architectures": ["XLMRobertaLoRA"], "auto_map": {"AutoModel": code},
           "rotary_emb_base": theta, "position_embedding_type": "rotary", "lora_rank": 4, "lora_alpha": 1,
           "lora_adaptations": ["retrieval.query"], "load_trained_adapters": True, "use_flash_attn": True,
           "emb_pooler": None, "matryoshka_dimensions": [8, 16]}  # fmt: skip
    return kept, fields | own


def _jina_bert(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    inner, width = fields["intermediate_size"], fields["hidden_size"]
    kept = {
        name: x for name, x in tensors.items() if "position_embeddings" not in name and ".intermediate." not in name
    }
    places = [name.removesuffix("output.LayerNorm.weight") for name in kept if ".output.LayerNorm.weight" in name
              and ".attention." not in name]  # fmt: skip
    glu = {f"{place}mlp.gated_layers.weight": torch.randn(2 * inner, width) * 0.2 for place in places}
    renames = [
        (r"(layer\.\d+)\.output\.dense", r"\1.mlp.wo"),
        (r"(layer\.\d+)\.output\.LayerNorm", r"\1.mlp.layernorm"),
    ]
    own = {"position_embedding_type": "alibi", "attn_implementation": "torch", "emb_pooler": "mean",
           "architectures": ["JinaBertForMaskedLM"], "auto_map": JINA_MAP, "feed_forward_type": "geglu"}  # fmt: skip
    return renamed(kept, *renames) | glu, own | fields


def _gpt2_masks(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    size = fields["n_positions"]
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, size, size).tril() for i in range(fields["n_layer"])}
    low = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(fields["n_layer"])}
    return tensors | masks | low, fields


def _inv_freq(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(fields["num_hidden_layers"])]
    return tensors | {name: torch.rand(4) for name in names}, fields


def _next(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    head = {"cls.seq_relationship.weight": torch.randn(2, 32), "cls.seq_relationship.bias": torch.randn(2)}
    return tensors | head, fields


def _decoder(tensors: Tensors, fields: Fields) -> tuple[Tensors, Fields]:
    again = {"weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
             "bias": tensors["cls.predictions.bias"].clone()}  # fmt: skip
    return tensors | {f"cls.predictions.decoder.{name}": x for name, x in again.items()}, fields


CHANGES: dict[str, Callable[[Tensors, Fields], tuple[Tensors, Fields]]] = {
    "position_ids": _position_ids,
    "pooler": _pooler,
    "gamma_beta": lambda x, fields: (
        renamed(x, (r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta")),
        fields,
    ),
    "loss": lambda x, fields: (x | {"loss_fct.weight": torch.rand(fields.get("num_labels", 3))}, fields),
    "new": _new,
    "flash": _flash,
    "bidirectional": _bidirectional,
    "nomic": _nomic,
    "nomic_moe": _nomic_moe,
    "adapters": _adapters,
    "jina_bert": _jina_bert,
    "next": _next,
    "decoder": _decoder,
    "gpt2_masks": _gpt2_masks,
    "inv_freq": _inv_freq,
}
"""Name -> what it makes of tensors and fields; ``bin``, ``below``, ``both_ways`` and ``splade`` act elsewhere."""
