"""``LLM``: vLLM's offline interface to classification and embeddings, over an engine."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from jaxpool.checkpoints import parsed_cache, recipes, tasks
from jaxpool.checkpoints.location import locate
from jaxpool.engine_args import EngineArgs, check_engine_args
from jaxpool.errors import EngineError, ValidationError
from jaxpool.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from jaxpool.params import Adapters, Params, PoolerConfig, PoolingParams, broadcast
from jaxpool.text.prompts import Prompts, pairs, split, to_score
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import lower_cases, read_tokenizer
from jaxpool.zero_shot.options import CandidateLabels, Question

if TYPE_CHECKING:
    from jaxpool.engine.engine import Engine

logger = logging.getLogger(__name__)


class LLM:
    """A classifier, ready to use. The interface is vLLM's, with labels.

    Args:
        model: checkpoint folder, hub id, folder written by ``jaxpool convert``, or None for the embedded
            English sentiment model.
        runner: "auto" or "pooling".
        convert: "auto"; "classify" to make a classifier of a language model; "embed" for embeddings.
        tokenizer: folder or hub id of another tokenizer.
        skip_tokenizer_init: load none; prompts are token ids then.
        trust_remote_code: accepted; a checkpoint's own code is never run.
        tensor_parallel_size: devices that share one copy of the weights.
        data_parallel_size: copies of the weights; None uses every device.
        dtype: "auto", "float32" or "bfloat16".
        revision: branch, tag or commit of a hub id.
        tokenizer_revision: the same for ``tokenizer``.
        hf_token: token for the hub.
        hf_overrides: changes to ``config.json``: a dict, or a callable from config to config.
        pooler_config: a ``PoolerConfig`` or a dict of its fields.
        max_model_len: longest prompt in tokens; None is the model's own limit.
        max_num_batched_tokens: most tokens of one batch, padding included.
        download_dir: where hub downloads are kept.
        compile: "on_demand" compiles a program when it is first needed; "ahead" compiles all of them before
            the constructor returns, and none ever after; "behind" compiles a few first, which are enough for any
            prompt, and the others in the background, and nothing ever waits for them.
        recipe: name of a published model of this kind (see ``jaxpool recipes``); None goes by the model's own name.
        **engine_args: vLLM's other engine arguments; see ``jaxpool.engine_args`` for what becomes of each.

    Attributes:
        labels: the model's label names, in the order of ``probs``; empty for embeddings.
        tokenizer: prompts to token ids.
        engine: weights and programs on the devices.
        supported_tasks: tasks of the architecture.
        pooling_task: the one task that is served: "classify", "token_classify", "embed" or "token_embed".

    Raises:
        CheckpointError: or one of its kin: the checkpoint cannot be opened.
        ValidationError: an argument is wrong or does not fit the model.

    Use it as a context manager, or call ``close``, to free the device; else garbage collection does it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        runner: str = "auto",
        convert: str = "auto",
        tokenizer: str | os.PathLike[str] | None = None,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        data_parallel_size: int | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        hf_token: bool | str | None = None,
        hf_overrides: Mapping[str, Any] | Callable[..., Any] | None = None,
        pooler_config: PoolerConfig | Mapping[str, Any] | None = None,
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
        download_dir: str | os.PathLike[str] | None = None,
        compile: Literal["on_demand", "ahead", "behind"] = "on_demand",  # noqa: A002 - the name users know
        recipe: str | None = None,
        **engine_args: Unpack[EngineArgs],
    ) -> None:
        check_engine_args(engine_args, set(LLM.__init__.__annotations__) - {"return", "engine_args"})
        pooler = PoolerConfig.of(pooler_config)
        hub: dict[str, Any] = {"token": hf_token, "cache_dir": download_dir}
        folder = locate(model, revision=revision, **hub)
        words = folder
        if tokenizer is None and tokenizer_revision is not None:
            raise ValidationError(f"tokenizer_revision={tokenizer_revision!r} needs a tokenizer=… from the hub.")
        if tokenizer is not None:
            words = locate(tokenizer, revision=tokenizer_revision, weights=False, **hub)
        if trust_remote_code:
            logger.warning("trust_remote_code has no effect: jaxpool never runs code from a checkpoint.")
        config, vocabulary = parsed_cache.read(folder, None if skip_tokenizer_init else words, hf_overrides)
        known = recipes.find(recipe, model, folder, overridden=recipes.is_overridden(runner, convert, hf_overrides))
        if known is not None:
            convert, pooler = recipes.apply(known, config, vocabulary, convert, pooler)

        from jaxpool.engine.opening import open_engine

        self.engine: Engine = open_engine(
            folder,
            config,
            tokenizer=vocabulary,
            runner=runner,
            convert=convert,
            pooler_config=pooler,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            data_parallel_size=data_parallel_size,
            max_num_batched_tokens=max_num_batched_tokens,
            compile=compile,
        )
        spec = self.engine.spec
        self.labels: tuple[str, ...] = spec.labels
        self.supported_tasks: tuple[str, ...] = spec.supported_tasks
        self.pooling_task: str = spec.task
        absent = "skip_tokenizer_init was set" if skip_tokenizer_init else f"{words.name} has no tokenizer files"
        self.tokenizer = Tokenizer(
            vocabulary,
            max_length=spec.max_length,
            vocab_size=spec.vocab_size,
            token_types=spec.token_types,
            lower=lower_cases(words),
            frame=None if known is None else known.frame,
            absent=f"Texts cannot be read because {absent}; pass token ids, or name a tokenizer=….",
        )
        self._words, self._name = words, folder.name if model is None or Path(model).is_dir() else str(model)
        self._hf_tokenizer: Any = None
        self._judge: Callable[..., list[ClassificationRequestOutput]] | None = None
        self._ids = itertools.count()
        self._closed = False

    def classify(
        self,
        prompts: Prompts,
        *,
        pooling_params: Params = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapters = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        **labels: Unpack[CandidateLabels],
    ) -> list[ClassificationRequestOutput]:
        """Classifies prompts.

        Args:
            prompts: one prompt or several, in anything that has an order: a list, a generator, a column of a table, an
                array; a table itself has them in its column ``text``. A prompt is a string, a list of token ids, or a
                dict: ``{"prompt": text}`` or ``{"text": text}``, with ``"text_pair"`` for models of two texts, or
                ``{"prompt_token_ids": ids}``. An empty string is what the tokenizer makes of it: special tokens, or
                an error where there are none.
            pooling_params: for all prompts, or one per prompt.
            use_tqdm: whether to show a progress bar, or what to make one with.
            lora_request: must be None; adapters are not supported yet.
            tokenization_kwargs: truncation and padding; see ``jaxpool.text.prompts.Options``.
            **labels: ``candidate_labels=[…]`` names labels of your own, for a language model, a model of entailment or
                an embedder; ``prompt``, ``examples`` and more: see ``jaxpool.zero_shot.options.Question``.

        Returns:
            one output per prompt, in order; its ``outputs`` has ``probs``, ``label`` and ``labels``.

        Raises:
            TypeError: a prompt has no known form.
            ValidationError: a prompt or parameter is wrong; nothing was computed. A note on the error names
                the prompt.
            EngineError: computing failed, or a result is not finite.
        """
        if (question := Question.of(labels)) is not None:
            params = broadcast(pooling_params, prompts := split(prompts), "classify", lora_request)
            return self._judged(question, prompts, params, use_tqdm, tokenization_kwargs)
        task = tasks.check("classify", self.pooling_task, self.supported_tasks)
        params = broadcast(pooling_params, prompts := split(prompts), task, lora_request)
        outputs = self._run(prompts, params, use_tqdm, tokenization_kwargs)
        return [
            ClassificationRequestOutput.from_base(output, self.labels, self._threshold(self._activated(one)))
            for output, one in zip(outputs, params)
        ]

    def encode(
        self,
        prompts: Prompts,
        pooling_params: Params = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapters = None,
        pooling_task: str | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """As ``classify``, but the bare numbers: ``outputs.data`` is float32 ``[labels]``.

        For "token_classify" they are ``[tokens, labels]``, for "embed" ``[width]``, for "token_embed"
        ``[tokens, width]``.

        Args:
            prompts, pooling_params, use_tqdm, lora_request, tokenization_kwargs: as in ``classify``.
            pooling_task: the task that this model serves, see ``pooling_task`` of the class.

        Raises:
            ValidationError: also where ``pooling_task`` is missing or not served.
        """
        task = tasks.check(pooling_task, self.pooling_task, self.supported_tasks)
        steps = self.engine.spec.steps
        params = broadcast(pooling_params, prompts := split(prompts), task, lora_request, steps)
        return self._run(prompts, params, use_tqdm, tokenization_kwargs)

    def score(
        self,
        data_1: str | list[str],
        data_2: str | list[str],
        /,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: PoolingParams | None = None,
        lora_request: Adapters = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well pairs of texts match, by a model of one label (a cross-encoder) or by embeddings (their cosine).

        Args:
            data_1: one text for all of ``data_2``, or as many.
            data_2: texts.
            use_tqdm, pooling_params, lora_request, tokenization_kwargs: as in ``classify``.
            chat_template: must be None.

        Raises:
            ValidationError: the model has several labels, or the numbers of texts do not match.
        """
        embeds = self.pooling_task == "embed"
        if len(self.labels) != 1 and not embeds:
            raise ValidationError(tasks.ONE_LABEL)
        if chat_template is not None:
            raise NotImplementedError("jaxpool scores plain pairs of texts; render the template yourself.")
        first, second = to_score(data_1, data_2)
        if embeds:
            texts = [*first, *second]
            params = broadcast(pooling_params, texts, "embed", lora_request)
            outputs = self._run(texts, params, use_tqdm, tokenization_kwargs)
            left, right = outputs[: len(first)], outputs[len(first) :]
            left *= len(second) if len(first) == 1 else 1
            pad = getattr(self.tokenizer.vocabulary, "pad_token_id", None)
            return [ScoringRequestOutput.of_embeddings(one, two, pad) for one, two in zip(left, right)]
        task = tasks.check("classify", self.pooling_task, self.supported_tasks)
        prompts = pairs(first, second, joined=self.reads_pairs_joined)
        params = broadcast(pooling_params, prompts, task, lora_request)
        return [
            ScoringRequestOutput.from_base(output)
            for output in self._run(prompts, params, use_tqdm, tokenization_kwargs)
        ]

    @property
    def reads_pairs_joined(self) -> bool:
        """Whether ``score`` gives the model two texts as one: a language model that is no classifier by itself."""
        return self.engine.spec.source.rows is not None and self.tokenizer.frame is None

    def embed(
        self,
        prompts: Prompts,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: Params = None,
        lora_request: Adapters = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """One vector per prompt: ``outputs.embedding``, of length one unless ``use_activation=False``.

        Args:
            prompts, use_tqdm, pooling_params, lora_request, tokenization_kwargs: as in ``classify``;
                ``PoolingParams(dimensions=…)`` cuts the vectors where the checkpoint says that it was trained so.

        Raises:
            ValidationError: as ``classify`` does, and where the model serves no embeddings.
        """
        task = tasks.check("embed", self.pooling_task, self.supported_tasks)
        params = broadcast(pooling_params, prompts := split(prompts), task, lora_request)
        outputs = self._run(prompts, params, use_tqdm, tokenization_kwargs)
        return [EmbeddingRequestOutput.from_base(output) for output in outputs]

    def generate(self, *_args: Any, **_kwargs: Any) -> list[Any]:
        """Raises ValidationError: a classifier generates nothing."""
        raise ValidationError(tasks.NOT_GENERATIVE.format("generate"))

    def chat(self, *_args: Any, **_kwargs: Any) -> list[Any]:
        """Raises ValidationError: a classifier generates nothing."""
        raise ValidationError(tasks.NOT_GENERATIVE.format("chat"))

    def get_tokenizer(self) -> Any:
        """The checkpoint's transformers tokenizer, yours to use and change."""
        if self.tokenizer.vocabulary is None:
            raise ValidationError(self.tokenizer.absent)
        if self._hf_tokenizer is None:
            self._hf_tokenizer = read_tokenizer(self._words)
        return self._hf_tokenizer

    def close(self) -> None:
        """Stops the engine's threads and frees the device. Calling it again does nothing."""
        self._closed = True
        self.engine.close()

    def __repr__(self) -> str:
        labels = ", ".join(self.labels[:6]) + (", …" if len(self.labels) > 6 else "")
        devices = self.engine.programs.mesh.devices
        device = f"{devices.size} x " * (devices.size > 1) + devices.flat[0].device_kind
        return (
            f"LLM({self._name!r}, task={self.pooling_task!r}, labels=[{labels}], device={device!r}, "
            f"dtype={self.engine.spec.dtype!r}{', closed' * self._closed})"
        )

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _judged(
        self,
        question: Question,
        prompts: Sequence[Any],
        params: Sequence[PoolingParams],
        use_tqdm: bool | Callable[..., Any],
        tokenization_kwargs: dict[str, Any] | None,
    ) -> list[ClassificationRequestOutput]:
        from jaxpool.zero_shot.judges import Judge

        self._check_open()
        if self._judge is None:
            self._judge = Judge(self.engine, self.tokenizer, self._ids)

        def run(prompts: Sequence[Any], one: PoolingParams) -> list[PoolingRequestOutput[PoolingOutput]]:
            return self._run(prompts, [one] * len(prompts), use_tqdm, tokenization_kwargs)

        return self._judge(question, prompts, params, run, tokenization_kwargs)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("This LLM is closed; make a new one.")
        self.engine.check_process()

    def _activated(self, params: PoolingParams) -> bool:
        return self.engine.spec.use_activation if params.use_activation is None else params.use_activation

    def _threshold(self, activated: bool) -> float | None:
        """What an entry must exceed for its label to hold: a probability of one half, or a logit of 0."""
        if self.engine.spec.problem != "multi":
            return None
        return 0.5 if activated else 0.0

    def _run(
        self,
        prompts: Sequence[Any],
        params: Sequence[PoolingParams],
        use_tqdm: bool | Callable[..., Any],
        tokenization_kwargs: dict[str, Any] | None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Tokenises everything, then computes everything; outputs in the order of ``prompts``."""
        self._check_open()
        from jaxpool.engine import postprocess
        from jaxpool.engine.engine import Row
        from jaxpool.engine.progress import bar_of

        spec = self.engine.spec
        for param in params:
            postprocess.check(spec, self._name, param)
        encoded = self.tokenizer.encode(prompts, tokenization_kwargs)
        rows = [Row(one.ids, one.types, self._activated(param)) for one, param in zip(encoded, params)]
        bar = bar_of(use_tqdm, len(rows))
        try:
            scores = self.engine.run(rows, bar and bar.update)
        finally:
            if bar is not None:
                bar.close()
        postprocess.check_finite(scores)
        if spec.steps or spec.matryoshka is not None:
            scores = [postprocess.wanted(spec, *parts) for parts in zip(params, rows, scores)]
        return [
            PoolingRequestOutput(str(next(self._ids)), PoolingOutput(score), list(one.ids))
            for score, one in zip(scores, encoded)
        ]
