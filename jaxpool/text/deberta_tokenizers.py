"""Tokenizers that transformers 5 builds otherwise than the versions that models were trained with.

transformers 5 builds these classes anew from the vocabulary alone. For DeBERTa 2 and 3 it then puts NFC in the place of
the character map of the SentencePiece model (https://github.com/google/sentencepiece, ``precompiled_charsmap``), so
that full-width letters, ligatures and fractions become other tokens; for DeBERTa 1 it joins pairs by two separators
without types, as RoBERTa does. Models know the ids they were trained with, so here the files decide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def mend(hf: Any, folder: Path) -> None:
    """Gives a transformers tokenizer what its files say: how texts are normalised and split, and how pairs are joined.

    Args:
        hf: the tokenizer that transformers made of the folder; changed in place. Only the classes above are.
        folder: its files.
    """
    kind = type(hf).__name__
    if kind not in ("DebertaTokenizer", "DebertaV2Tokenizer"):
        return
    backend, file = hf.backend_tokenizer, folder / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        stored = Tokenizer.from_file(str(file))
        backend.normalizer, backend.pre_tokenizer = stored.normalizer, stored.pre_tokenizer
        backend.post_processor = stored.post_processor
        return
    backend.post_processor = _pairs(hf)
    if kind == "DebertaV2Tokenizer":
        backend.normalizer = _sentencepiece(folder, hf.do_lower_case)


def _pairs(hf: Any) -> Any:
    """``[CLS] A [SEP] B [SEP]``; the second text and its separator are of type 1."""
    from tokenizers.processors import TemplateProcessing

    cls, sep = str(hf.cls_token), str(hf.sep_token)
    return TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, hf.cls_token_id), (sep, hf.sep_token_id)],
    )


def _sentencepiece(folder: Path, lower: bool) -> Any:
    """What the SentencePiece model in the folder does to texts before it cuts them."""
    from tokenizers import Regex, normalizers
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString((folder / "spm.model").read_bytes())
    charsmap = model.normalizer_spec.precompiled_charsmap
    steps: list[Any] = [normalizers.Lowercase()] if lower else []
    steps.append(normalizers.Strip())
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    return normalizers.Sequence(steps)
