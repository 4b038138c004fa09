"""Exceptions raised on purpose. Each message is one line that names the cause and the fix."""

from __future__ import annotations


class PerfpredError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(PerfpredError):
    """The caller's arguments can't be used; the command line exits with status 2."""


class NetworkError(PerfpredError):
    """An ONNX file can't be read or is not a network this package can bind to static shapes."""


class UnboundDimensionError(NetworkError):
    """A dynamic dimension was left without a value."""


class UnsupportedOperatorError(NetworkError):
    """An operator has no rule here, or is refused by name (control flow)."""


class DeviceError(UsageError):
    """Unknown device, power mode or partition."""


class FormatError(PerfpredError):
    """A file is not what it should be: unknown format, other version, malformed or truncated."""


class EngineFormatError(FormatError):
    """An engine, profile or log recording is malformed; names file, record and what was expected."""


class DatasetError(PerfpredError):
    """A dataset's content is inconsistent."""


class PredictorError(PerfpredError):
    """A predictor can't answer: nothing covers the request, or its file is damaged."""


class RuntimeUnavailableError(PerfpredError):
    """A runtime or a device it needs isn't installed or present; names the extra to install."""


class BuildError(PerfpredError):
    """A runtime refused or failed to build an engine."""


class MeasurementError(PerfpredError):
    """An engine was built but could not be measured."""


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, short enough to quote in one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
