"""The measuring half on a real NVIDIA GPU: `pytest tests/gpu` where one is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfpred import kernels
from perfpred.collect import collect, records
from perfpred.cuda import BACKENDS, Cuda, open_cuda
from perfpred.errors import DeviceError, RuntimeUnavailableError
from perfpred.measure import measure_gpu
from perfpred.prepare import prepare, read_inputs
from perfpred.runtimes import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_runtimes import small_network

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    try:
        return open_cuda("cuda-bindings")
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    return prepare(small_network(folder / "small.onnx"), precision="fp32", batch_size=64, folder=folder / "prepared")


def engine(cuda: Cuda, model: Path, sm_count: int | None = None, **how: Any) -> tuple[Any, int]:
    try:
        ort.load_runtime("cuda")
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    stream = cuda.partition_stream(sm_count)
    built = ort.build_cuda(model, read_inputs(model), precision="tf32", stream=stream, **how)
    built.enqueue(stream)
    cuda.synchronize(stream)
    return built, stream


def test_the_spin_kernel_lasts_as_long_as_asked(cuda: Cuda) -> None:
    stream = cuda.partition_stream(None)
    start, end = cuda.event(), cuda.event()
    for duration_s in (1e-3, 5e-3):
        cuda.record(start, stream)
        cuda.spin(stream, duration_s)
        cuda.record(end, stream)
        cuda.wait(end)
        assert cuda.elapsed_s(start, end) == pytest.approx(duration_s, rel=0.2)


def test_memory_goes_there_and_back(cuda: Cuda) -> None:
    values = np.arange(1000, dtype=np.float32)
    address = cuda.malloc(values.nbytes)
    cuda.upload(address, values)
    back = np.zeros_like(values)
    cuda.download(back, address)
    cuda.free(address)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_within_one_percent(cuda: Cuda, tmp_path: Path, backend: str) -> None:
    # Long enough that what a second context adds to each kernel's launch does not count.
    model = prepare(small_network(tmp_path / "small.onnx"), precision="fp32", batch_size=4096, folder=tmp_path / "long")
    try:
        other = open_cuda(backend)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    times = {}
    for name, opened in (("reference", cuda), (backend, other)):
        opened.make_current()
        built, stream = engine(opened, model)
        times[name] = measure_gpu(opened, built, stream).latency_s
    assert times[backend] == pytest.approx(times["reference"], rel=0.01)


def test_a_smaller_partition_is_slower(cuda: Cuda, model: Path) -> None:
    if cuda.attribute("sm_count") < 64:
        pytest.skip("too few SMs to split")
    whole = measure_gpu(cuda, *engine(cuda, model))
    part = measure_gpu(cuda, *engine(cuda, model, 8))
    assert part.latency_s > 1.1 * whole.latency_s
    assert part.graph_nodes == whole.graph_nodes
    with pytest.raises(DeviceError, match="can't be split into 7 SMs"):
        cuda.partition_stream(7)


def test_kernels_carry_their_nodes(cuda: Cuda, model: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    built, stream = engine(cuda, model, profile=tmp_path / "profile")
    measured = measure_gpu(cuda, built, stream)
    columns = kernels.columns_of(kernels.record_engine(cuda, built, stream))
    assert {op for op in columns["op_type"] if op} >= {"Conv"}
    assert 0.3 * measured.latency_s < sum(columns["time_s"]) < 1.2 * measured.latency_s


def test_collecting_end_to_end(cuda: Cuda, model: Path, tmp_path: Path) -> None:
    engine(cuda, model)
    nets = tmp_path / "nets"
    nets.mkdir()
    small_network(nets / "small.onnx")
    progress = collect([nets], out=tmp_path / "out", precisions=("fp16",), rebuilds=1, detail=True, check_outputs=True)
    assert progress.good == 2
    rows = list(records(tmp_path / "out"))
    assert {row["rebuild"] for row in rows} == {0, 1}
    for row in rows:
        assert row["cleared"]
        assert row["outputs"]["max_relative_difference"] < 0.05
        assert row["isolated_s"] >= row["latency_s"] > 0
        assert row["before"]["sm_clock_hz"] > 0
