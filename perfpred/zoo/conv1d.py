"""One-dimensional convolutions: keyword spotting, speech, waveforms, signals, point clouds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import Activation, ConcatBranches, ConvNormAct, Residual, basic_block, depthwise, separable
from perfpred.zoo.own import own

conv1 = partial(ConvNormAct, dims=1)


def pooled(channels: int, classes: int) -> list[nn.Module]:
    """Mean over time and a linear layer."""
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(1), nn.Linear(channels, classes)]


class Causal(nn.Module):
    """Dilated convolution that sees only the past."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.past = (kernel - 1) * dilation
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, L) to (N, C', L)."""
        convolved: Tensor = self.conv(functional.pad(x, (self.past, 0)))
        return convolved


def temporal(channels: int, width: int, levels: int, kernel: int, outputs: int) -> nn.Module:
    """TCN: residual pairs of causal convolutions whose dilation doubles."""
    layers: list[nn.Module] = []
    for level in range(levels):
        entered = channels if level == 0 else width
        body = nn.Sequential(
            Causal(entered, width, kernel, 2**level), nn.ReLU(), Causal(width, width, kernel, 2**level), nn.ReLU()
        )
        layers.append(Residual(body, nn.Conv1d(entered, width, 1) if entered != width else None, nn.ReLU))
    return nn.Sequential(*layers, nn.Conv1d(width, outputs, 1))


class WaveNet(nn.Module):
    """Gated causal convolutions with skip outputs."""

    def __init__(self, width: int, skip: int, stacks: int, depth: int, levels: int = 256) -> None:
        super().__init__()
        dilations = [2**i for _ in range(stacks) for i in range(depth)]
        self.enter = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList([Causal(width, 2 * width, 2, d) for d in dilations])
        self.back = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in dilations])
        self.skips = nn.ModuleList([nn.Conv1d(width, skip, 1) for _ in dilations])
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, levels, 1))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, L) to (N, levels, L)."""
        x = self.enter(x)
        total: Tensor | None = None
        for gate, back, skip in zip(self.gates, self.back, self.skips, strict=True):
            value, share = gate(x).split(self.width, 1)
            mixed = value.tanh() * share.sigmoid()
            total = skip(mixed) if total is None else total + skip(mixed)
            x = x + back(mixed)
        scores: Tensor = self.head(total)
        return scores


def signal_resnet(channels: int, width: int, depths: Sequence[int], classes: int, kernel: int = 15) -> nn.Module:
    """1-D residual network for electrocardiograms and vibration."""
    layers: list[nn.Module] = [conv1(channels, width, kernel, 2), nn.MaxPool1d(3, 2, 1)]
    entered = width
    for index, depth in enumerate(depths):
        out = width * 2**index
        layers += [
            basic_block(entered if i == 0 else out, out, 2 if i == 0 and index else 1, dims=1) for i in range(depth)
        ]
        entered = out
    return nn.Sequential(*layers, *pooled(entered, classes))


def inception_time(channels: int, width: int, depth: int, classes: int) -> nn.Module:
    """InceptionTime: parallel kernels of 39, 19 and 9 and a pooled branch, residual every third block."""

    def block(entered: int) -> nn.Module:
        narrow = nn.Conv1d(entered, width, 1, bias=False) if entered > 1 else nn.Identity()
        reduced = width if entered > 1 else entered
        wide = ConcatBranches(*(nn.Conv1d(reduced, width, k, padding=k // 2, bias=False) for k in (39, 19, 9)))
        pool = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(entered, width, 1, bias=False))
        return nn.Sequential(ConcatBranches(nn.Sequential(narrow, wide), pool), nn.BatchNorm1d(4 * width), nn.ReLU())

    groups = [
        Residual(
            nn.Sequential(*(block(channels if g == 0 and i == 0 else 4 * width) for i in range(3))),
            conv1(channels if g == 0 else 4 * width, 4 * width, act=None),
            nn.ReLU,
        )
        for g in range(depth)
    ]
    return nn.Sequential(*groups, *pooled(4 * width, classes))


def raw_waveform(depth: int, width: int, classes: int = 35) -> nn.Module:
    """M5/M11 style: an 80-wide strided convolution on the waveform, then 3-wide ones and pooling."""
    layers: list[nn.Module] = [nn.Conv1d(1, width, 80, 4), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(4)]
    entered = width
    for index in range(3):
        out = width * 2**index
        layers += [conv1(entered if i == 0 else out, out, 3) for i in range(depth)]
        layers.append(nn.MaxPool1d(4))
        entered = out
    return nn.Sequential(*layers, *pooled(entered, classes))


def temporal_keywords(scale: float, blocks: int, classes: int = 12, coefficients: int = 40) -> nn.Module:
    """TC-ResNet: cepstral coefficients as channels, 9-wide convolutions along time."""
    widths = [round(c * scale) for c in (16, 24, 32, 48)]
    layers: list[nn.Module] = [conv1(coefficients, widths[0], 3)]
    entered = widths[0]
    for out in widths[1:]:
        for i in range(blocks):
            stride = 2 if i == 0 else 1
            body = nn.Sequential(conv1(entered, out, 9, stride), conv1(out, out, 9, act=None))
            layers.append(Residual(body, conv1(entered, out, 1, stride) if i == 0 else None, nn.ReLU))
            entered = out
    return nn.Sequential(*layers, *pooled(entered, classes))


def separable_keywords(width: int, blocks: int, classes: int = 12) -> nn.Module:
    """DS-CNN: depthwise separable 2-D convolutions over a 49x10 cepstrogram."""
    stem = nn.Sequential(nn.Conv2d(1, width, (10, 4), 2, (5, 1)), nn.BatchNorm2d(width), nn.ReLU())
    body = [separable(width, width) for _ in range(blocks)]
    return nn.Sequential(stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(width, classes))


def matchbox(blocks: int, repeats: int, width: int, classes: int = 35) -> nn.Module:
    """MatchboxNet: residual groups of separable 1-D convolutions of growing kernel."""
    layers: list[nn.Module] = [separable(64, 128, 11, 2, dims=1)]
    entered = 128
    for index in range(blocks):
        kernel = 13 + 2 * index
        parts = [separable(entered if i == 0 else width, width, kernel, dims=1) for i in range(repeats)]
        layers.append(Residual(nn.Sequential(*parts), conv1(entered, width, act=None), nn.ReLU))
        entered = width
    tail = [depthwise(width, 29, dilation=2, dims=1), conv1(width, 128), conv1(128, 128)]
    return nn.Sequential(*layers, *tail, *pooled(128, classes))


def quartz(repeats: int, width: int, bins: int = 64, symbols: int = 29) -> nn.Module:
    """QuartzNet: five residual groups of separable convolutions, kernels 33 to 75."""
    layers: list[nn.Module] = [separable(bins, width, 33, 2, dims=1)]
    entered = width
    for kernel, out in zip((33, 39, 51, 63, 75), (width, width, 2 * width, 2 * width, 2 * width), strict=True):
        parts = [separable(entered if i == 0 else out, out, kernel, dims=1) for i in range(repeats)]
        layers.append(Residual(nn.Sequential(*parts), conv1(entered, out, act=None), nn.ReLU))
        entered = out
    tail = [depthwise(entered, 87, dilation=2, dims=1), conv1(entered, 4 * width), nn.Conv1d(4 * width, symbols, 1)]
    return nn.Sequential(*layers, *tail, nn.LogSoftmax(1))


def letters(width: int, depth: int, bins: int = 80, symbols: int = 29) -> nn.Module:
    """Wav2Letter: dense 1-D convolutions with clipped activations."""
    clipped: Activation = partial(nn.Hardtanh, 0.0, 20.0)
    layers = [conv1(bins, width, 11, 2, act=clipped)]
    layers += [conv1(width, width, 11 + 2 * (i // 2), act=clipped) for i in range(depth)]
    return nn.Sequential(
        *layers,
        conv1(width, 2 * width, 29, act=clipped),
        conv1(2 * width, 2 * width, act=clipped),
        nn.Conv1d(2 * width, symbols, 1),
    )


class StatisticsPool(nn.Module):
    """Mean and standard deviation over time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, L) to (N, 2 C)."""
        mean = x.mean(2, keepdim=True)
        spread = ((x - mean).square().mean(2) + 1e-5).sqrt()
        return torch.cat([mean.squeeze(2), spread], 1)


def speaker_tdnn(width: int, bins: int = 40) -> nn.Module:
    """X-vector: dilated frame layers, statistics pooling, segment layers."""
    frames = [
        conv1(bins, width, 5),
        conv1(width, width, 3, dilation=2),
        conv1(width, width, 3, dilation=3),
        conv1(width, width),
        conv1(width, 3 * width),
    ]
    return nn.Sequential(*frames, StatisticsPool(), nn.Linear(6 * width, width), nn.ReLU(), nn.Linear(width, 192))


class SplitScales(nn.Module):
    """Res2Net unit of ECAPA-TDNN: eight channel groups in a chain of dilated convolutions."""

    def __init__(self, channels: int, dilation: int, scales: int = 8) -> None:
        super().__init__()
        self.group = channels // scales
        self.convs = nn.ModuleList([conv1(self.group, self.group, 3, dilation=dilation) for _ in range(scales - 1)])

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, L)."""
        groups = x.split(self.group, 1)
        outputs = [groups[0]]
        for conv, group in zip(self.convs, groups[1:], strict=True):
            outputs.append(conv(group if len(outputs) == 1 else group + outputs[-1]))
        return torch.cat(outputs, 1)


