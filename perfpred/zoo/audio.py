"""Audio transformers and convolution-transformer hybrids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import (
    Attention,
    Residual,
    depthwise,
    encoder_block,
    mlp,
)
from perfpred.zoo.own import own


class ConvolutionModule(nn.Module):
    """Conformer's convolution module: gated pointwise, depthwise along time, pointwise."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.body = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1),
            nn.GLU(1),
            depthwise(width, kernel, act=nn.SiLU, dims=1),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, L, C)."""
        mixed: Tensor = self.body(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return mixed


def conformer_block(width: int, heads: int, kernel: int) -> nn.Module:
    """Half feed-forward, attention, convolution, half feed-forward."""

    def feed() -> nn.Module:
        return Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, 4 * width, nn.SiLU)), scale=0.5)

    attention = Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads)))
    return nn.Sequential(feed(), attention, Residual(ConvolutionModule(width, kernel)), feed(), nn.LayerNorm(width))


class Spectrogram(nn.Module):
    """Convolutional subsampling of a spectrogram by four, blocks over steps, a head on each step or their mean."""

    def __init__(self, width: int, blocks: Sequence[nn.Module], bins: int, outputs: int, *, steps: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(width * (bins // 4), width)
        self.blocks, self.head, self.steps = nn.Sequential(*blocks), nn.Linear(width, outputs), steps

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, bins, T) to (N, T / 4, outputs) or (N, outputs)."""
        mapped = self.blocks(self.project(self.stem(x).flatten(1, 2).transpose(1, 2)))
        scores: Tensor = self.head(mapped if self.steps else mapped.mean(1))
        return scores


def conformer(width: int, depth: int, heads: int, kernel: int = 31) -> nn.Module:
    """Conformer encoder with a connectionist head."""
    return Spectrogram(width, [conformer_block(width, heads, kernel) for _ in range(depth)], 80, 128, steps=True)


def speech_transformer(width: int, depth: int, heads: int) -> nn.Module:
    """Plain transformer encoder over a subsampled spectrogram."""
    return Spectrogram(width, [encoder_block(width, heads) for _ in range(depth)], 80, 64, steps=True)


class KeywordTransformer(nn.Module):
    """KWT: every time step of a cepstrogram is a token."""

    def __init__(
        self, width: int, depth: int, heads: int, steps: int = 98, coefficients: int = 40, classes: int = 35
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(coefficients, width)
        self.position = nn.Parameter(torch.randn(1, steps, width) * 0.02)
        self.blocks = nn.Sequential(*(encoder_block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, steps, coefficients) to (N, classes)."""
        scores: Tensor = self.head(self.blocks(self.embed(x) + self.position).mean(1))
        return scores


class WaveformTransformer(nn.Module):
    """Wav2vec 2.0 style: seven strided convolutions on the waveform, grouped positional convolution, transformer."""

    def __init__(self, width: int, depth: int, heads: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (kernel, stride) in enumerate(((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))):
            layers += [nn.Conv1d(1 if index == 0 else features, features, kernel, stride), nn.GELU()]
        self.features = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.position = nn.Sequential(nn.Conv1d(width, width, 65, padding=32, groups=16), nn.GELU())
        self.blocks = nn.Sequential(*(encoder_block(width, heads) for _ in range(depth)))
        self.head = nn.Linear(width, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, L) to (N, L / 320, 32)."""
        tokens = self.project(self.features(x).transpose(1, 2))
        tokens = tokens + self.position(tokens.transpose(1, 2)).transpose(1, 2)
        scores: Tensor = self.head(self.blocks(tokens))
        return scores


_NETWORKS: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("conformer-144-8", "conformer", "arXiv 2005.08100", partial(conformer, 144, 8, 4), (1, 80, 400)),
    ("conformer-176-4", "conformer", "arXiv 2005.08100", partial(conformer, 176, 4, 4), (1, 80, 800)),
    ("conformer-256-6", "conformer", "arXiv 2005.08100", partial(conformer, 256, 6, 4, 15), (1, 80, 640)),
    (
        "transformer-192-6",
        "speech-transformer",
        "arXiv 1904.11660",
        partial(speech_transformer, 192, 6, 3),
        (1, 80, 400),
    ),
    (
        "transformer-320-8",
        "speech-transformer",
        "arXiv 1904.11660",
        partial(speech_transformer, 320, 8, 5),
        (1, 80, 600),
    ),
    ("keywords-1", "keyword-transformer", "arXiv 2104.00769", partial(KeywordTransformer, 64, 12, 1), (98, 40)),
    ("keywords-3", "keyword-transformer", "arXiv 2104.00769", partial(KeywordTransformer, 192, 12, 3), (98, 40)),
    ("wav2vec2-256-4", "wav2vec2-style", "arXiv 2006.11477", partial(WaveformTransformer, 256, 4, 4, 128), (1, 32000)),
    ("wav2vec2-384-6", "wav2vec2-style", "arXiv 2006.11477", partial(WaveformTransformer, 384, 6, 6, 256), (1, 16000)),
)
for _name, _family, _source, _build, _shape in _NETWORKS:
    own(f"audio.{_name}", _family, "audio", _source, _build, _shape)
