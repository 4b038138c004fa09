"""Child processes that build and measure, and the device they share: whatever dies costs one row at most."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from perfpred.errors import MeasurementError
from perfpred.unit import Unit, engine_id, unit_to_json

START_TIMEOUT_S: Final = 120.0
PREPARE_TIMEOUT_S: Final = 600.0
_CLOSE_TIMEOUT_S: Final = 10.0


class ChildLostError(MeasurementError):
    """A child process died or was killed because it did not answer in time."""


class RequestFailedError(MeasurementError):
    """A child process answered that a request failed.

    Attributes:
        error: Class and message in the child.
        fatal: True where the child is of no use any more.
    """

    def __init__(self, error: Mapping[str, str], fatal: bool) -> None:
        super().__init__(f"{error['class']}: {error['message']}")
        self.error = dict(error)
        self.fatal = fatal


class Child:
    """A process that answers JSON lines; started when first asked, restarted after it was lost.

    Args:
        command: Command line.
        log: File for what it prints; None discards it.
    """

    def __init__(self, command: Sequence[str], log: Path | None = None) -> None:
        self._command = list(command)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def ask(self, timeout_s: float, **request: Any) -> Any:
        """Send a request and wait for the value.

        Raises:
            ChildLostError: It died, or did not answer in time and was killed.
            RequestFailedError: It answered with an error.
        """
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            reply = json.loads(self._line(process, timeout_s))
        except (OSError, EOFError, json.JSONDecodeError):
            code = self._reap(process)
            raise ChildLostError(f"the worker process died ({_exit_words(code)})") from None
        if reply["ok"]:
            return reply["value"]
        raise RequestFailedError(reply["error"], bool(reply["fatal"]))

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            with self._log.open("ab") if self._log else contextlib.nullcontext(subprocess.DEVNULL) as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
                )
            self._buffer = b""
        return self._process

    def _line(self, process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close(kill=True)
                    raise ChildLostError(f"no answer within {timeout_s:.0f} s: the worker process was killed")
                chunk = os.read(process.stdout.fileno(), 1 << 20)
                if not chunk:
                    raise EOFError
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _reap(self, process: subprocess.Popen[bytes]) -> int:
        try:
            code = process.wait(timeout=_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self._forget(process)
        return code

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process = None

    def start(self) -> None:
        """Start the process now rather than with the first request."""
        self._started()

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def close(self, kill: bool = False) -> None:
        """End the process: its input closes, and it is killed where that does not help."""
        process = self._process
        if process is None:
            return
        self.signal(signal.SIGCONT)
        if kill:
            process.kill()
        else:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        self._reap(process)


def _exit_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def worker_command(
    target: str, *, device: int = 0, cuda: str = "auto", cores: str = "", host: str = "cpu"
) -> list[str]:
    """Command line of a measuring process."""
    return [
        *(sys.executable, "-m", "perfpred.worker"),
        *("--target", target, "--device", str(device), "--cuda", cuda, "--cores", cores, "--host", host),
    ]


class Device:
    """A device and the workers that share it: while one measures, the others are stopped.

    Building is mostly work for the host, so several workers build at once; a stopped process submits nothing, and
    what it had submitted is over before the warm-up is.

    A GPU keeps every SM partition that a process has used active, the whole GPU included, and then needs 0.2 to
    0.4 us longer for each kernel (seen on an H100); it forgets them when another process runs something. So a
    second process runs one short kernel before each measurement, which leaves one partition active: the measured one.
    """

    def __init__(self, command: Sequence[str], clearer: Child | None) -> None:
        self.command = command
        self.children: list[Child] = []
        self.clearer = clearer
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def exclusive(self, child: Child) -> Iterator[None]:
        """Keep every other worker of the device from running, and clear what this one has left active."""
        with self._lock:
            others = [other for other in self.children if other is not child]
            try:
                for other in others:
                    other.signal(signal.SIGSTOP)
                if self.clearer is not None:
                    self.clearer.ask(START_TIMEOUT_S, op="clear")
                yield
            finally:
                for other in others:
                    other.signal(signal.SIGCONT)

    def restart(self, child: Child, fresh: bool) -> None:
        """Start a worker that does not run, at a moment when nobody measures."""
        with self._lock:
            if fresh:
                child.close()
            child.start()


def measure_unit(
    device: Device, child: Child, unit: Unit, model: str, *, limit_s: float, sharing: int = 1
) -> tuple[dict[str, Any], float, float]:
    """Build and measure one unit in a child process.

    Args:
        device: Where the child works.
        child: Worker process.
        unit: What to measure.
        model: Prepared model.
        limit_s: Longest time to build and to measure.
        sharing: Workers that share the device: others stop this one while they measure, so it gets their time as well.

    Returns:
        The record without identity, good or failed, and the seconds spent building and measuring.
    """
    stage, begin = "build", time.monotonic()
    build_s = measure_s = 0.0
    try:
        device.restart(child, fresh=unit.rebuild > 0)
        child.ask(limit_s * sharing, op="build", unit=unit_to_json(unit), model=model)
        build_s = time.monotonic() - begin
        with device.exclusive(child):
            stage, begin = "measure", time.monotonic()
            child.ask(limit_s, op="measure")
            measure_s = time.monotonic() - begin
        stage = "report"
        value = child.ask(limit_s * sharing, op="report")
        record = {"status": "good", "error": None, "cleared": device.clearer is not None, **value}
    except RequestFailedError as error:
        if error.fatal:
            child.close(kill=True)
        record = failure(stage, error.error)
    except ChildLostError as error:
        record = failure(stage, {"class": "ChildLostError", "message": str(error)})
    return record, build_s, measure_s


def identity_of(unit: Unit, key: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of its engine, whatever came of it."""
    return {"engine_id": engine_id(key), **key, "target": unit.target, "plan": unit_to_json(unit)}


def failure(stage: str, error: Mapping[str, str]) -> dict[str, Any]:
    """Record of a failed row without identity."""
    return {"status": "failed", "error": {"stage": stage, **error}}
