"""The stage of single convolution layers: widths never timed, and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from perfpred.convolution import convolution_features
from perfpred.convolution_stage import ConvolutionRegressor
from perfpred.regressors import Blend, BoostedTrees, Perceptron

WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)


def layers() -> tuple[pd.DataFrame, np.ndarray]:
    """Features and log ratios of layers that run at a share of the roofline that rises with their output's width."""
    sizes = [(c, k, h, r) for c in WIDTHS for k in WIDTHS for h in (7, 14, 28, 56) for r in (1, 3)]
    c, k, h, r = np.array(sizes).T
    geometry = pd.DataFrame(
        {
            "batch": 8, "in_channels": c, "out_channels": k, "in_h": h, "in_w": h, "out_h": h, "out_w": h,
            "kernel_h": r, "kernel_w": r, "stride": 1, "groups": 1, "added_tensors": 0, "element_bytes": 2,
        }
    )  # fmt: skip
    numbers = {"peak_flops": 125e12, "vector_flops": 15e12, "sm_count": 80, "dram_bytes_per_s": 9e11, "l2_bytes": 6e6}
    return convolution_features(geometry, **numbers)[0], 1 / r - 0.3 * np.log(np.ceil(k / 32))


def test_new_pairs_of_widths_are_answered_and_survive_files(tmp_path: Path) -> None:
    X, y = layers()
    pair = X.groupby(["in_channels", "out_channels"]).ngroup().to_numpy()
    test = pair % 7 == 3
    regressor = ConvolutionRegressor(
        blend=Blend(members=(BoostedTrees(rounds=30, learning_rate=0.2), Perceptron(hidden=(16,), epochs=5)))
    )
    regressor.kriging.steps, regressor.kriging.refining, regressor.kriging.rows = 20, 5, 200
    answers = regressor.fit(X[~test], y[~test]).predict(X[test])
    assert np.abs(np.exp(answers - y[test]) - 1).mean() < 0.05
    regressor.save(tmp_path)
    np.testing.assert_allclose(ConvolutionRegressor.load(tmp_path).predict(X[test]), answers, atol=1e-6)
