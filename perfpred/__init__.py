"""Latency of neural networks after an inference engine has optimised them, predicted before deployment."""

from __future__ import annotations

__version__ = "0.1.0"
