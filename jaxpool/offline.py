"""One call of ``LLM``: prompts to tokens, tokens to scores, a part tokenised ahead of what computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxpool.outputs import ClassificationRequestOutput, PoolingOutput, PoolingRequestOutput
from jaxpool.params import PoolingParams
from jaxpool.text import aggregate, windows
from jaxpool.text.ahead import in_parts
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.windows import LongText, LongTextOptions

if TYPE_CHECKING:
    from jaxpool.checkpoints.spec import Spec
    from jaxpool.engine.adapters import Loaded
    from jaxpool.engine.engine import Engine, Row


@dataclass(frozen=True, slots=True)
class Call:
    """What computes, and for whom.

    Attributes:
        engine, tokenizer: of the model.
        name: of the model, for messages.
        ids: gives each output its number.
        use_tqdm: whether to show a progress bar, or what to make one with.
        caller: the method of ``LLM``, for messages.
    """

    engine: Engine
    tokenizer: Tokenizer
    name: str
    ids: Iterator[int]
    use_tqdm: bool | Callable[..., Any]
    caller: str

    def run(
        self,
        prompts: Sequence[Any],
        params: Sequence[PoolingParams],
        tokenization_kwargs: dict[str, Any] | None,
        long_text: LongTextOptions,
        adapters: Sequence[Loaded | None] = (),
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Outputs in the order of ``prompts``; errors as ``LLM.classify``. ``adapters`` are one a prompt, or none."""
        from jaxpool.engine import postprocess
        from jaxpool.engine.engine import Row
        from jaxpool.engine.progress import bar_of

        spec = self.engine.spec
        for param in params:
            postprocess.check(spec, self.name, param)
        activated = [spec.use_activation if one.use_activation is None else one.use_activation for one in params]
        long = LongText.of(long_text, spec.max_length, f"LLM.{self.caller}() got an unexpected")
        texts: list[windows.Windowed] = []
        rows: list[Row] = []

        def tokenise(start: int, stop: int) -> list[windows.Windowed]:
            part, total = prompts[start:stop], len(prompts)
            return windows.encode(self.tokenizer, part, tokenization_kwargs, long, first=start, total=total)

        def parts() -> Iterator[list[Row]]:
            for part in in_parts(len(prompts), tokenise):
                done, before = len(texts), len(rows)
                for number, text in enumerate(part, done):
                    own = adapters[number] if adapters else None
                    rows.extend(
                        Row(window.ids, window.types, activated[number], adapter=own) for window in text.windows
                    )
                texts.extend(part)
                yield rows[before:]

        bar = bar_of(self.use_tqdm, len(prompts))
        try:
            scores = self.engine.stream(parts(), bar and bar.update, len(prompts) if long is None else None)
        finally:
            if bar is not None:
                bar.close()
        if long is not None and len(rows) > len(texts):
            how, unit = long.aggregate_for(spec.problem == "multi"), spec.task == "embed" and all(activated)
            scores = aggregate.of_texts(scores, texts, how, per_token=spec.per_token, length_one=unit)
            rows = [Row(text.ids, None, one) for text, one in zip(texts, activated)]
        postprocess.check_finite(scores)
        if spec.steps or spec.matryoshka is not None:
            scores = [postprocess.select(spec, *parts) for parts in zip(params, rows, scores)]
        return [
            PoolingRequestOutput(str(next(self.ids)), PoolingOutput(score), list(text.ids))
            for score, text in zip(scores, texts)
        ]


def classified(
    outputs: Sequence[PoolingRequestOutput[PoolingOutput]],
    params: Sequence[PoolingParams],
    adapters: Sequence[Loaded | None],
    spec: Spec,
) -> list[ClassificationRequestOutput]:
    """Outputs with names: each text has the labels, and the meaning of them, of its adapter, or the model's."""
    found = []
    for output, one, adapter in zip(outputs, params, adapters):
        meant = spec if adapter is None else adapter.answers
        activated = spec.use_activation if one.use_activation is None else one.use_activation
        # What an entry must exceed for its label to hold: a probability of one half, or a logit of 0.
        threshold = None if meant.problem != "multi" else 0.5 if activated else 0.0
        found.append(ClassificationRequestOutput.from_base(output, meant.labels, threshold))
    return found
