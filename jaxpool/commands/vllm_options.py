"""Options as vLLM's users write them: its spellings, and its options that have no effect here or are refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from jaxpool.engine_args import IGNORED, check
from jaxpool.errors import ValidationError
from jaxpool.vllm_args import Ignored, Refused, VllmArgs

SHORT = {
    "-dp": "--data-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-q": "--quantization",
    "-tp": "--tensor-parallel-size",
}
"""vLLM's short options."""

ONE_APP = "there is one process, which answers all requests"
OWN_LOG = "requests are logged as JSON lines; see --access-log"
NO_TOOLS = "nothing is generated, so no tools are called"

SERVER: dict[str, tuple[type, Ignored | Refused]] = {
    "allow_credentials": (bool, Refused((False,), "pages of other origins send a key, no cookies")),
    "anthropic_disabled_thinking_effort": (str, Ignored(NO_TOOLS)),
    "api_server_count": (int, Ignored(ONE_APP)),
    "cohere_format": (str, Ignored("it belongs to --tokenizer-mode cohere, which is refused")),
    "cohere_is_reasoning_model": (bool, Ignored("nothing is generated")),
    "data_parallel_supervisor_port": (int, Ignored(ONE_APP)),
    "default_chat_template_kwargs": (str, Refused(({}, None), "send chat_template_kwargs with each request")),
    "disable_access_log_for_endpoints": (str, Ignored(OWN_LOG)),
    "disable_fastapi_docs": (bool, Refused((False,), "/docs and /openapi.json are always served")),
    "disable_uvicorn_access_log": (bool, Ignored(OWN_LOG)),
    "dp_supervisor_probe_failure_threshold": (int, Ignored(ONE_APP)),
    "dp_supervisor_probe_interval_s": (float, Ignored(ONE_APP)),
    "dp_supervisor_probe_timeout_s": (float, Ignored(ONE_APP)),
    "enable_auto_tool_choice": (bool, Ignored(NO_TOOLS)),
    "enable_flash_late_interaction": (bool, Ignored("it changes where scores are computed, not what they are")),
    "enable_force_include_usage": (bool, Ignored("every answer has its usage")),
    "enable_log_deltas": (bool, Ignored(OWN_LOG)),
    "enable_log_outputs": (bool, Ignored(OWN_LOG)),
    "enable_offline_docs": (bool, Ignored("/docs needs nothing from elsewhere")),
    "enable_per_request_metrics": (bool, Ignored("see /metrics")),
    "enable_scale_out": (bool, Ignored(ONE_APP)),
    "enable_server_load_tracking": (bool, Ignored("/load is always served")),
    "enable_ssl_refresh": (bool, Ignored("SIGHUP reads the certificates again")),
    "enable_tokenizer_info_endpoint": (bool, Refused((False,), "there is no such route")),
    "exclude_tools_when_tool_choice_none": (bool, Ignored(NO_TOOLS)),
    "fingerprint_mode": (str, Ignored("answers carry no fingerprint")),
    "fingerprint_value": (str, Ignored("answers carry no fingerprint")),
    "grpc": (bool, Refused((False,), "HTTP is served")),
    "grpc_port": (int, Refused((None,), "HTTP is served")),
    "h11_max_header_count": (int, Ignored("aiohttp bounds the headers")),
    "h11_max_incomplete_event_size": (int, Ignored("aiohttp bounds the headers")),
    "headless": (bool, Refused((False,), ONE_APP)),
    "log_error_stack": (bool, Ignored(OWN_LOG)),
    "max_log_len": (int, Ignored("prompts are not logged")),
    "middleware": (list, Refused(((), None), "mount jaxpool_serving.app.init_app in an application of your own")),
    "response_role": (str, Ignored("nothing is generated")),
    "return_tokens_as_token_ids": (bool, Ignored("nothing is generated")),
    "root_path": (str, Refused(("", None), "strip the prefix in the proxy")),
    "sse_keep_alive_interval": (int, Ignored("nothing is streamed")),
    "ssl_ciphers": (str, Refused((None,), "the ciphers are OpenSSL's defaults for TLS 1.2 and later")),
    "tool_call_parser": (str, Ignored(NO_TOOLS)),
    "tool_parser_plugin": (str, Ignored(NO_TOOLS)),
    "tool_server": (str, Ignored(NO_TOOLS)),
    "tool_strict_level": (str, Ignored(NO_TOOLS)),
    "trust_request_mm_kwargs": (bool, Refused((False,), "only text is read")),
    "uvicorn_log_level": (str, Ignored("the server logs what people must know; --debug shows more")),
}
"""What ``vllm serve`` has beside engine arguments and ``jaxpool serve`` has not -> its type, and what becomes of it."""

MARK = "vllm:"
"""Begins the names under which the values of these options are kept."""


