"""Synthetic networks drawn by seeded generators from documented search spaces.

They cover what named networks miss: odd widths, kernels from 1 to 11, strides to 4, dilation, any number of groups,
odd and oblong resolutions, unusual activations and normalisations. A network is fixed by its space and its index: the
generator is seeded with both and with the number of the attempt; draws outside the budget of work are passed over.

| space     | lineage    | blocks |
|-----------|------------|--------|
| plain     | vgg        | chains of (asymmetric, dilated, grouped, transposed) convolutions and pooling |
| residual  | resnet     | basic, bottleneck and pre-activated residual blocks, three kinds of shortcut |
| grouped   | resnext    | grouped bottlenecks, channel shuffles, split branches |
| mbconv    | mobilenet  | inverted residuals, fused ones, separable blocks, squeeze-excite |
| dense     | densenet   | concatenating blocks with and without bottlenecks, one-shot aggregation |
| branches  | inception  | two to five parallel branches of mixed kernels and pooling |
| mixed     | hybrid-vit | convolution stages, then global, windowed or pooled attention |
| decoder   | unet       | encoder-decoders with added or concatenated skips |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perfpred.zoo import NetworkSpec, register
from perfpred.zoo.draw import Draw
from perfpred.zoo.own import LICENCE
from perfpred.zoo.spaces import branches, decoder, dense, grouped, mbconv, mixed, plain, residual

Space = Callable[[Draw], tuple[nn.Module, tuple[int, ...]]]

LEAST_FLOPS, MOST_FLOPS, MOST_PARAMETERS = 2e6, 2e10, 4e7
# space -> its generator, the lineage it imitates, how many networks are drawn
SPACES: dict[str, tuple[Space, str, int]] = {
    "plain": (plain, "vgg", 40),
    "residual": (residual, "resnet", 40),
    "grouped": (grouped, "resnext", 28),
    "mbconv": (mbconv, "mobilenet", 40),
    "dense": (dense, "densenet", 28),
    "branches": (branches, "inception", 20),
    "mixed": (mixed, "hybrid-vit", 40),
    "decoder": (decoder, "unet", 24),
}


def work(space: Space, seed: str) -> tuple[int, int]:
    """Return FLOPs at batch 1 and parameters of a draw, without allocating anything."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network, shape = space(Draw(seed))
        network.eval()(torch.empty(1, *shape))
    return counter.get_total_flops(), sum(parameter.numel() for parameter in network.parameters())


def synthetic(space: str, index: int) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Build network `index` of a space: the first draw within the budget."""
    generator = SPACES[space][0]
    for attempt in count():
        seed = f"{space}-{index}-{attempt}"
        flops, parameters = work(generator, seed)
        if LEAST_FLOPS <= flops <= MOST_FLOPS and parameters <= MOST_PARAMETERS:
            network, shape = generator(Draw(seed))
            return network.eval(), (torch.randn(2, *shape),)
    raise AssertionError("count() never ends")


for _space, (_, _lineage, _count) in SPACES.items():
    for _index in range(_count):
        register(
            NetworkSpec(
                name=f"synthetic.{_space}-{_index:03d}",
                family=f"synthetic-{_space}",
                lineage=_lineage,
                source="own search space",
                licence=LICENCE,
                build=partial(synthetic, _space, _index),
            )
        )
