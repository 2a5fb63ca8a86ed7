"""Any number of texts through a model: tokenised a chunk ahead of the device, results in order, memory flat."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jaxpool.errors import ValidationError

if TYPE_CHECKING:
    from jaxpool.files.writers import Result
    from jaxpool.llm import LLM
    from jaxpool.outputs import ClassificationOutput

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
        others: what else its record holds, passed on to the result.
        problem: why it cannot be classified; empty where nothing is known to be wrong.
    """

    text: str
    pair: str | None = None
    where: str = "the text"
    end: int = 0
    others: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

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
    windows: Mapping[str, Any] | None = None,
    advance: Callable[[int, float], object] = lambda _texts, _read: None,
    skip: Callable[[Item], object] | None = None,
    question: Mapping[str, Any] | None = None,
) -> Iterator[Result]:
    """Classifies a stream.

    While a chunk computes, a thread reads and tokenises the next one. An empty text is what the tokenizer makes of
    it, as everywhere: special tokens, or an error where there are none.

    Args:
        llm: the model.
        items: the texts; drawn from by one thread at a time.
        activated: probabilities; False gives logits.
        truncate: cut texts that are too long, instead of refusing them.
        top_k: keep so many labels of each result, highest first; None keeps all in the model's order.
        windows: read texts that are too long in windows, as these options of ``LLM.classify`` say.
        advance: called with how many more texts are done, and about how many bytes of input these were.
        question: ``candidate_labels`` and what goes with them in ``LLM.classify``; texts are tokenised there then.
        skip: called, in order, with each item that cannot be classified, ``problem`` telling why; None raises.

    Yields:
        `jaxpool.files.writers.Result` objects, in order; ``index`` counts skipped items too.

    Raises:
        ValidationError: a text cannot be classified; the message says which and what to do.
    """
    from jaxpool.params import PoolingParams

    params = PoolingParams(use_activation=activated)
    kind = "probs" if activated else "logits"
    supply, question = iter(items), question or {}
    names = tuple(question.get("candidate_labels") or llm.labels)
    several = bool(question.get("multi_label")) or (not question and llm.engine.spec.problem == "multi")

    def prepare() -> tuple[list[Item], list[Any]]:
        chunk = list(itertools.islice(supply, CHUNK))
        if windows or question:
            return chunk, [item.prompt for item in chunk if not item.problem]
        return _tokenise(llm, chunk, truncate, skip is not None)

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
                answers = llm.classify(prompts, pooling_params=params, use_tqdm=bar, **(windows or {}), **question)
                outputs = iter([answer.outputs for answer in answers])
            skipped = len(chunk) - len(prompts)
            advance(skipped, skipped * per_text)
            for item in chunk:
                index = next(count)
                if item.problem and skip is not None:
                    skip(item)
                else:
                    yield _result(index, item, next(outputs), kind, names, top_k, several=several)
    finally:
        # Not waited for: the thread may be blocked on a read that never returns.
        ahead.shutdown(wait=False, cancel_futures=True)


def _tokenise(llm: LLM, items: list[Item], truncate: bool, tolerant: bool) -> tuple[list[Item], list[dict[str, Any]]]:
    """The items, with what is wrong with them where ``tolerant``, and prompts of those that are right."""
    options = {"truncate_prompt_tokens": -1} if truncate else {}
    right = [item for item in items if not item.problem]
    try:
        encoded = llm.tokenizer.encode([item.prompt for item in right], options)
    except (ValueError, TypeError):
        checked = []
        for item in items:
            problem = item.problem or _problem(llm, item, options)
            if problem and not tolerant:
                raise ValidationError(f"{item.where}: {problem}") from None
            checked.append(replace(item, problem=problem))
        if all(item.problem == other.problem for item, other in zip(checked, items)):
            raise  # together they fail, and each by itself does not
        return _tokenise(llm, checked, truncate, tolerant)
    return items, [
        {"prompt_token_ids": one.ids} | ({} if one.types is None else {"token_type_ids": one.types}) for one in encoded
    ]


def _problem(llm: LLM, item: Item, options: dict[str, Any]) -> str:
    """What is wrong with one item, and what to do; empty where nothing is."""
    try:
        llm.tokenizer.encode([item.prompt], options)
        return ""
    except (ValueError, TypeError) as error:
        problem = str(error)
    if item.blank:
        return f"the text is empty, and this model's tokenizer makes no token of it ({problem})"
    try:
        llm.tokenizer.encode([item.prompt], {"truncate_prompt_tokens": -1})
        return f"{problem} Or cut long texts to the first {llm.tokenizer.max_length} tokens with --truncate."
    except (ValueError, TypeError):
        return problem


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
    index: int,
    item: Item,
    output: ClassificationOutput,
    kind: str,
    names: tuple[str, ...],
    top_k: int | None,
    *,
    several: bool,
) -> Result:
    result: dict[str, Any] = {"index": index, "text": item.text}
    if item.pair is not None:
        result["pair"] = item.pair
    result |= item.others
    result["label"] = output.label
    if several:
        result["labels"] = output.labels
    scores = [(name, float(f"{value:.8g}")) for name, value in zip(names, output.probs)]
    if top_k is not None:
        scores = sorted(scores, key=lambda pair: -pair[1])[:top_k]
    result[kind] = dict(scores)
    return result