class ChannelGate1d(nn.Module):
    """Squeeze-excite over time."""

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool1d(1),
            nn.Conv1d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv1d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, L)."""
        return x * self.gate(x)


class SpeakerEcapa(nn.Module):
    """ECAPA-TDNN: squeeze-excited Res2Net units, all joined, attentive statistics."""

    def __init__(self, width: int, bins: int = 80) -> None:
        super().__init__()
        self.enter = conv1(bins, width, 5)
        self.units = nn.ModuleList(
            [
                Residual(
                    nn.Sequential(conv1(width, width), SplitScales(width, d), conv1(width, width), ChannelGate1d(width))
                )
                for d in (2, 3, 4)
            ]
        )
        self.join = conv1(3 * width, 1536)
        self.attend = nn.Sequential(conv1(1536, 128, act=nn.Tanh), nn.Conv1d(128, 1536, 1), nn.Softmax(2))
        self.out = nn.Sequential(nn.BatchNorm1d(3072), nn.Linear(3072, 192))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, bins, L) to embeddings (N, 192)."""
        x = self.enter(x)
        maps = []
        for stage in self.units:
            x = stage(x)
            maps.append(x)
        joined = self.join(torch.cat(maps, 1))
        weights = self.attend(joined)
        mean = (joined * weights).sum(2)
        spread = ((joined.square() * weights).sum(2) - mean.square()).clamp(min=1e-5).sqrt()
        embedded: Tensor = self.out(torch.cat([mean, spread], 1))
        return embedded


