"""The map from network family to lineage.

A *family* holds the networks of one design (ResNet at all its depths); a *lineage* holds the families that share
their main building block, so that holding a lineage out leaves no near relative in the training data. Synthetic
networks belong to the lineage they imitate. The map was fixed before any predictor was trained on it.
"""

from __future__ import annotations

LINEAGES: dict[str, str] = {
    "vgg": "plain stacks of dense convolutions, large fully connected heads",
    "inception": "parallel branches of mixed kernels, concatenated",
    "resnet": "residual blocks of dense convolutions",
    "resnext": "residual blocks of grouped or split convolutions",
    "densenet": "blocks that concatenate all earlier outputs",
    "regnet": "designed stages of grouped bottlenecks",
    "nfnet": "normaliser-free and big-transfer pre-activation residual networks",
    "csp": "cross-stage partial and Darknet backbones",
    "aggregation": "multi-resolution or layer-aggregating backbones (DLA, HRNet, VoVNet)",
    "mobilenet": "depthwise separable and inverted residual blocks, found or designed for phones",
    "efficientnet": "compound-scaled inverted residuals with squeeze-excitation",
    "compact": "shuffled, squeezed and ghost features",
    "reparam": "re-parameterised plain convolutions",
    "convnext": "large-kernel depthwise blocks with pointwise MLPs",
    "metaformer": "transformer blocks with a token mixer other than attention",
    "mlp": "token- and channel-mixing MLPs",
    "vit": "plain vision transformers",
    "hierarchical-vit": "windowed or pyramid vision transformers",
    "hybrid-vit": "convolution-attention hybrids for mobile use",
    "yolo-anchor": "one-stage detectors with coupled anchor heads",
    "yolo-decoupled": "one-stage detectors with C2f/ELAN-like blocks and decoupled heads",
    "dense-detector": "SSD, RetinaNet, FCOS and CenterNet style detectors",
    "set-detector": "detectors with transformer decoders",
    "cascade": "small face and key-point networks run in cascades or on crops",
    "segmentation": "dense prediction with an atrous, pyramid or lightweight decoder",
    "unet": "encoder-decoder with skip connections, restoration and generation",
    "super-resolution": "image-to-image networks at full resolution",
    "text-encoder": "bidirectional text transformers",
    "text-decoder": "causal text transformers, prefill",
    "audio": "speech and audio transformers and convolution-transformer hybrids",
    "recurrent": "LSTM and GRU networks",
    "conv1d": "one-dimensional and temporal convolutions",
    "video": "three-dimensional convolutions and space-time networks",
}

# family -> lineage. Families of other builders are added where they are registered, with a lineage of the list above.
FAMILY_LINEAGE: dict[str, str] = {}


def lineage_of(family: str) -> str:
    """Return the lineage of a family named in `FAMILY_LINEAGE`.

    Raises:
        KeyError: the family is not in the map.
    """
    return FAMILY_LINEAGE[family]
