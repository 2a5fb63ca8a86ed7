"""The models behind the server: each opened in a thread of its own, found by the name in a request."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.batching.batcher import Batcher
from jaxpool_serving.metrics import METRICS
from jaxpool_serving.schemas.errors import RequestError, truncated
from jaxpool_serving.state import MODELS, OPTIONS, ServedModel

if TYPE_CHECKING:
    from jaxpool.llm import LLM


def models_context(sources: Mapping[str, LLM | Callable[[], LLM]]) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context of the application: opens every model when it starts, closes what it opened when it ends."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        app[MODELS].update({name: loop.create_future() for name in sources})
        for name, source in sources.items():
            if callable(source):
                _open_in_thread(app, name, source)
            else:
                app[MODELS][name].set_result(_serve(app, name, source))
        yield
        # Handlers have drained by now (aiohttp cleans contexts up after them); what is left are batches whose
        # clients have gone.
        for name, source in sources.items():
            served = app[MODELS][name]
            if served.done() and not served.cancelled() and not served.exception():
                await served.result().batcher.close()
                if served.result().batcher.engine is not served.result().llm.engine:
                    served.result().batcher.engine.close()
                if callable(source):
                    served.result().llm.close()

    return context


def _serve(app: web.Application, name: str, llm: LLM, warm: bool = False) -> ServedModel:
    options, metrics = app[OPTIONS], app[METRICS]
    batcher = Batcher(
        _engine(llm, warm),
        max_texts=options.max_queued_texts,
        max_tokens=options.max_queued_tokens,
        max_wait=options.max_wait_ms / 1e3,
        slots=llm.engine.under_way,
        on_batch=metrics.of_batches(name),
    )
    served = ServedModel(name, llm, batcher)
    metrics.watch(served)
    return served


def _engine(llm: LLM, warm: bool) -> Any:
    """What computes: the model's engine, or of a language model the one that knows how to ask it."""
    if llm.engine.spec.language is None:
        return llm.engine
    from jaxpool.zero_shot.served import AnswerEngine

    engine = AnswerEngine(llm.engine)
    if warm:
        try:
            engine.warm(everything=llm.compile == "ahead")
        except BaseException:
            engine.close()
            llm.close()
            raise
    return engine


def _open_in_thread(app: web.Application, name: str, open_llm: Callable[[], LLM]) -> None:
    loop, served = asyncio.get_running_loop(), app[MODELS][name]

    def settle(result: ServedModel | None, error: BaseException | None) -> None:
        if served.done():
            return
        if error is not None:
            served.set_exception(error)
        elif result is not None:
            served.set_result(result)

    def load() -> None:
        result, failure = None, None
        try:
            result = _serve(app, name, open_llm(), warm=True)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is gone: stopped while loading
            loop.call_soon_threadsafe(settle, result, failure)

    # A daemon thread, not an executor: a stop during a compile of minutes must not wait for it.
    threading.Thread(target=load, name=f"load {name}", daemon=True).start()


def still_loading(app: web.Application) -> bool:
    """Whether a thread of `models_context` has not come back yet."""
    return any(not model.done() for model in app[MODELS].values())


def find_model(app: web.Application, name: str | None) -> ServedModel:
    """The model, or adapter of one, that a request names; the first model if it names none.

    Raises:
        RequestError: 404, there is no such model; 503, it is still loading.
    """
    models = app[MODELS]
    name = None if name in app[OPTIONS].aliases else name
    if name and name not in models and (adapted := _with_adapter(app, name)) is not None:
        return adapted
    if name and name not in models:
        raise RequestError(404, "NotFoundError", f"The model `{truncated(name)}` does not exist.")
    found = models[name] if name else next(iter(models.values()))
    if not found.done() or found.exception():
        raise RequestError(503, "ServiceUnavailableError", "The model is still loading.", retry_after=1)
    return found.result()


def _with_adapter(app: web.Application, name: str) -> ServedModel | None:
    """The model that has an adapter of this name; None where there is no such adapter."""
    for served in loaded(app):
        held = {} if served.llm.engine.adapters is None else served.llm.engine.adapters.held()
        if name in held:
            return replace(served, name=name, adapter=held[name], base=served.name)
    return None


def loaded(app: web.Application) -> list[ServedModel]:
    """The models that are there."""
    return [model.result() for model in app[MODELS].values() if model.done() and not model.exception()]


def refuse_where_none(app: web.Application, fits: Callable[[LLM], bool]) -> None:
    """404 whatever a body says, as from a server without such a route, where no model ``fits``.

    Not while a model is still loading.
    """
    models = app[MODELS].values()
    if all(one.done() and not one.exception() and not fits(one.result().llm) for one in models):
        raise web.HTTPNotFound


def find_classifier(app: web.Application, name: str | None) -> ServedModel:
    """As `find_model`, for those who want texts classified.

    Raises:
        RequestError: as `find_model` does; 501, the model could classify texts, but was started for another task.
        HTTPNotFound: the model cannot classify texts.
    """
    found = find_model(app, name)
    if found.llm.pooling_task == "classify":
        return found
    refuse_questions(found.llm)
    if "classify" not in found.llm.supported_tasks:
        raise web.HTTPNotFound
    raise RequestError(501, "NotImplementedError", "The model does not support Classification API")


def refuse_questions(llm: LLM) -> None:
    """Raise ValidationError for a language model: it does nothing but judge the labels that a request names."""
    if llm.pooling_task == "zero_shot":
        raise ValidationError(
            "This is a language model, which has no labels of its own: send some to /classify, as in "
            '"candidate_labels": ["bug", "praise"].',
            parameter="candidate_labels",
        )


def find_embedder(app: web.Application, name: str | None) -> ServedModel:
    """As `find_model`, for those who want embeddings.

    Raises:
        RequestError: as `find_model` does; 501, the model could embed texts, but was started for another task.
        HTTPNotFound: the model embeds nothing.
    """
    found = find_model(app, name)
    if found.llm.pooling_task == "embed":
        return found
    if not could_embed(found.llm):
        raise web.HTTPNotFound
    raise RequestError(501, "NotImplementedError", "The model does not support Embeddings API")


def could_embed(llm: LLM) -> bool:
    """Whether the model gives embeddings, or could if it were started for them."""
    return "embed" in llm.supported_tasks
