"""Where the last linear layer of the head comes from: the checkpoint's own head, or rows of its LM head."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

from jaxpool.errors import ConfigError, MissingHeadError, WeightsError
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.rules import NO_HEAD, HeadSource, Ignore, Table

FROM_2_WAY_SOFTMAX = "from_2_way_softmax"
NO_POST_PROCESSING = "no_post_processing"

# Decoders, BERT-like masked LMs, GPT-NeoX. A prefix may stand before each.
_LM_HEADS = ("lm_head", "cls.predictions.decoder", "embed_out")


def find_head(
    reader: Reader,
    table: Table,
    *,
    num_labels: int | None,
    width: int,
    token_ids: tuple[int, ...] | None = None,
    method: str | None = None,
    tied: bool = False,
) -> HeadSource:
    """Find the head of a checkpoint, or describe how LM-head rows become one.

    Args:
        reader: the checkpoint.
        table: the family's table; ``head_names`` are searched in order.
        num_labels: what the configuration says, None if it says nothing. Not consulted with ``token_ids``,
            which decide the number of labels themselves.
        width: size of the vector that the head reads.
        token_ids: tokens (``classifier_from_token``, looked up in the vocabulary) whose LM-head rows make the
            head.
        method: ``from_2_way_softmax`` (two tokens, [false, true], one label) or ``no_post_processing`` (one
            label per token).
        tied: whether the LM head is the token embedding.

    Raises:
        MissingHeadError: there is no head, or no LM head to take rows from.
        WeightsError: the head has another shape than the configuration says.
        ConfigError: ``token_ids`` and ``method`` do not go together, or a token id is out of the vocabulary.
    """
    if token_ids is None and method is None:
        return _ready_made(reader, table, num_labels, width)
    return _from_tokens(reader, table, width, token_ids, method, tied)


def _ready_made(reader: Reader, table: Table, num_labels: int | None, width: int) -> HeadSource:
    searched = tuple(f"{name}.weight" for name in table.head_names)
    weight = _first(reader, searched, table)
    if weight is None:
        raise MissingHeadError(
            f"{reader.folder} has no classification head (looked for {' and '.join(searched)}). Use a "
            "checkpoint with a head, or train one with `jaxpool fit`, or for a language model make one from "
            "its LM head with "
            'hf_overrides={"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"} '
            '(or "no_post_processing" for one label per token)'
        )
    shape = reader.shape(weight)
    if len(shape) != 2 or shape[1] != width or shape[0] == 0:
        raise WeightsError(
            f"the head {weight} has shape {list(shape)}, but [labels, {width}] is needed; "
            "config.json and weights are from different checkpoints"
        )
    if num_labels is not None and shape[0] != num_labels:
        raise WeightsError(
            f"config.json says {num_labels} labels (num_labels or id2label), but {weight} has {shape[0]}; "
            f'correct the configuration, with hf_overrides={{"num_labels": {shape[0]}}} perhaps, '
            f"or use a checkpoint with {num_labels} labels"
        )
    bias = _bias(reader, weight, shape[0], table.head_bias)
    return HeadSource(weight, bias, num_labels=shape[0])


def _from_tokens(
    reader: Reader,
    table: Table,
    width: int,
    token_ids: tuple[int, ...] | None,
    method: str | None,
    tied: bool,
) -> HeadSource:
    methods = f"{FROM_2_WAY_SOFTMAX} or {NO_POST_PROCESSING}"
    if method is None:
        raise ConfigError(f"classifier_from_token is set, but method is not; set it to {methods}")
    if method not in (FROM_2_WAY_SOFTMAX, NO_POST_PROCESSING):
        raise ConfigError(f"the method {method!r} for making a head is unknown; use {methods}")
    if not token_ids:
        raise ConfigError(f"method is {method}, but classifier_from_token names no tokens; set it to a list of tokens")
    if method == FROM_2_WAY_SOFTMAX and (len(token_ids) != 2 or token_ids[0] == token_ids[1]):
        raise ConfigError(
            f"{FROM_2_WAY_SOFTMAX} needs exactly two different tokens, [false, true], but "
            f"classifier_from_token gives {len(token_ids)} (ids {', '.join(map(str, token_ids[:10]))})"
        )
    searched = (table.embedding,) if tied else tuple(f"{name}.weight" for name in _LM_HEADS)
    weight = _first(reader, searched, table)
    if weight is None:
        raise MissingHeadError(
            f"{reader.folder} has no LM head to take the rows of classifier_from_token from "
            f"(looked for {', '.join(searched)}; tie_word_embeddings is {str(tied).lower()})"
        )
    shape = reader.shape(weight)
    if len(shape) != 2 or shape[1] != width:
        raise WeightsError(f"the LM head {weight} has shape {list(shape)}, but [vocabulary, {width}] is needed")
    outside = [i for i in token_ids if not 0 <= i < shape[0]]
    if outside:
        raise ConfigError(
            f"classifier_from_token gives token id {outside[0]}, but {weight} has {shape[0]} rows; "
            "use tokens of this checkpoint's own vocabulary"
        )
    return HeadSource(
        weight,
        None if tied else _bias(reader, weight, shape[0]),
        num_labels=1 if method == FROM_2_WAY_SOFTMAX else len(token_ids),
        rows=tuple(token_ids),
        method=cast(Literal["from_2_way_softmax", "no_post_processing"], method),
    )


def find_vocabulary(reader: Reader, table: Table, width: int, *, tied: bool) -> HeadSource:
    """The whole head of a language model, a label per token of the vocabulary; ``NO_HEAD`` if it is the embedding.

    Raises:
        MissingHeadError: there is none.
        WeightsError: it has another shape than the configuration says.
    """
    if tied:
        return NO_HEAD
    searched = tuple(f"{name}.weight" for name in _LM_HEADS)
    weight = _first(reader, searched, table)
    if weight is None:
        raise MissingHeadError(
            f"{reader.folder} has no language-model head (looked for {', '.join(searched)}), and config.json does not "
            'say that it is the token embedding; if it is, pass hf_overrides={"tie_word_embeddings": true}'
        )
    shape = reader.shape(weight)
    if len(shape) != 2 or shape[1] != width:
        raise WeightsError(f"the LM head {weight} has shape {list(shape)}, but [vocabulary, {width}] is needed")
    return HeadSource(weight, _bias(reader, weight, shape[0]), num_labels=shape[0])


def _first(reader: Reader, searched: tuple[str, ...], table: Table) -> str | None:
    """The first name that exists; each is tried as it is, then behind every prefix."""
    names = reader.names()
    return next((prefix + name for name in searched for prefix in table.prefixes if prefix + name in names), None)


def _bias(reader: Reader, weight: str, rows: int, other: str = "") -> str | None:
    names = (other, weight.removesuffix(".weight") + ".bias")
    bias = next((name for name in names if name in reader.names()), None)
    if bias is None:
        return None
    if reader.shape(bias) != (rows,):
        raise WeightsError(f"{bias} has shape {list(reader.shape(bias))}, but {weight} has {rows} rows")
    return bias


def has_pooler(table: Table) -> bool:
    """Whether the layers before the last one stand beside the classifier (BERT's pooler), not in it (RoBERTa)."""
    classifiers = {name.split(".")[0] for name in table.head_names}
    return any(rule.source.split(".")[0] not in classifiers for rule in table.head)


def headless(table: Table) -> Table:
    """A table under which every head of a checkpoint is ignored."""
    why = "of a head that this task does not use"
    tops = dict.fromkeys(name.split(".")[0] for name in (*table.head_names, "classifier", "score"))
    unused = (*(rule.source for rule in table.head), *(f"{top}.{{rest}}" for top in tops))
    return replace(
        table, head=(), head_names=(), head_bias="", ignore=(*table.ignore, *(Ignore(name, why) for name in unused))
    )