def with_file(words: Sequence[str], command: argparse.ArgumentParser) -> list[str]:
    """The same words with those of the YAML file that ``--config`` names after the command's name, as in vLLM.

    What the command line says itself goes before the file. ``true`` is a switch, ``false`` and ``null`` ask for
    nothing, a list has several values, an object is JSON.

    Raises:
        ValidationError: it is no such file, or there are several.
        OSError: it cannot be read.
    """
    import yaml  # of transformers

    place = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    place.add_argument("--config", action="append")
    given, rest = place.parse_known_args(words)
    if not given.config:
        return list(words)
    if len(given.config) > 1:
        raise ValidationError(f"--config names one file, not {len(given.config)}.")
    path = Path(given.config[0])
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValidationError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(said or {}, dict):
        raise ValidationError(f"--config {path} must hold options and their values, as in: port: 8000")
    ours = {_option(word) for word in rest if word.startswith("-")}
    after = next(i for i, word in enumerate(rest, 1) if not word.startswith("-"))  # the command
    positional = rest[after:] and not rest[after].startswith("-")  # the model
    found: list[str] = []
    for key, value in (said or {}).items():
        option = f"--{str(key).replace('_', '-')}"
        if _option(option) in ours or (option == "--model" and positional):
            continue
        found += _said(option, value, command)
    return [*rest[:after], *found, *rest[after:]]


def _option(word: str) -> str:
    """The name of an option, however it is written."""
    name = word.partition("=")[0]
    return SHORT.get(name, name.replace("_", "-")).partition(".")[0].removeprefix("--no-").removeprefix("--")


def _said(option: str, value: Any, command: argparse.ArgumentParser) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    if isinstance(value, dict):
        return [f"{option}={json.dumps(value)}"]
    if not isinstance(value, list):
        return [f"{option}={value}"]
    action = command._option_string_actions.get(option)
    if action is not None and action.nargs == "+":
        return [option, *map(str, value)] if value else []
    if isinstance(action, argparse._AppendAction):
        return [f"{option}={one}" for one in value]
    return [f"{option}={json.dumps(value)}"]


def spelled(words: Sequence[str]) -> list[str]:
    """The same words with options spelled as ours: hyphens, long names, fields of JSON options gathered into one.

    ``--hf_overrides`` becomes ``--hf-overrides``, and ``--pooler-config.use_activation false`` becomes
    ``--pooler-config={"use_activation": false}``.
    """
    found: list[str] = []
    fields: dict[str, dict[str, Any]] = {}
    left = iter(words)
    for word in left:
        if word == "--":
            return [*found, *_joined(found, fields), word, *left]
        name, equals, value = word.partition("=")
        if name in SHORT:
            found.append(SHORT[name] + equals + value)
            continue
        if not name.startswith("--"):
            found.append(word)
            continue
        option, dot, path = name.partition(".")
        option = option.replace("_", "-")
        if not dot:
            found.append(option + equals + value)
            continue
        *outer, last = path.split(".")
        place = fields.setdefault(option, {})
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = _value(value if equals else next(left, "true"))
    return found + _joined(found, fields)


def _joined(found: list[str], fields: Mapping[str, dict[str, Any]]) -> list[str]:
    """The options that have fields, each with what is said of it as a whole, which is taken out of ``found``."""
    options = []
    for option, own in fields.items():
        whole: dict[str, Any] = {}
        for index in reversed([i for i, word in enumerate(found) if word.partition("=")[0] == option]):
            _, equals, value = found[index].partition("=")
            said = _value(value if equals else "".join(found[index + 1 : index + 2]))
            del found[index : index + 1 + (not equals)]
            whole = (said if isinstance(said, dict) else {}) | whole
        options.append(f"{option}={json.dumps(whole | own)}")
    return options


def _value(word: str) -> Any:
    """What a word says: JSON where it is some, ``None``, else itself."""
    if word in ("None", "none"):
        return None
    try:
        return json.loads(word.lower() if word in ("True", "False") else word)
    except ValueError:
        return word


def add_vllm_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare vLLM's options that ``parser`` has not; they are not in its help."""
    known = parser._option_string_actions
    for name, kind in _kinds():
        option = f"--{name.replace('_', '-')}"
        if option in known:
            continue
        how: dict[str, Any] = {"type": _value}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif kind is list:
            how = {"type": _value, "nargs": "+"}
        parser.add_argument(option, dest=MARK + name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **how)


def _kinds() -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(VllmArgs, include_extras=True).items():
        yield name, get_origin(hint.__origin__) or hint.__origin__
    for name, (kind, _) in SERVER.items():
        yield name, kind


def without_effect(args: argparse.Namespace) -> dict[str, str]:
    """The options of `add_vllm_arguments` that were given and mean nothing here, each with the reason.

    Raises:
        NotImplementedError: one asks for what jaxpool cannot honour.
    """
    found = {}
    for key, value in vars(args).items():
        if not key.startswith(MARK):
            continue
        name = key.removeprefix(MARK)
        what = SERVER[name][1] if name in SERVER else None
        if isinstance(what, Refused):
            check(name, value, (what.harmless, what.why))
        elif what is None:
            check(name, value)
        why = what.why if isinstance(what, Ignored) else IGNORED.get(name, "this is what jaxpool does anyway")
        found[f"--{name.replace('_', '-')}"] = why
    return found
