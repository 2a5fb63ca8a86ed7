"""The bodies of ``/score`` and ``/rerank``: how well pairs of texts match."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from jaxpool.errors import ValidationError
from jaxpool.text.scoring import ScoreOptions
from jaxpool_serving.schemas.errors import parse_object, validate, validate_union
from jaxpool_serving.schemas.request import PoolingRequest, Usage, check_after_validation, decimal, usage


class ScoreMultiModalParam(TypedDict):
    """Images and videos of vLLM's protocol; known only to be refused in its words."""

    content: list[Any]


ScoreInput = str | ScoreMultiModalParam


class ScoringRequest(PoolingRequest):
    """The fields of all requests for scores. The last two are for models that read pairs through a score template."""

    SIDES: ClassVar[tuple[str, str]]

    max_tokens_per_query: int = 0
    max_tokens_per_doc: int = 0
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def sides(self, architecture: str) -> list[str | list[str]]:
        """What is on either side of the pairs.

        Raises:
            ValidationError: something else than text.
        """
        found = [getattr(self, name) for name in self.SIDES]
        for one in found:
            if any(not isinstance(part, str) for part in (one if isinstance(one, list) else [one])):
                raise ValidationError(f"MultiModalParam is not supported for {architecture}")
        return found

    def options(self, max_length: int) -> ScoreOptions:
        """What is asked beyond the texts, of a model that reads so many tokens.

        Raises:
            ValidationError: it is not possible.
        """
        names = ("max_tokens_per_query", "max_tokens_per_doc", "instruction", "chat_template_kwargs")
        return ScoreOptions.of({name: getattr(self, name) for name in names}, max_length)


class ScoreQueriesDocumentsRequest(ScoringRequest):
    """``POST /score``: one query for all documents, or as many."""

    SIDES = ("queries", "documents")
    queries: ScoreInput | list[ScoreInput]
    documents: ScoreInput | list[ScoreInput]


class ScoreQueriesItemsRequest(ScoringRequest):
    """``POST /score`` with items for documents."""

    SIDES = ("queries", "items")
    queries: ScoreInput | list[ScoreInput]
    items: ScoreInput | list[ScoreInput]


class ScoreDataRequest(ScoringRequest):
    """``POST /score`` with the names that ``LLM.score`` uses."""

    SIDES = ("data_1", "data_2")
    data_1: ScoreInput | list[ScoreInput]
    data_2: ScoreInput | list[ScoreInput]


class ScoreTextRequest(ScoringRequest):
    """``POST /score`` with the oldest names."""

    SIDES = ("text_1", "text_2")
    text_1: ScoreInput | list[ScoreInput]
    text_2: ScoreInput | list[ScoreInput]


class RerankRequest(ScoringRequest):
    """``POST /rerank``: documents in the order in which they match the query; the first ``top_n``, 0 for all."""

    SIDES = ("query", "documents")
    query: ScoreInput
    documents: ScoreInput | list[ScoreInput]
    top_n: Annotated[int, Field(ge=0)] = 0


ScoreRequest = ScoreQueriesDocumentsRequest | ScoreQueriesItemsRequest | ScoreDataRequest | ScoreTextRequest
SCORE_FORMS: TypeAdapter[ScoreRequest] = TypeAdapter(ScoreRequest)


class ScoreData(TypedDict):
    """The score of one pair."""

    index: int
    object: Literal["score"]
    score: float


class ScoreResponse(TypedDict):
    """The answer to ``POST /score``."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreData]
    usage: Usage


class RerankDocument(TypedDict):
    """A document as it was sent."""

    text: str
    multi_modal: None


class RerankResult(TypedDict):
    """One document; ``index`` is its place in the request."""

    index: int
    document: RerankDocument
    relevance_score: float


class RerankUsage(TypedDict):
    """Tokens of all pairs."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(TypedDict):
    """The answer to ``POST /rerank``, best first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]


def parse_score(body: bytes) -> ScoreRequest:
    """Read the body of ``/score``; RequestError 400 with every problem in one message."""
    found = parse_object(body, forms=4)
    parsed = validate_union(SCORE_FORMS, found)
    check_after_validation(found)
    return parsed


def parse_rerank(body: bytes) -> RerankRequest:
    """Read the body of ``/rerank``; RequestError 400 with every problem in one message."""
    found = parse_object(body)
    parsed = validate(RerankRequest, found)
    check_after_validation(found)
    return parsed


def score_response(request_id: str, model: str, scores: Sequence[float], prompt_tokens: int) -> ScoreResponse:
    """The answer, in the order of the pairs."""
    return {
        "id": f"score-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": index, "object": "score", "score": decimal(score)} for index, score in enumerate(scores)],
        "usage": usage(prompt_tokens),
    }


def rerank_response(
    request_id: str, model: str, documents: Sequence[str], scores: Sequence[float], top_n: int, prompt_tokens: int
) -> RerankResponse:
    """The answer, best first; of equal ones the first in the request."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: top_n or None]
    return {
        "id": f"score-{request_id}",
        "model": model,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
        "results": [
            {
                "index": index,
                "document": {"text": documents[index], "multi_modal": None},
                "relevance_score": decimal(scores[index]),
            }
            for index in order
        ],
    }
