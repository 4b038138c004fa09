"""Recurrent networks: language, time series, tagging, text recognition, speech and enhancement with LSTM or GRU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import ConcatBranches, ConvNormAct
from perfpred.zoo.own import own


class Recurrent(nn.Module):
    """Stacked LSTM or GRU over (N, L, C), batch first, from a zero state."""

    def __init__(self, kind: str, inputs: int, hidden: int, layers: int = 1, *, both: bool = False) -> None:
        super().__init__()
        cell = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.cell = cell(inputs, hidden, layers, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, inputs) to (N, L, hidden), twice as wide in both directions."""
        states: Tensor = self.cell(x)[0]
        return states


class LastStep(nn.Module):
    """Selects the last step."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, C) to (N, C)."""
        return x[:, -1]


class Transposed(nn.Module):
    """Swaps the last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, C) to (N, C, L)."""
        return x.transpose(1, 2)


class StepMean(nn.Module):
    """Averages over steps."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, C) to (N, C)."""
        return x.mean(1)


def text(
    kind: str, vocabulary: int, width: int, hidden: int, layers: int, outputs: int, *, both: bool, steps: bool
) -> nn.Module:
    """Embedding, recurrent layers, and a linear layer on every step or on the mean of the steps."""
    states = 2 * hidden if both else hidden
    tail: list[nn.Module] = [nn.Linear(states, outputs)] if steps else [StepMean(), nn.Linear(states, outputs)]
    return nn.Sequential(nn.Embedding(vocabulary, width), Recurrent(kind, width, hidden, layers, both=both), *tail)


def series(kind: str, channels: int, hidden: int, layers: int, outputs: int, *, both: bool = False) -> nn.Module:
    """Recurrent forecaster or classifier on the last step."""
    states = 2 * hidden if both else hidden
    return nn.Sequential(Recurrent(kind, channels, hidden, layers, both=both), LastStep(), nn.Linear(states, outputs))


