"""``LLM``: vLLM's offline interface to classification and embeddings, over an engine."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from jaxpool import offline
from jaxpool.checkpoints import tasks
from jaxpool.checkpoints.cross_encoder import RECIPE_OR_TEMPLATE, pair_reading
from jaxpool.checkpoints.reading import read_model
from jaxpool.checkpoints.sentence_transformers import saved_prompts
from jaxpool.engine_args import EngineArgs, takes_engine_args, with_defaults
from jaxpool.errors import EngineError, ValidationError
from jaxpool.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from jaxpool.params import Adapters, Params, PoolingParams, broadcast, per_prompt
from jaxpool.text import scoring
from jaxpool.text.prompts import Prompts, split
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import lower_cases, read_tokenizer
from jaxpool.text.windows import LongTextOptions
from jaxpool.views import EngineView, ModelConfig, VllmConfig
from jaxpool.zero_shot.options import CandidateLabels, Question

if TYPE_CHECKING:
    from jaxpool.engine.adapters import Loaded
    from jaxpool.engine.engine import Engine

logger = logging.getLogger(__name__)


class ClassifyOptions(LongTextOptions, CandidateLabels, total=False):
    """Further arguments of ``LLM.classify``."""


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
        compile, asking: for a server of language models: when it compiles, and how the model was trained to be asked.
        report: what validation showed, where ``jaxpool.commands.fit`` made it; else None.

    Raises:
        CheckpointError: or one of its kin: the checkpoint cannot be opened.
        ValidationError: an argument is wrong or does not fit the model.

    Use it as a context manager, or call ``close``, to free the device; else garbage collection does it.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **engine_args: Unpack[EngineArgs]) -> None:
        args = with_defaults(engine_args)
        files = read_model(model, args)
        folder, tokenizer_folder, config = files.folder, files.tokenizer_folder, files.config

        from jaxpool.engine.opening import open_engine, room_of

        self.engine: Engine = open_engine(
            folder,
            config,
            tokenizer=files.vocabulary,
            runner=args["runner"],
            convert=files.convert,
            pooler_config=files.pooler,
            merge_lora=files.adapter,
            room=room_of(args),
            find_adapter=files.find_adapter,
            dtype=args["dtype"],
            max_model_len=args["max_model_len"],
            tensor_parallel_size=args["tensor_parallel_size"],
            pipeline_parallel_size=args["pipeline_parallel_size"],
            data_parallel_size=args["data_parallel_size"],
            max_num_batched_tokens=args["max_num_batched_tokens"],
            compile=args["compile"],
            deterministic=args["deterministic"],
            attention_backend=args["attention_backend"],
            enable_prefix_caching=args["enable_prefix_caching"],
            kv_cache_memory_bytes=args["kv_cache_memory_bytes"],
        )
        spec = self.engine.spec
        self.labels: tuple[str, ...] = spec.labels
        self.supported_tasks: tuple[str, ...] = spec.supported_tasks
        self.pooling_task: str = spec.task
        self.report: Any = None
        absent = f"{tokenizer_folder.name} has no tokenizer files"
        absent = "skip_tokenizer_init was set" if args["skip_tokenizer_init"] else absent
        self.tokenizer = Tokenizer(
            files.vocabulary,
            max_length=spec.max_length,
            vocab_size=spec.vocab_size,
            token_types=spec.token_types,
            lower=lower_cases(tokenizer_folder),
            **(saved_prompts(folder) if self.pooling_task == "embed" else {}),
            frame=None if files.recipe is None else files.recipe.frame,
            absent=f"Texts cannot be read because {absent}; pass token ids, or name a tokenizer=….",
        )
        self.compile, self.asking = args["compile"], None if files.recipe is None else files.recipe.asking
        self._pairs = pair_reading(spec, folder, args["chat_template"], framed=self.tokenizer.frame is not None)
        self._tokenizer_folder = tokenizer_folder
        self._name = folder.name if model is None or Path(model).is_dir() else str(model)
        self.model_config = ModelConfig(
            self._name, str(tokenizer_folder), config, spec.architecture, spec.max_length, spec.dtype
        )
        self._hf_tokenizer: Any = None
        self._judge: Callable[..., list[ClassificationRequestOutput]] | None = None
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
        **options: Unpack[ClassifyOptions],
    ) -> list[ClassificationRequestOutput]:
        """Classifies prompts.

        Args:
            prompts: one prompt or several, in anything that has an order: a list, a generator, a column of a table, an
                array; a table itself has them in its column ``text``. A prompt is a string, a list of token ids, or a
                dict: ``{"prompt": text}`` or ``{"text": text}``, with ``"text_pair"`` for models of two texts,
                ``{"prompt_token_ids": ids}``, or ``{"messages": […]}``, a conversation. An empty string is what the
                tokenizer makes of it: special tokens, or an error where there are none.
            pooling_params: for all prompts, or one per prompt.
            use_tqdm: whether to show a progress bar, or what to make one with.
            lora_request: an adapter for all prompts, or one or None for each; it answers with labels of its own.
            tokenization_kwargs: truncation and padding; see ``jaxpool.text.prompts.Options``.
            **options: what becomes of texts that are longer than the model reads: ``long_text`` ("error", "truncate"
                or "window"), ``window``, ``overlap``, ``aggregate``, see ``jaxpool.text.windows.LongText``; or labels
                of your own, ``candidate_labels=[…]``, for a language model, a model of entailment or an embedder, with
                ``prompt``, ``examples`` and more, see ``jaxpool.zero_shot.options.Question``.

        Returns:
            one output per prompt, in order; its ``outputs`` has ``probs``, ``label`` and ``labels``.

        Raises:
            TypeError: a prompt has no known form.
            ValidationError: a prompt or parameter is wrong; nothing is returned. A note on the error names
                the prompt.
            EngineError: computing failed, or a result is not finite.
        """
        named = LongTextOptions.__annotations__
        long_text: Any = {name: value for name, value in options.items() if name in named}
        question = Question.of({name: value for name, value in options.items() if name not in named})
        if question is not None:
            if long_text:
                raise ValidationError(f"{min(long_text)} has no meaning with candidate_labels: texts are read whole.")
            params = broadcast(pooling_params, prompts := split(prompts), "classify")
            per_prompt(lora_request, len(prompts), enabled=False)
            return self._judged(question, prompts, params, use_tqdm, tokenization_kwargs)
        task = tasks.check("classify", self.pooling_task, self.supported_tasks)
        params = broadcast(pooling_params, prompts := split(prompts), task)
        adapters = self._adapters(lora_request, len(prompts))
        outputs = self._run(prompts, params, use_tqdm, tokenization_kwargs, long_text, "classify", adapters)
        return offline.classified(outputs, params, adapters, self.engine.spec)

    def encode(
        self,
        prompts: Prompts,
        pooling_params: Params = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapters = None,
        pooling_task: str | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        **long_text: Unpack[LongTextOptions],
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """As ``classify``, but the bare numbers: ``outputs.data`` is float32 ``[labels]``, a numpy array of its own.

        ``torch.as_tensor(outputs.data)`` shares its memory.

        For "token_classify" they are ``[tokens, labels]``, for "embed" ``[width]``, for "token_embed"
        ``[tokens, width]``.

        Args:
            prompts, pooling_params, use_tqdm, lora_request, tokenization_kwargs, **long_text: as in
                ``classify``; of token tasks each token has the scores of the window that it is farthest inside of.
            pooling_task: the task that this model serves, see ``pooling_task`` of the class.

        Raises:
            ValidationError: also where ``pooling_task`` is missing or not served.
        """
        task = tasks.check(pooling_task, self.pooling_task, self.supported_tasks)
        steps = self.engine.spec.steps
        params = broadcast(pooling_params, prompts := split(prompts), task, steps)
        adapters = self._adapters(lora_request, len(prompts))
        return self._run(prompts, params, use_tqdm, tokenization_kwargs, long_text, "encode", adapters)

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
        **long_text: Unpack[LongTextOptions],
    ) -> list[ScoringRequestOutput]:
        """How well pairs of texts match, by a model of one label (a cross-encoder) or by embeddings (their cosine).

        Args:
            data_1: one text for all of ``data_2``, or as many.
            data_2: texts.
            use_tqdm, pooling_params, lora_request, tokenization_kwargs, **long_text: as in ``classify``.
            chat_template: Jinja that makes the prompt of a pair, from messages of the roles ``query`` and
                ``document``; None takes that of the ``LLM``, or what a CrossEncoder was saved with. Only for models
                that read both texts together. ``PoolingParams(extra_kwargs=…)`` may hold ``max_tokens_per_query``,
                ``max_tokens_per_doc`` and ``chat_template_kwargs``, what the template sees, or ``instruction``.

        Raises:
            ValidationError: the model has several labels, the numbers of texts do not match, or the template fails.
        """
        spec = self.engine.spec
        scoring.check(self.pooling_task, spec.num_labels)
        extra = None if pooling_params is None else pooling_params.extra_kwargs
        options = scoring.ScoreOptions.of(extra, spec.max_length)
        first, second = scoring.sides(self.tokenizer, data_1, data_2, options)
        if self.pooling_task in scoring.BY_LIKENESS:
            texts = [*first, *second]
            params = broadcast(pooling_params, texts, self.pooling_task)
            adapters = self._adapters(lora_request, len(texts))
            outputs = self._run(texts, params, use_tqdm, tokenization_kwargs, long_text, "score", adapters)
            sides = scoring.matched(outputs[: len(first)], second), outputs[len(first) :]
            pad = getattr(self.tokenizer.vocabulary, "pad_token_id", None)
            return [ScoringRequestOutput.of_embeddings(one, two, pad) for one, two in zip(*sides)]
        reading = self.reads_pairs(chat_template)
        prompts = reading.prompts(self.tokenizer, first, second, options)
        params = broadcast(pooling_params, prompts, "classify")
        for adapter in filter(None, adapters := self._adapters(lora_request, len(prompts))):
            scoring.check(self.pooling_task, len(adapter.answers.labels))
        tokenization = reading.tokenization(tokenization_kwargs, options)
        outputs = self._run(prompts, params, use_tqdm, tokenization, long_text, "score", adapters)
        return [ScoringRequestOutput.from_base(output) for output in outputs]

    def reads_pairs(self, template: str | None = None) -> scoring.PairReading:
        """How ``score`` has the model read two texts; ``template`` goes before what else says so.

        Raises:
            ValidationError: a template, though the model's recipe says already what stands around the texts.
        """
        if template is None:
            return self._pairs
        if self.tokenizer.frame is not None:
            raise ValidationError(RECIPE_OR_TEMPLATE, parameter="chat_template")
        return scoring.PairReading(self._pairs.joined, template)

    def embed(
        self,
        prompts: Prompts,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: Params = None,
        lora_request: Adapters = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        **long_text: Unpack[LongTextOptions],
    ) -> list[EmbeddingRequestOutput]:
        """One vector per prompt: ``outputs.embedding``, of length one unless ``use_activation=False``.

        Args:
            prompts, use_tqdm, pooling_params, lora_request, tokenization_kwargs, **long_text: as in ``classify``;
                ``PoolingParams(dimensions=…)`` cuts the vectors where the checkpoint says that it was trained so.

        Raises:
            ValidationError: as ``classify`` does, and where the model serves no embeddings.
        """
        task = tasks.check("embed", self.pooling_task, self.supported_tasks)
        params = broadcast(pooling_params, prompts := split(prompts), task)
        adapters = self._adapters(lora_request, len(prompts))
        outputs = self._run(prompts, params, use_tqdm, tokenization_kwargs, long_text, "embed", adapters)
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
            self._judge = Judge(self.engine, self.tokenizer, self._ids, self.asking)

        def run(prompts: Sequence[Any], one: PoolingParams) -> list[PoolingRequestOutput[PoolingOutput]]:
            return self._run(prompts, [one] * len(prompts), use_tqdm, tokenization_kwargs, {}, "classify")

        return self._judge(question, prompts, params, run, tokenization_kwargs)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("This LLM is closed; make a new one.")
        self.engine.check_process()

    def _adapters(self, asked: Adapters, count: int) -> list[Loaded | None]:
        """The adapter of each prompt, loaded."""
        self._check_open()
        adapters = self.engine.adapters
        wanted = per_prompt(asked, count, enabled=adapters is not None)
        return [None] * count if adapters is None else adapters.of(wanted)

    def _run(
        self,
        prompts: Sequence[Any],
        params: Sequence[PoolingParams],
        use_tqdm: bool | Callable[..., Any],
        tokenization_kwargs: dict[str, Any] | None,
        long_text: LongTextOptions,
        caller: str,
        adapters: Sequence[Loaded | None] = (),
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        self._check_open()
        call = offline.Call(self.engine, self.tokenizer, self._name, self._ids, use_tqdm, caller)
        return call.run(prompts, params, tokenization_kwargs, long_text, adapters)
