"""Networks of the transformers library made from configurations.

Nothing is downloaded: weights are random, and attention is the plain product form, which every engine knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from perfpred.zoo import NetworkSpec, register

Built = tuple[nn.Module, tuple[Tensor, ...]]

_EAGER = {"attn_implementation": "eager"}


class FirstOutput(nn.Module):
    """A network of the library, returning its first output alone; `mask` is added to the attention scores."""

    def __init__(
        self,
        network: nn.Module,
        argument: str,
        options: dict[str, Any],
        attribute: str = "",
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.argument, self.options, self.attribute = argument, options, attribute
        self.register_buffer("mask", mask)

    def forward(self, values: Tensor) -> Tensor:
        """Run the network on its one input and return one tensor."""
        masked = {} if self.mask is None else {"attention_mask": self.mask}
        outputs = self.network(**{self.argument: values}, **masked, **self.options)
        found: Tensor = getattr(outputs, self.attribute) if self.attribute else outputs[0]
        return found


def make(class_name: str, config_name: str, config: dict[str, Any]) -> nn.Module:
    """Return a network of the library with the given configuration values."""
    made = getattr(transformers, config_name)(**config, **_EAGER)
    network: nn.Module = getattr(transformers, class_name)(made)
    return network


def text(prefix: str, tokens: int, config: dict[str, Any], *, kind: str = "Model", **options: Any) -> Built:
    """Return a network that reads `tokens` token numbers."""
    network = make(f"{prefix}{kind}", f"{prefix}Config", config)
    return FirstOutput(network, "input_ids", options), (torch.ones(2, tokens, dtype=torch.int64),)


def prefill(prefix: str, tokens: int, config: dict[str, Any], *, positions: bool = False) -> Built:
    """Return a decoder that reads a prompt of `tokens` under a causal mask and keeps no cache.

    Args:
        prefix: first part of the class names in the library.
        tokens: length of the prompt.
        config: values of the configuration.
        positions: hand in position numbers, for networks that would compute them from the mask.
    """
    network = make(f"{prefix}Model", f"{prefix}Config", config)
    mask = torch.full((1, 1, tokens, tokens), -1e4).triu(1)
    inputs = (torch.ones(2, tokens, dtype=torch.int64),)
    options = {"use_cache": False} | ({"position_ids": torch.arange(tokens)[None]} if positions else {})
    return FirstOutput(network, "input_ids", options, mask=mask), inputs


def signal(
    prefix: str,
    argument: str,
    shape: tuple[int, ...],
    config: dict[str, Any],
    *,
    kind: str = "Model",
    part: str = "",
    attribute: str = "",
    **options: Any,
) -> Built:
    """Return a network that reads an image, a waveform or a spectrogram of `shape`.

    Args:
        prefix: first part of the class names in the library.
        argument: name of the input.
        shape: dimensions of the input without the batch axis.
        config: values of the configuration.
        kind: last part of the class name.
        part: submodule to export in place of the whole network.
        attribute: output to keep; the first one if empty.
        options: further arguments of the forward pass.
    """
    network = make(f"{prefix}{kind}", f"{prefix}Config", config)
    network = getattr(network, part) if part else network
    return FirstOutput(network, argument, options, attribute), (torch.zeros(2, *shape),)


def add(lineage: str, family: str, networks: dict[str, Callable[[], Built]], input_name: str) -> None:
    """Register networks of one family by name."""
    for name, build in networks.items():
        register(
            NetworkSpec(
                name=f"transformers.{name}",
                family=family,
                lineage=lineage,
                source="transformers",
                licence="Apache-2.0",
                build=build,
                input_names=(input_name,),
            )
        )
