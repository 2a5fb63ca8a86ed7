"""Tokenising for many clients: short requests at once, long ones in threads, piece by piece.

A text that takes too long is given up, and its thread replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aiohttp import web

from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool.errors import JaxpoolError
from jaxpool.text.prompts import TextPrompt
from jaxpool.text.windows import LongText, Windowed, encode
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.state import OPTIONS, TOKENIZER_THREADS

if TYPE_CHECKING:
    from jaxpool.engine.adapters import Loaded
    from jaxpool.engine.engine import Row
    from jaxpool.llm import LLM

AT_ONCE = 2_000
"""Characters (or ids) of a request that the event loop tokenises itself; a hop to a thread costs as much."""

PIECE = 64_000
"""Characters (or ids) that one request tokenises before the next may have the thread, if no text is longer."""

CHARACTERS_PER_TOKEN = 4


class TokenizerError(RuntimeError):
    """The tokenizer itself failed; ``__cause__`` is what it raised."""


def prompt_size(prompt: Any) -> int:
    """Characters of a text or of both texts of a pair, or the number of ids."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, Mapping):
        return sum(len(part) for part in prompt.values() if isinstance(part, str | list))
    return len(prompt)


def estimate_tokens(prompts: Iterable[Any], sizes: Iterable[int], longest: int) -> int:
    """Tokens that the prompts will have, about: ids are counted, texts estimated, and both are cut at ``longest``."""
    return sum(
        min(size if isinstance(prompt, list) else size // CHARACTERS_PER_TOKEN + 1, longest)
        for prompt, size in zip(prompts, sizes, strict=True)
    )


async def tokenise(
    llm: LLM,
    threads: TokenizerThreads,
    prompts: Sequence[Any],
    sizes: Sequence[int],
    tokenization: Mapping[str, Any],
    long: LongText | None = None,
) -> list[Windowed]:
    """The texts of one request as the model reads them.

    Args:
        llm: the model whose tokenizer it is.
        threads: where all but short requests are tokenised; fast tokenizers let the event loop go on meanwhile.
        prompts: texts, lists of token ids, or pairs.
        sizes: `prompt_size` of each.
        tokenization: options for the tokenizer.
        long: what becomes of texts that are longer than the model reads.

    Raises:
        ValidationError: a prompt cannot be tokenised as asked.
        TokenizerError: the tokenizer failed.
        RequestError: 504, it takes too long.
    """
    vocabulary = llm.tokenizer.vocabulary
    if sum(sizes) <= AT_ONCE and (vocabulary is None or vocabulary.backend is not None):  # a Rust one is quick
        return _read(llm, prompts, tokenization, long)
    texts: list[Windowed] = []
    for start, stop in _pieces(sizes):
        texts += await threads.run(_read, llm, prompts[start:stop], tokenization, long)
    return texts


def rows_of(
    texts: Sequence[Windowed], activated: bool, salt: str | None = None, adapter: Loaded | None = None
) -> list[Row]:
    """What is computed for texts: a row for every window.

    ``activated``: scores are wanted after the activation; ``salt``: of those who may share beginnings.
    """
    from jaxpool.engine.engine import Row

    return [Row(one.ids, one.types, activated, salt, adapter=adapter) for text in texts for one in text.windows]


def _pieces(sizes: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Cuts a list into stretches of about `PIECE`, so that lists of several clients take turns."""
    start = weight = 0
    for index, one in enumerate(sizes):
        if index > start and weight + one > PIECE:
            yield start, index
            start = index
            weight = 0
        weight += one
    yield start, len(sizes)


def _read(llm: LLM, prompts: Sequence[Any], tokenization: Mapping[str, Any], long: LongText | None) -> list[Windowed]:
    with tokenizer_errors():
        return encode(llm.tokenizer, prompts, tokenization, long)


@contextlib.contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Inside, whatever is raised that is no refusal of ours is raised as `TokenizerError`."""
    try:
        yield
    except (JaxpoolError, RequestError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a Rust tokenizer is not even an Exception
        raise TokenizerError(type(error).__name__) from error


P = ParamSpec("P")
T = TypeVar("T")


async def tokenizer_context(app: web.Application) -> AsyncIterator[None]:
    """A cleanup context of the application: its `TokenizerThreads`."""
    options = app[OPTIONS]
    app[TOKENIZER_THREADS] = threads = TokenizerThreads(options.tokenizer_threads, options.tokenizer_timeout)
    yield
    threads.shutdown(cancel_futures=True)


class TokenizerThreads(DaemonThreads):
    """Threads for a tokenizer, which nobody can interrupt.

    Args:
        count: of the threads.
        seconds: that one work may take, the wait for a thread not counted.
    """

    def __init__(self, count: int, seconds: float) -> None:
        super().__init__(count, "tokenizer")
        self.seconds = seconds

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` returns, in a thread; once nobody waits for it, the thread is replaced.

        Raises:
            RequestError: 504, it takes too long.
        """
        loop, waiting = asyncio.get_running_loop(), True

        def watch() -> None:
            if waiting:
                limit.reschedule(loop.time() + self.seconds)

        def begin() -> T:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(watch)
            return work(*args, **kwargs)

        try:
            async with asyncio.timeout(None) as limit:
                future = self.submit(begin)
                try:
                    return await asyncio.wrap_future(future)
                finally:
                    waiting = False
                    self.abandon(future)
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"The tokenizer was not done within {self.seconds:g} s."
            raise RequestError(504, "GatewayTimeoutError", message) from None