class Separator(nn.Module):
    """Conv-TasNet: learned filter bank, dilated separable blocks, masks for two speakers."""

    def __init__(self, filters: int, width: int, hidden: int, stacks: int, depth: int) -> None:
        super().__init__()
        self.filters = filters
        self.encode = nn.Conv1d(1, filters, 16, 8, bias=False)
        blocks = [
            Residual(
                nn.Sequential(
                    nn.Conv1d(width, hidden, 1),
                    nn.PReLU(),
                    nn.GroupNorm(1, hidden),
                    nn.Conv1d(hidden, hidden, 3, padding=2**i, dilation=2**i, groups=hidden),
                    nn.PReLU(),
                    nn.GroupNorm(1, hidden),
                    nn.Conv1d(hidden, width, 1),
                )
            )
            for _ in range(stacks)
            for i in range(depth)
        ]
        self.mask = nn.Sequential(
            nn.GroupNorm(1, filters),
            nn.Conv1d(filters, width, 1),
            *blocks,
            nn.PReLU(),
            nn.Conv1d(width, 2 * filters, 1),
            nn.ReLU(),
        )
        self.decode = nn.ConvTranspose1d(filters, 1, 16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, L) to (N, 2, L)."""
        encoded = self.encode(x)
        masks = self.mask(encoded).split(self.filters, 1)
        return torch.cat([self.decode(encoded * mask) for mask in masks], 1)


def vocoder(width: int, rates: Sequence[int], kernels: Sequence[int], bins: int = 80) -> nn.Module:
    """HiFi-GAN generator: transposed convolutions, each followed by dilated residual chains."""
    leaky = partial(nn.LeakyReLU, 0.1)
    layers: list[nn.Module] = [nn.Conv1d(bins, width, 7, padding=3)]
    entered = width
    for rate in rates:
        out = entered // 2
        layers += [leaky(), nn.ConvTranspose1d(entered, out, 2 * rate, rate, rate // 2 + rate % 2, rate % 2)]
        for kernel in kernels:
            for dilation in (1, 3, 5):
                layers.append(
                    Residual(
                        nn.Sequential(
                            leaky(),
                            nn.Conv1d(out, out, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation),
                            leaky(),
                            nn.Conv1d(out, out, kernel, padding=kernel // 2),
                        )
                    )
                )
        entered = out
    return nn.Sequential(*layers, leaky(), nn.Conv1d(entered, 1, 7, padding=3), nn.Tanh())


def point_cloud(width: int, classes: int = 40) -> nn.Module:
    """PointNet without transforms: shared pointwise layers, maximum over points."""
    layers = [conv1(3, width), conv1(width, width), conv1(width, 2 * width), conv1(2 * width, 16 * width)]
    return nn.Sequential(
        *layers,
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(1),
        nn.Linear(16 * width, 8 * width),
        nn.ReLU(),
        nn.Linear(8 * width, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, classes),
    )


_NETWORKS: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("tcn-64", "tcn", "arXiv 1803.01271", partial(temporal, 10, 64, 6, 3, 10), (10, 400)),
    ("tcn-150", "tcn", "arXiv 1803.01271", partial(temporal, 88, 150, 4, 5, 88), (88, 256)),
    ("wavenet-32", "wavenet", "arXiv 1609.03499", partial(WaveNet, 32, 64, 2, 8), (1, 4000)),
    ("wavenet-64", "wavenet", "arXiv 1609.03499", partial(WaveNet, 64, 128, 2, 10), (1, 2048)),
    ("ecg-resnet-32", "signal-resnet", "arXiv 1904.01949", partial(signal_resnet, 12, 32, (2, 2, 2, 2), 9), (12, 2500)),
    (
        "ecg-resnet-64",
        "signal-resnet",
        "arXiv 1904.01949",
        partial(signal_resnet, 12, 64, (2, 2, 2), 27, 17),
        (12, 4096),
    ),
    (
        "vibration-resnet",
        "signal-resnet",
        "arXiv 1904.01949",
        partial(signal_resnet, 1, 20, (1, 1, 1, 1), 4, 63),
        (1, 8192),
    ),
    ("inceptiontime", "inceptiontime", "arXiv 1909.04939", partial(inception_time, 3, 32, 2, 12), (3, 256)),
    ("inceptiontime-12", "inceptiontime", "arXiv 1909.04939", partial(inception_time, 12, 24, 2, 5), (12, 1000)),
    ("waveform-m5", "waveform", "arXiv 1610.00087", partial(raw_waveform, 1, 64), (1, 16000)),
    ("waveform-m11", "waveform", "arXiv 1610.00087", partial(raw_waveform, 3, 48), (1, 32000)),
    ("tc-resnet8", "tc-resnet", "arXiv 1904.03814", partial(temporal_keywords, 1.0, 1), (40, 98)),
    ("tc-resnet14-1.5", "tc-resnet", "arXiv 1904.03814", partial(temporal_keywords, 1.5, 2), (40, 98)),
    ("ds-cnn-s", "ds-cnn", "arXiv 1711.07128", partial(separable_keywords, 64, 4), (1, 49, 10)),
    ("ds-cnn-l", "ds-cnn", "arXiv 1711.07128", partial(separable_keywords, 276, 5), (1, 49, 10)),
    ("matchboxnet-3x1x64", "matchboxnet", "arXiv 2004.08531", partial(matchbox, 3, 1, 64), (64, 128)),
    ("matchboxnet-6x2x64", "matchboxnet", "arXiv 2004.08531", partial(matchbox, 6, 2, 64), (64, 128)),
    ("quartznet-5x3", "quartznet", "arXiv 1910.10261", partial(quartz, 3, 256), (64, 400)),
    ("quartznet-5x5-half", "quartznet", "arXiv 1910.10261", partial(quartz, 5, 128), (64, 800)),
    ("wav2letter-250", "wav2letter", "arXiv 1609.03193", partial(letters, 250, 7), (80, 300)),
    ("wav2letter-128", "wav2letter", "arXiv 1609.03193", partial(letters, 128, 11), (80, 500)),
    ("x-vector", "x-vector", "Snyder et al. 2018, X-vectors", partial(speaker_tdnn, 512), (40, 300)),
    ("ecapa-512", "ecapa", "arXiv 2005.07143", partial(SpeakerEcapa, 512), (80, 200)),
    ("ecapa-1024", "ecapa", "arXiv 2005.07143", partial(SpeakerEcapa, 1024), (80, 300)),
    ("conv-tasnet", "conv-tasnet", "arXiv 1809.07454", partial(Separator, 256, 128, 256, 2, 7), (1, 16000)),
    ("conv-tasnet-128", "conv-tasnet", "arXiv 1809.07454", partial(Separator, 128, 64, 128, 3, 6), (1, 16000)),
    ("hifi-gan-v2", "hifi-gan", "arXiv 2010.05646", partial(vocoder, 128, (8, 8, 2, 2), (3, 7, 11)), (80, 64)),
    ("hifi-gan-v3", "hifi-gan", "arXiv 2010.05646", partial(vocoder, 256, (8, 8, 4), (3, 5, 7)), (80, 48)),
    ("pointnet", "pointnet", "arXiv 1612.00593", partial(point_cloud, 64), (3, 1024)),
    ("pointnet-32", "pointnet", "arXiv 1612.00593", partial(point_cloud, 32), (3, 4096)),
)
for _name, _family, _source, _build, _shape in _NETWORKS:
    own(f"conv1d.{_name}", _family, "conv1d", _source, _build, _shape)