def autoencoder(kind: str, channels: int, hidden: int) -> nn.Module:
    """Sequence autoencoder that narrows to half the width and widens again."""
    return nn.Sequential(
        Recurrent(kind, channels, hidden),
        Recurrent(kind, hidden, hidden // 2),
        Recurrent(kind, hidden // 2, hidden),
        nn.Linear(hidden, channels),
    )


class ImageSteps(nn.Module):
    """Turns a map into steps along its width."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, W, C * H)."""
        return x.flatten(1, 2).transpose(1, 2)


def text_recogniser(widths: Sequence[int], hidden: int, symbols: int) -> nn.Module:
    """CRNN: convolutions that reduce a text line of height 32 to one row, two bidirectional LSTMs."""
    a, b, c, d = widths
    body = nn.Sequential(
        ConvNormAct(1, a, 3, norm=False),
        nn.MaxPool2d(2, 2),
        ConvNormAct(a, b, 3, norm=False),
        nn.MaxPool2d(2, 2),
        ConvNormAct(b, c, 3),
        ConvNormAct(c, c, 3, norm=False),
        nn.MaxPool2d((2, 1), (2, 1)),
        ConvNormAct(c, d, 3),
        ConvNormAct(d, d, 3, norm=False),
        nn.MaxPool2d((2, 1), (2, 1)),
        nn.Conv2d(d, d, (2, 2)),
        nn.ReLU(),
        ImageSteps(),
    )
    return nn.Sequential(
        body,
        Recurrent("lstm", d, hidden, both=True),
        nn.Linear(2 * hidden, hidden),
        Recurrent("lstm", hidden, hidden, both=True),
        nn.Linear(2 * hidden, symbols),
    )


class FrequencySteps(nn.Module):
    """Turns a spectrogram map into steps along time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, F, T) to (N, T, C * F)."""
        return x.flatten(1, 2).transpose(1, 2)


def deep_speech(kind: str, bins: int, hidden: int, layers: int, symbols: int = 29) -> nn.Module:
    """DeepSpeech2: two strided 2-D convolutions over a spectrogram, bidirectional recurrent layers."""
    clipped = partial(nn.Hardtanh, 0.0, 20.0)
    rows = ((bins - 1) // 2 + 1 - 1) // 2 + 1
    return nn.Sequential(
        ConvNormAct(1, 32, (41, 11), (2, 2), act=clipped),
        ConvNormAct(32, 32, (21, 11), (2, 1), act=clipped),
        FrequencySteps(),
        Recurrent(kind, 32 * rows, hidden, layers, both=True),
        nn.Linear(2 * hidden, symbols),
        nn.LogSoftmax(-1),
    )


def speech_encoder(hidden: int, layers: int, bins: int = 80) -> nn.Module:
    """Transducer encoder: stacked LSTMs with layer normalisation between."""
    parts: list[nn.Module] = []
    for index in range(layers):
        parts += [Recurrent("lstm", bins if index == 0 else hidden, hidden), nn.LayerNorm(hidden)]
    return nn.Sequential(*parts, nn.Linear(hidden, 512))


class NoiseGains(nn.Module):
    """RNNoise style: three GRUs, each reading the features and the earlier ones; band gains and voice activity."""

    def __init__(self, features: int = 42, scale: int = 1) -> None:
        super().__init__()
        a, b, c = 24 * scale, 48 * scale, 96 * scale
        self.enter = nn.Linear(features, a)
        self.voice, self.noise = Recurrent("gru", a, a), Recurrent("gru", 2 * a + features, b)
        self.denoise = Recurrent("gru", a + b + features, c)
        self.gains, self.activity = nn.Linear(c, 22), nn.Linear(a, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (N, L, 42) to gains (N, L, 22) and voice activity (N, L, 1)."""
        entered = self.enter(x).tanh()
        voice = self.voice(entered)
        noise = self.noise(torch.cat([entered, voice, x], 2))
        gains = self.gains(self.denoise(torch.cat([voice, noise, x], 2)))
        return gains.sigmoid(), self.activity(voice).sigmoid()


def sound_events(width: int, hidden: int, events: int = 10) -> nn.Module:
    """Convolution-recurrent sound event detector over a mel spectrogram (N, 1, 64, T)."""
    blocks = [ConvNormAct(a, b, 3) for a, b in ((1, width), (width, 2 * width), (2 * width, 4 * width))]
    body = [part for block in blocks for part in (block, nn.MaxPool2d((4, 1), (4, 1)))]
    return nn.Sequential(
        *body,
        FrequencySteps(),
        Recurrent("gru", 4 * width, hidden, 2, both=True),
        nn.Linear(2 * hidden, events),
        nn.Sigmoid(),
    )


def order_book() -> nn.Module:
    """DeepLOB: convolutions over price levels, an inception block along time, an LSTM."""

    def fold(in_channels: int, width: int) -> list[nn.Module]:
        leaky = partial(nn.LeakyReLU, 0.01)
        return [
            nn.Conv2d(in_channels, 32, (1, width), (1, width)),
            leaky(),
            nn.BatchNorm2d(32),
            ConvNormAct(32, 32, (5, 1), act=leaky),
            ConvNormAct(32, 32, (5, 1), act=leaky),
        ]

    towers = ConcatBranches(
        nn.Sequential(ConvNormAct(32, 64), ConvNormAct(64, 64, (3, 1))),
        nn.Sequential(ConvNormAct(32, 64), ConvNormAct(64, 64, (5, 1))),
        nn.Sequential(nn.MaxPool2d((3, 1), 1, (1, 0)), ConvNormAct(32, 64)),
    )
    return nn.Sequential(
        *fold(1, 2),
        *fold(32, 2),
        *fold(32, 10),
        towers,
        nn.Flatten(2),
        Transposed(),
        Recurrent("lstm", 192, 64),
        LastStep(),
        nn.Linear(64, 3),
        nn.Softmax(-1),
    )


class ActivityNet(nn.Module):
    """DeepConvLSTM: 1-D convolutions over sensor channels, two LSTMs."""

    def __init__(self, sensors: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNormAct(sensors if i == 0 else width, width, 5, dims=1) for i in range(4)))
        self.cells = Recurrent("lstm", width, hidden, 2)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, sensors) to class scores (N, classes)."""
        scores: Tensor = self.head(self.cells(self.convs(x.transpose(1, 2)).transpose(1, 2))[:, -1])
        return scores


class Attended(nn.Module):
    """Encoder states attended by each step of a second recurrent layer (teacher-forced translation)."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.encoder = Recurrent("lstm", width, width // 2, layers, both=True)
        self.decoder = Recurrent("lstm", width, width, layers)
        self.mix, self.out = nn.Linear(2 * width, width), nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map token indices (N, L) and (N, M) to logits (N, M, vocabulary)."""
        memory, states = self.encoder(self.source(source)), self.decoder(self.target(target))
        weights = functional.softmax(states @ memory.transpose(1, 2), -1)
        logits: Tensor = self.out(self.mix(torch.cat([weights @ memory, states], 2)).tanh())
        return logits


def acoustic_encoder(width: int) -> nn.Module:
    """Tacotron2 encoder: embedding, three 5-wide convolutions, a bidirectional LSTM."""
    convs = [ConvNormAct(width, width, 5, dims=1) for _ in range(3)]
    return nn.Sequential(
        nn.Embedding(148, width), Transposed(), *convs, Transposed(), Recurrent("lstm", width, width // 2, both=True)
    )


_TOKENS: tuple[tuple[str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("lstm-sentiment", "recurrent-text", partial(text, "lstm", 20000, 128, 128, 1, 2, both=True, steps=False), (128,)),
    ("gru-sentiment", "recurrent-text", partial(text, "gru", 10000, 100, 100, 2, 2, both=False, steps=False), (200,)),
    ("lstm-tagger", "recurrent-text", partial(text, "lstm", 30000, 100, 200, 1, 17, both=True, steps=True), (50,)),
    ("lstm-characters", "recurrent-text", partial(text, "lstm", 96, 64, 512, 2, 96, both=False, steps=True), (64,)),
    ("lstm-words", "recurrent-text", partial(text, "lstm", 10000, 650, 650, 2, 10000, both=False, steps=True), (35,)),
    ("gru-words", "recurrent-text", partial(text, "gru", 8000, 256, 384, 1, 8000, both=False, steps=True), (48,)),
    ("tacotron2-encoder", "tacotron", partial(acoustic_encoder, 512), (96,)),
    ("tacotron2-encoder-256", "tacotron", partial(acoustic_encoder, 256), (160,)),
)
for _name, _family, _build, _shape in _TOKENS:
    own(f"recurrent.{_name}", _family, "recurrent", "common design", _build, _shape, integer_below=50)
own(
    "recurrent.translation-256",
    "recurrent-translation",
    "recurrent",
    "arXiv 1508.04025",
    partial(Attended, 8000, 256, 2),
    (32,),
    (32,),
    input_names=("source", "target"),
    integer_below=50,
)

_FLOATS: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("lstm-forecast", "recurrent-series", "common design", partial(series, "lstm", 7, 64, 2, 24), (96, 7)),
    ("lstm-forecast-256", "recurrent-series", "common design", partial(series, "lstm", 321, 256, 1, 96), (168, 321)),
    ("gru-forecast", "recurrent-series", "common design", partial(series, "gru", 1, 33, 3, 12), (64, 1)),
    ("gru-gesture", "recurrent-series", "common design", partial(series, "gru", 6, 128, 2, 12, both=True), (100, 6)),
    ("lstm-autoencoder", "recurrent-autoencoder", "common design", partial(autoencoder, "lstm", 38, 128), (60, 38)),
    ("gru-autoencoder", "recurrent-autoencoder", "common design", partial(autoencoder, "gru", 25, 70), (100, 25)),
    ("crnn@32x100", "crnn", "arXiv 1507.05717", partial(text_recogniser, (64, 128, 256, 512), 256, 37), (1, 32, 100)),
    (
        "crnn-half@32x320",
        "crnn",
        "arXiv 1507.05717",
        partial(text_recogniser, (32, 64, 128, 256), 96, 97),
        (1, 32, 320),
    ),
    ("deepspeech2-gru", "deepspeech", "arXiv 1512.02595", partial(deep_speech, "gru", 161, 400, 3), (1, 161, 200)),
    ("deepspeech2-lstm", "deepspeech", "arXiv 1512.02595", partial(deep_speech, "lstm", 81, 256, 2), (1, 81, 300)),
    ("transducer-encoder", "transducer", "arXiv 1811.06621", partial(speech_encoder, 640, 4), (100, 80)),
    ("transducer-encoder-320", "transducer", "arXiv 1811.06621", partial(speech_encoder, 320, 3), (80, 80)),
    ("rnnoise", "rnnoise", "arXiv 1709.08243", NoiseGains, (100, 42)),
    ("rnnoise-3x", "rnnoise", "arXiv 1709.08243", partial(NoiseGains, 42, 3), (100, 42)),
    ("sound-events-16", "sound-events", "arXiv 1702.06286", partial(sound_events, 16, 64), (1, 64, 240)),
    ("sound-events-32", "sound-events", "arXiv 1702.06286", partial(sound_events, 32, 96), (1, 64, 500)),
    ("deeplob", "deeplob", "arXiv 1808.03668", order_book, (1, 100, 40)),
    (
        "deepconvlstm",
        "deepconvlstm",
        "Ordonez and Roggen 2016, DeepConvLSTM",
        partial(ActivityNet, 9, 64, 128, 6),
        (128, 9),
    ),
    (
        "deepconvlstm-113",
        "deepconvlstm",
        "Ordonez and Roggen 2016, DeepConvLSTM",
        partial(ActivityNet, 113, 64, 128, 18),
        (24, 113),
    ),
)
for _name, _family, _source, _build, _shape in _FLOATS:
    own(f"recurrent.{_name}", _family, "recurrent", _source, _build, _shape)
