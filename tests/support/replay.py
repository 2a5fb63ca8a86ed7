"""Sends recorded requests again and tells where the answer differs from the recorded one."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp.test_utils import TestClient

GOLDENS = Path(__file__).parents[1] / "data" / "goldens"
TOLERANCE = 1e-4
ANYTHING = {"created", "version", "root", "owned_by"}
"""Values that may differ: times, versions, model paths."""
IDS = {"id", "request_id"}
BYTES = {"classify invalid utf8", "classify utf8 bom"}
"""Requests whose bodies were recorded in hexadecimal."""

TEXTS = [text for text in json.loads((GOLDENS / "texts.json").read_text(encoding="utf-8"))["TEXTS"] if text.strip()]
LONG = "hello world " * 1024
CLIPPED: dict[str, dict[str, Any]] = {
    "classify over-long text": {"input": LONG},
    "classify over-long in batch": {"input": ["Hello world", LONG]},
    "classify very long text (chars bound)": {"input": "x" * 30_730},
    "classify truncate -1 over-long": {"input": LONG, "truncate_prompt_tokens": -1},
    "classify huge batch 1000": {"input": TEXTS * 100},
    "classify chat over-long": {"messages": [{"role": "user", "content": LONG}]},
}
"""Bodies too long to have been recorded in full, without the model's name."""


def recorded(name: str) -> dict[str, Any]:
    """The requests and responses of one recording, by name."""
    found = json.loads((GOLDENS / name).read_text(encoding="utf-8"))
    return {case: entry for case, entry in found.items() if case != "__meta__"}


def body_of(case: str, request: dict[str, Any]) -> bytes | None:
    """The bytes that were sent."""
    body = request["body"]
    if isinstance(body, dict) and "__clipped__" in body:
        begun = body["__clipped__"]
        whole = json.dumps({"model": begun.split('"')[3], **CLIPPED[case]})
        # gpt2-cls was recorded under a name 22 characters longer, which was shortened afterwards
        same = whole.startswith(begun) and body["len"] - len(whole) in (0, 22)
        assert same, f"{case} is not what was recorded"
        return whole.encode()
    if body is None:
        return None
    if not request["raw"]:
        return json.dumps(body).encode()
    return bytes.fromhex(body) if case in BYTES else body.encode()


async def send(client: TestClient, case: str, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer."""
    async with client.request(
        request["method"],
        request["path"],
        data=body_of(case, request),
        headers=request["headers"],
        skip_auto_headers=["Content-Type"],
        allow_redirects=False,
    ) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.read()


def differences(entry: dict[str, Any], status: int, headers: dict[str, str], body: bytes) -> list[str]:
    """What is not as recorded; empty if everything is."""
    wanted = entry["response"]
    if status != wanted["status"]:
        return [f"status {status}, not {wanted['status']}: {body[:300]!r}"]
    found = [
        f"{name}: {headers.get(name)}, not {value}"
        for name, value in wanted["headers"]
        if not _same_header(name, value, headers.get(name, ""))
    ]
    if "json" in wanted:
        found += compare(_numbers(wanted["json"], entry), _numbers(json.loads(body), entry), "", _has_id(entry))
    elif "bytes_hex" in wanted:
        found += compare(_floats(bytes.fromhex(wanted["bytes_hex"])), _floats(body), "")
    elif "n_data" in wanted:
        found += _of_a_long_answer(wanted, json.loads(body))
    elif wanted["text"] and not headers.get("content-type", "").startswith("text/plain; version="):  # metrics vary
        found += compare(wanted["text"], body.decode(), "")
    return found


def compare(wanted: Any, found: Any, path: str, ids: bool = False) -> list[str]:
    """Differences of two JSON values; ``ids`` says whether ids count."""
    name = path.rpartition(".")[2]
    if name in ANYTHING or (name in IDS and not ids and type(wanted) is type(found)):
        return []
    if isinstance(wanted, dict) and isinstance(found, dict):
        odd = [f"{path}: {key} is {'missing' if key in wanted else 'extra'}" for key in wanted.keys() ^ found.keys()]
        common = wanted.keys() & found.keys()
        return odd + [d for key in common for d in compare(wanted[key], found[key], f"{path}.{key}", ids)]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [d for index, (w, f) in enumerate(zip(wanted, found)) for d in compare(w, f, f"{path}[{index}]", ids)]
    if isinstance(wanted, float) and isinstance(found, float):
        return [] if math.isclose(wanted, found, abs_tol=TOLERANCE) else [f"{path}: {found}, not {wanted}"]
    return [] if type(wanted) is type(found) and wanted == found else [f"{path}: {found!r}, not {wanted!r}"]


def _has_id(entry: dict[str, Any]) -> bool:
    body = entry["request"]["body"]
    return "X-Request-Id" in entry["request"]["headers"] or (isinstance(body, dict) and "request_id" in body)


def _same_header(name: str, wanted: str, found: str) -> bool:
    if name == "content-type":  # parameters such as the charset of JSON say nothing
        return wanted.split(";")[0] == found.split(";")[0]
    return wanted.removeprefix("http://HOST") == found


def _floats(data: bytes, dtype: str = "<f4") -> list[float]:
    return np.frombuffer(data, dtype).astype(float).tolist()


def _numbers(answer: Any, entry: dict[str, Any]) -> Any:
    """An answer whose base64 data are numbers again: equal ones may differ in their last bit."""
    body = entry["request"]["body"]
    if entry["request"]["path"] != "/pooling" or body.get("encoding_format") != "base64" or "data" not in answer:
        return answer
    kind = {"float32": "f4", "float16": "f2"}[body.get("embed_dtype", "float32")]
    order = ">" if body.get("endianness") == "big" else "<"
    data = [one | {"data": _floats(base64.b64decode(one["data"]), order + kind)} for one in answer["data"]]
    return answer | {"data": data}


def _of_a_long_answer(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Of these only the beginning was recorded."""
    head = wanted["json_head"]
    begun = json.loads(head[: head.rindex('},{"index"')] + "}]}")
    shape = {"keys": sorted(found), "data": len(found["data"])}
    odd = compare({"keys": sorted(wanted["json_keys"]), "data": wanted["n_data"]}, shape, "")
    return odd + compare(begun["data"], found["data"][: len(begun["data"])], ".data")


async def check_all(
    client: TestClient, cases: Mapping[str, Any], decided: Collection[str], statuses: Mapping[str, int]
) -> None:
    """Sends every recorded request and asserts that the answer is the recorded one.

    Args:
        client: of the server that answers.
        cases: from ``recorded``.
        decided: cases that are answered differently on purpose; each of them must be.
        statuses: the statuses of those of them whose status differs.
    """
    wrong: dict[str, list[str]] = {}
    equal = set()
    for case, entry in cases.items():
        status, headers, body = await send(client, case, entry["request"])
        found = differences(entry, status, headers, body)
        if not found:
            equal.add(case)
        elif case not in decided or status != statuses.get(case, entry["response"]["status"]):
            wrong[case] = found
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)
    assert not equal & set(decided), "no longer different: take these out of the table"
