"""Any number of texts through a model: tokenised a chunk ahead of the device, results in order, memory flat."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxpool.errors import ValidationError

if TYPE_CHECKING:
    from jaxpool.llm import LLM
    from jaxpool.outputs import ClassificationOutput
    from jaxpool.results import Result

CHUNK = 4096
"""Texts planned together: enough that full buckets are the rule, few enough to hold in memory twice."""


@dataclass(frozen=True, slots=True)
class Item:
    """One text (or pair of texts) to classify.

    Attributes:
        text: the text.
        pair: a second text, for models that read two.
        where: what an error calls it.
        end: bytes of its file that had been read when it was, for progress.
    """

    text: str
    pair: str | None = None
    where: str = "the text"
    end: int = 0

    @property
    def blank(self) -> bool:
        """Whether there is nothing to classify."""
        return not (self.text.strip() or (self.pair or "").strip())

    @property
    def prompt(self) -> str | dict[str, str]:
        """The form that ``LLM`` takes."""
        return self.text if self.pair is None else {"prompt": self.text, "text_pair": self.pair}


def classify(
    llm: LLM,
    items: Iterable[Item],
    *,
    activated: bool = True,
    truncate: bool = False,
    top_k: int | None = None,
    advance: Callable[[int, float], object] = lambda _texts, _read: None,
) -> Iterator[Result]:
    """Classifies a stream.

    While a chunk computes, a thread reads and tokenises the next one. A blank text gets a result without a label,
    so that results line up with what came in.

    Args:
        llm: the model.
        items: the texts; drawn from by one thread at a time.
        activated: probabilities; False gives logits.
        truncate: cut texts that are too long, instead of refusing them.
        top_k: keep so many labels of each result, highest first; None keeps all in the model's order.
        advance: called with how many more texts are done, and about how many bytes of input these were.

    Yields:
        `jaxpool.results.Result` objects, in order.

    Raises:
        ValidationError: a text cannot be classified; the message says which and what to do.
    """
    from jaxpool.params import PoolingParams

    params = PoolingParams(use_activation=activated)
    kind = "probs" if activated else "logits"
    supply = iter(items)

    def prepare() -> tuple[list[Item], list[dict[str, Any]]]:
        chunk = list(itertools.islice(supply, CHUNK))
        return chunk, _tokenise(llm, [item for item in chunk if not item.blank], truncate)

    count, read = itertools.count(), 0
    ahead = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
    try:
        following = ahead.submit(prepare)
        while True:
            chunk, prompts = following.result()
            if not chunk:
                return
            following = ahead.submit(prepare)
            per_text = (chunk[-1].end - read) / len(chunk)  # of this chunk; the file has been read further
            read = chunk[-1].end
            outputs: Iterator[ClassificationOutput] = iter(())
            if prompts:
                bar = functools.partial(_Bar, advance, per_text)
                answers = llm.classify(prompts, pooling_params=params, use_tqdm=bar)
                outputs = iter([answer.outputs for answer in answers])
            blank = len(chunk) - len(prompts)
            advance(blank, blank * per_text)
            for item in chunk:
                output = None if item.blank else next(outputs)
                yield _result(next(count), item, output, kind, llm, top_k)
    finally:
        # Not waited for: the thread may be blocked on a read that never returns.
        ahead.shutdown(wait=False, cancel_futures=True)


def _tokenise(llm: LLM, items: list[Item], truncate: bool) -> list[dict[str, Any]]:
    options = {"truncate_prompt_tokens": -1} if truncate else {}
    try:
        encoded = llm.tokenizer.encode([item.prompt for item in items], options)
    except (ValueError, TypeError):
        for item in items:
            _check(llm, item, options)
        raise
    return [
        {"prompt_token_ids": one.ids} | ({} if one.types is None else {"token_type_ids": one.types}) for one in encoded
    ]


def _check(llm: LLM, item: Item, options: dict[str, Any]) -> None:
    """Raises what is wrong with one item, saying which it is."""
    try:
        llm.tokenizer.encode([item.prompt], options)
        return
    except (ValueError, TypeError) as error:
        problem, remedy = error, ""
    try:
        llm.tokenizer.encode([item.prompt], {"truncate_prompt_tokens": -1})
        remedy = f" Or cut long texts to the first {llm.tokenizer.max_length} tokens with --truncate."
    except (ValueError, TypeError):
        pass
    raise ValidationError(f"{item.where}: {problem}{remedy}") from problem


class _Bar:
    """As much of a tqdm bar as ``LLM.classify`` asks for."""

    def __init__(self, advance: Callable[[int, float], object], per_text: float, **_: object) -> None:
        self._advance, self._per_text = advance, per_text

    def update(self, texts: int) -> None:
        """``texts`` more are done."""
        self._advance(texts, texts * self._per_text)

    def close(self) -> None:
        """The chunk is done; the stream goes on."""


def _result(
    index: int, item: Item, output: ClassificationOutput | None, kind: str, llm: LLM, top_k: int | None
) -> Result:
    result: dict[str, Any] = {"index": index, "text": item.text}
    if item.pair is not None:
        result["pair"] = item.pair
    if output is None:
        return result | {"label": None, kind: None}
    result["label"] = output.label
    if llm.engine.spec.problem == "multi":
        result["labels"] = output.labels
    scores = [(name, float(f"{value:.8g}")) for name, value in zip(llm.labels, output.probs)]
    if top_k is not None:
        scores = sorted(scores, key=lambda pair: -pair[1])[:top_k]
    result[kind] = dict(scores)
    return result
