"""Every error jaxpool raises on purpose. All of them are also the builtin a caller would expect.

Messages are for people: what was wrong, the value seen, what to do.
"""

from __future__ import annotations


class JaxpoolError(Exception):
    """Root of all errors raised on purpose; the command line prints these without a traceback."""


class ValidationError(JaxpoolError, ValueError):
    """A request (prompt, parameter, option) is wrong; nothing was computed for it.

    Attributes:
        parameter: name of the offending parameter, or None.
        value: the value seen, or None.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value

    def __str__(self) -> str:
        extras = [f"{k}={v}" for k, v in (("parameter", self.parameter), ("value", self.value)) if v is not None]
        return super().__str__() + (f" ({', '.join(extras)})" if extras else "")


class CheckpointError(JaxpoolError, ValueError):
    """A checkpoint cannot be opened: files missing, damaged, hostile or inconsistent."""


class ConfigError(CheckpointError):
    """A field of ``config.json`` (or an override) has a value that jaxpool does not implement."""


class UnsupportedArchitectureError(CheckpointError):
    """No family implements the checkpoint's architecture."""


class WeightsError(CheckpointError):
    """Source tensors and parameters do not match one to one (missing, unused, misshapen, not finite)."""


class MissingHeadError(WeightsError):
    """The checkpoint has no classification head; the message names the names searched and the remedies."""


class InputFileError(JaxpoolError, ValueError):
    """An input file cannot be read: not found, wrong column, undecodable bytes, malformed line."""


class EngineError(JaxpoolError, RuntimeError):
    """A batch failed on the device (for example logits that are not finite); only its own rows are affected."""


class ServerError(JaxpoolError, RuntimeError):
    """A server refused a request of a client, or failed at it; the message begins with the status.

    Attributes:
        status: HTTP status. 400 and 422: the request is wrong; 429 and 503: every retry was refused, too.
        parameter: the field to blame, or None.
    """

    def __init__(self, message: str, *, status: int, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter
