"""A measuring process without a device: answers like perfpred.worker, and misbehaves where a network's name says so."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

pending: dict = {}


def build(unit: dict, model: str) -> dict:
    name = unit["network"]
    pending.update(unit=unit, model=model)
    if "crash" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in name:
        time.sleep(600)
    if "refused" in name:
        raise RuntimeError("operator Frobnicate is not supported")
    return {}


def measure() -> None:
    time.sleep(float(os.environ.get("FAKE_ROW_S", "0.002")))
    if "dies-late" in pending["unit"]["network"]:
        os.kill(os.getpid(), signal.SIGKILL)


def report() -> dict:
    unit, model = pending["unit"], pending["model"]
    return {
        "latency_kind": "gpu_compute",
        "latency_s": 1e-3 * unit.get("batch_size", 1),
        "samples_s": [1e-3] * 5,
        "flags": [],
        "process": os.getpid(),
        "model": Path(model).read_text(),
    }


def prepare(path: str, precision: str, batch_size: int, folder: str, reference: bool) -> dict:
    Path(folder).mkdir(parents=True, exist_ok=True)
    if "unreadable" in path:
        raise ValueError("not an ONNX file")
    model = Path(folder) / "model.onnx"
    model.write_text(f"{Path(path).stem} {precision} {batch_size}")
    return {"model": str(model)}


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with the thread that started it, as the real one
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            if operation == "clear":
                value = None
            elif operation == "hello":
                value = {"device": "fake-gpu", "device_name": "Fake", "sms": 132}
            else:
                value = {"build": build, "measure": measure, "report": report, "prepare": prepare}[operation](**request)
            reply = {"ok": True, "value": value}
        except Exception as error:  # noqa: BLE001 - as the real worker
            described = {"class": type(error).__name__, "message": str(error)}
            reply = {"ok": False, "error": described, "fatal": "fatal" in str(request)}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


main()
