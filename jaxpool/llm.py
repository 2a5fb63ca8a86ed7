"""``LLM``: vLLM's offline interface to classification and embeddings, over an engine."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from jaxpool.checkpoints import parsed_cache, tasks
from jaxpool.checkpoints.cross_encoder import saved_template
from jaxpool.checkpoints.location import locate
from jaxpool.checkpoints.sentence_transformers import default_prompt
from jaxpool.engine_args import EngineArgs, takes_engine_args, with_defaults
from jaxpool.errors import EngineError, ValidationError
from jaxpool.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from jaxpool.params import Adapters, Params, PoolerConfig, PoolingParams, broadcast
from jaxpool.text import scoring
from jaxpool.text.chat_template import load
from jaxpool.text.prompts import Prompts, split
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import lower_cases, read_tokenizer
from jaxpool.views import EngineView, ModelConfig, VllmConfig

if TYPE_CHECKING:
    from jaxpool.engine.engine import Engine

logger = logging.getLogger(__name__)


@takes_engine_args
class LLM:
    """A classifier, ready to use. The interface is vLLM's, with labels.

    Args:
        model: checkpoint folder, hub id, folder written by ``jaxpool convert``, or None for the embedded
            English sentiment model.
        {ARGUMENTS}
        **engine_args: vLLM's other engine arguments; see ``jaxpool.engine_args`` for what becomes of each.

    Attributes:
        labels: the model's label names, in the order of ``probs``; empty for embeddings.
        tokenizer: prompts to token ids.
        engine: weights and programs on the devices.
        supported_tasks: tasks of the architecture.
        model_config: the model's settings under vLLM's names, to be read.
        pooling_task: the one task that is served: "classify", "token_classify", "embed" or "token_embed".

    Raises:
        CheckpointError: or one of its kin: the checkpoint cannot be opened.
        ValidationError: an argument is wrong or does not fit the model.

    Use it as a context manager, or call ``close``, to free the device; else garbage collection does it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        **engine_args: Unpack[EngineArgs],
    ) -> None:
        args = with_defaults(engine_args)
        tokenizer, skip_tokenizer_init = args["tokenizer"], args["skip_tokenizer_init"]
        pooler = PoolerConfig.of(args["pooler_config"])
        hub: dict[str, Any] = {"token": args["hf_token"], "cache_dir": args["download_dir"]}
        folder = locate(model, revision=args["revision"], **hub)
        tokenizer_folder = folder
        if tokenizer is None and (revision := args["tokenizer_revision"]) is not None:
            raise ValidationError(f"tokenizer_revision={revision!r} needs a tokenizer=… from the hub.")
        if tokenizer is not None:
            tokenizer_folder = locate(tokenizer, revision=args["tokenizer_revision"], weights=False, **hub)
        if args["trust_remote_code"]:
            logger.warning("trust_remote_code has no effect: jaxpool never runs code from a checkpoint.")
        read_from = None if skip_tokenizer_init else tokenizer_folder
        config, vocabulary = parsed_cache.read(folder, read_from, args["hf_overrides"])

        from jaxpool.engine.opening import open_engine

        self.engine: Engine = open_engine(
            folder,
            config,
            tokenizer=vocabulary,
            runner=args["runner"],
            convert=args["convert"],
            pooler_config=pooler,
            dtype=args["dtype"],
            max_model_len=args["max_model_len"],
            tensor_parallel_size=args["tensor_parallel_size"],
            data_parallel_size=args["data_parallel_size"],
            max_num_batched_tokens=args["max_num_batched_tokens"],
            compile=args["compile"],
            deterministic=args["deterministic"],
            attention_backend=args["attention_backend"],
        )
        spec = self.engine.spec
        self.labels: tuple[str, ...] = spec.labels
        self.supported_tasks: tuple[str, ...] = spec.supported_tasks
        self.pooling_task: str = spec.task
        absent = f"{tokenizer_folder.name} has no tokenizer files"
        if skip_tokenizer_init:
            absent = "skip_tokenizer_init was set"
        self.tokenizer = Tokenizer(
            vocabulary,
            max_length=spec.max_length,
            vocab_size=spec.vocab_size,
            token_types=spec.token_types,
            lower=lower_cases(tokenizer_folder),
            prefix=default_prompt(folder) if self.pooling_task == "embed" else "",
            absent=f"Texts cannot be read because {absent}; pass token ids, or name a tokenizer=….",
        )
        self._pairs = _pair_reading(self.engine, folder, args["chat_template"])
        self._tokenizer_folder = tokenizer_folder
        self._name = folder.name if model is None or Path(model).is_dir() else str(model)
        self.model_config = ModelConfig(
            self._name, str(tokenizer_folder), config, spec.architecture, spec.max_length, spec.dtype
        )
        self._hf_tokenizer: Any = None
        self._ids = itertools.count()
        self._closed = False
        if getattr(config, "is_original_qwen3_reranker", False) and self._pairs.template is None:
            logger.warning("%s was trained on pairs in a template; give it one: chat_template=…", self._name)

    def classify(
        self,
        prompts: Prompts,
        *,
        pooling_params: Params = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapters = None,
        tokenization_kwargs: dict[str, Any] | None = None,
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

        Returns:
            one output per prompt, in order; its ``outputs`` has ``probs``, ``label`` and ``labels``.

        Raises:
            TypeError: a prompt has no known form.
            ValidationError: a prompt or parameter is wrong; nothing was computed. A note on the error names
                the prompt.
            EngineError: computing failed, or a result is not finite.
        """
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
        """As ``classify``, but the bare numbers: ``outputs.data`` is float32 ``[labels]``, a numpy array of its own.

        ``torch.as_tensor(outputs.data)`` shares its memory.

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
            chat_template: Jinja that makes the prompt of a pair, from messages of the roles ``query`` and
                ``document``; None takes that of the ``LLM``, or what a CrossEncoder was saved with. Only for models
                that read both texts together. ``PoolingParams(extra_kwargs=…)`` may hold ``max_tokens_per_query``,
                ``max_tokens_per_doc`` and ``chat_template_kwargs``, what the template sees, or ``instruction``.

        Raises:
            ValidationError: the model has several labels, the numbers of texts do not match, or the template fails.
        """
        scoring.check(self.pooling_task, self.engine.spec.num_labels)
        first, second = scoring.to_score(data_1, data_2)
        extra = None if pooling_params is None else pooling_params.extra_kwargs
        options = scoring.ScoreOptions.of(extra, self.engine.spec.max_length)
        if any(options.limits):
            with self.tokenizer.reading() as vocabulary:
                first, second = scoring.shortened(vocabulary, (first, second), options)
        if self.pooling_task in scoring.BY_LIKENESS:
            texts = [*first, *second]
            params = broadcast(pooling_params, texts, self.pooling_task, lora_request)
            outputs = self._run(texts, params, use_tqdm, tokenization_kwargs)
            left, right = outputs[: len(first)], outputs[len(first) :]
            left *= len(second) if len(first) == 1 else 1
            pad = getattr(self.tokenizer.vocabulary, "pad_token_id", None)
            return [ScoringRequestOutput.of_embeddings(one, two, pad) for one, two in zip(left, right)]
        reading = self.reads_pairs(chat_template)
        prompts: list[Any] = scoring.pairs(first, second, joined=reading.joined)
        if reading.template is not None:
            with self.tokenizer.reading() as vocabulary:
                prompts = scoring.rendered(vocabulary, **reading.question(first, second, options))
        params = broadcast(pooling_params, prompts, "classify", lora_request)
        outputs = self._run(prompts, params, use_tqdm, reading.tokenization(tokenization_kwargs, options))
        return [ScoringRequestOutput.from_base(output) for output in outputs]

    def reads_pairs(self, template: str | None = None) -> scoring.PairReading:
        """How ``score`` has the model read two texts; ``template`` goes before what else says so."""
        return self._pairs if template is None else scoring.PairReading(self._pairs.joined, template)

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

    @property
    def llm_engine(self) -> EngineView:
        """Settings where programs for vLLM look for them: ``llm_engine.vllm_config.model_config.hf_config``."""
        return EngineView(VllmConfig(self.model_config))

    def get_tokenizer(self) -> Any:
        """The checkpoint's transformers tokenizer, yours to use and change."""
        if self.tokenizer.vocabulary is None:
            raise ValidationError(self.tokenizer.absent)
        if self._hf_tokenizer is None:
            self._hf_tokenizer = read_tokenizer(self._tokenizer_folder)
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
        if self._closed:
            raise EngineError("This LLM is closed; make a new one.")
        self.engine.check_process()
        from jaxpool.engine import postprocess
        from jaxpool.engine.engine import Row

        spec = self.engine.spec
        for param in params:
            postprocess.check(spec, self._name, param)
        encoded = self.tokenizer.encode(prompts, tokenization_kwargs)
        rows = [Row(one.ids, one.types, self._activated(param)) for one, param in zip(encoded, params)]
        bar = _bar(use_tqdm, len(rows))
        try:
            scores = self.engine.run(rows, bar and bar.update)
        finally:
            if bar is not None:
                bar.close()
        _check_finite(scores)
        if spec.steps or spec.matryoshka is not None:
            scores = [postprocess.select(spec, *parts) for parts in zip(params, rows, scores)]
        return [
            PoolingRequestOutput(str(next(self._ids)), PoolingOutput(score), list(one.ids))
            for score, one in zip(scores, encoded)
        ]


def _pair_reading(engine: Engine, folder: Path, template: str | os.PathLike[str] | None) -> scoring.PairReading:
    joined = engine.spec.joins_pairs
    if template is not None:
        return scoring.PairReading(joined, load(template))
    if not engine.spec.templated:
        return scoring.PairReading(joined)
    saved = saved_template(folder)
    return scoring.PairReading(joined, saved.template, saved.variables, saved.content_format, special_tokens=False)


def _check_finite(scores: np.ndarray | list[np.ndarray]) -> None:
    if isinstance(scores, np.ndarray):
        finite = np.isfinite(scores).all(axis=1)
    else:
        finite = np.array([np.isfinite(score).all() for score in scores])
    if not finite.all():
        index = int(np.flatnonzero(~finite)[0])
        raise EngineError(
            f"The scores of prompt {index} are not finite: {scores[index].tolist()}. The weights are "
            "damaged, or the dtype overflows (try dtype='float32')."
        )


def _bar(use_tqdm: bool | Callable[..., Any], total: int) -> Any:
    """A progress bar over prompts: tqdm's, the caller's, or None."""
    if not use_tqdm:
        return None
    from tqdm import tqdm

    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=total, desc="Processed prompts", dynamic_ncols=True)
