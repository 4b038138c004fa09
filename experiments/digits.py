"""A small convolutional network for scikit-learn's digits: trained in NumPy, written as ONNX.

Two 3x3 convolutions with ReLU (8 x 8 x 16, then 4 x 4 x 32 by stride 2) and a dense layer; momentum descent on
cross-entropy. Weights are drawn from a seed, so that a run repeats itself on one machine.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = NDArray[np.float32]
EPOCHS, BATCH, RATE, MOMENTUM = 12, 32, 0.03, 0.9


def digits(seed: int = 0) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Training and test images, shape (n, 1, 8, 8), and their labels; 40 % are held out."""
    found = load_digits()
    images = (found.images[:, None] / 16).astype(np.float32)
    made: tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]] = train_test_split(
        images, found.target, test_size=0.4, random_state=seed, stratify=found.target
    )
    return made


def _patches(x: Array, stride: int) -> Array:
    """Windows of 3x3 with padding 1, shape (n, h, w, channels x 9)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    n, c, h, w = windows.shape[:4]
    return np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(n, h, w, c * 9)


def _spread(gradient: Array, shape: tuple[int, ...], stride: int) -> Array:
    """Gradient of the input from that of its windows; the reverse of `_patches`."""
    n, c, height, width = shape
    made = np.zeros((n, c, height + 2, width + 2), np.float32)
    parts = gradient.reshape(*gradient.shape[:3], c, 3, 3).transpose(4, 5, 0, 3, 1, 2)
    h, w = gradient.shape[1:3]
    for i in range(3):
        for j in range(3):
            made[:, :, i : i + stride * h : stride, j : j + stride * w : stride] += parts[i, j]
    return made[:, :, 1:-1, 1:-1]


def train(images: Array, labels: NDArray[np.int64], seed: int = 0) -> dict[str, Array]:
    """Weights `w1 b1 w2 b2 w3 b3`; convolutions as (channels x 9, filters), the dense layer as (512, 10)."""
    draw = np.random.default_rng(seed)
    sizes = {"w1": (9, 16), "w2": (144, 32), "w3": (512, 10)}
    p = {k: (draw.normal(size=s) * np.sqrt(2 / s[0])).astype(np.float32) for k, s in sizes.items()}
    p |= {f"b{k[1]}": np.zeros(s[1], np.float32) for k, s in sizes.items()}
    speed = {k: np.zeros_like(v) for k, v in p.items()}
    for _ in range(EPOCHS):
        order = draw.permutation(len(images))
        for at in range(0, len(order), BATCH):
            x, y = images[order[at : at + BATCH]], labels[order[at : at + BATCH]]
            first = _patches(x, 1)
            one = np.maximum(first @ p["w1"] + p["b1"], 0)
            second = _patches(one.transpose(0, 3, 1, 2), 2)
            two = np.maximum(second @ p["w2"] + p["b2"], 0)
            flat = two.transpose(0, 3, 1, 2).reshape(len(x), -1)
            logits = flat @ p["w3"] + p["b3"]
            chance = np.exp(logits - logits.max(1, keepdims=True))
            error = (chance / chance.sum(1, keepdims=True) - np.eye(10, dtype=np.float32)[y]) / len(x)
            back2 = (error @ p["w3"].T).reshape(len(x), 32, 4, 4).transpose(0, 2, 3, 1) * (two > 0)
            back1 = _spread(back2 @ p["w2"].T, (len(x), 16, 8, 8), 2).transpose(0, 2, 3, 1) * (one > 0)
            gradient = {
                "w3": flat.T @ error, "b3": error.sum(0),
                "w2": np.tensordot(second, back2, ([0, 1, 2], [0, 1, 2])), "b2": back2.sum((0, 1, 2)),
                "w1": np.tensordot(first, back1, ([0, 1, 2], [0, 1, 2])), "b1": back1.sum((0, 1, 2)),
            }  # fmt: skip
            for name, value in gradient.items():
                speed[name] = MOMENTUM * speed[name] - RATE * value
                p[name] += speed[name]
    return p


def as_onnx(p: dict[str, Array]) -> onnx.ModelProto:
    """The trained network with a free batch axis: input `x`, output `logits`."""
    values = {
        "w1": p["w1"].T.reshape(16, 1, 3, 3), "b1": p["b1"], "w2": p["w2"].T.reshape(32, 16, 3, 3), "b2": p["b2"],
        "w3": p["w3"], "b3": p["b3"],
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node(
            "Conv", ["r1", "w2", "b2"], ["c2"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]
        ),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Flatten", ["r2"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
