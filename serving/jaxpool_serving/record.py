"""What is known of one request once it is answered: the access log, the metrics and the trace are made of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from time import monotonic

from aiohttp import web

MAX_ID = 256
"""Characters of a request id that are logged and sent back; a longer one is cut."""
CLIENT_LEFT = 499
"""The status on record for a request whose client left before the answer; nothing is sent."""


@dataclass(slots=True)
class Record:
    """One request, filled in on its way. Durations are seconds.

    Attributes:
        request_id: the header ``X-Request-Id``, else what the body says, else random.
        method: of the request.
        path: as requested, decoded, without the query.
        route: the resource that answered, such as ``/classify``; ``unknown`` where there is none.
        time: when it arrived, Unix seconds.
        arrived: the same on the monotonic clock.
        status: of the answer.
        total: from arrival to the answer.
        model: served name; None where no model was used.
        texts: prompts admitted.
        tokens: of all prompts, after truncation and padding.
        tokenise: in the tokenizer's threads, the wait for a thread included.
        queue: from then until the last of its texts went to the device.
        device: from then until the last result came back.
        trace_id: hexadecimal, where a trace is taken.
    """

    request_id: str
    method: str
    path: str
    route: str
    time: float = field(default_factory=time.time)
    arrived: float = field(default_factory=monotonic)
    status: int = CLIENT_LEFT
    total: float = 0.0
    model: str | None = None
    texts: int = 0
    tokens: int = 0
    tokenise: float = 0.0
    queue: float = 0.0
    device: float = 0.0
    trace_id: str | None = None


RECORD = web.RequestKey("RECORD", Record)
