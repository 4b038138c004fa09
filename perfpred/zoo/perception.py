"""Transformers for speech and images built from configurations of the transformers library."""

from __future__ import annotations

from functools import partial

from perfpred.zoo.configured import add, signal

_WHISPER = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
add(
    "audio",
    "whisper",
    {
        f"whisper_{size}_encoder": partial(
            signal,
            "Whisper",
            "input_features",
            (80, 3000),
            {"d_model": width, "encoder_layers": layers, "decoder_layers": 1, "encoder_attention_heads": heads}
            | {"encoder_ffn_dim": 4 * width, "decoder_attention_heads": heads, "decoder_ffn_dim": 64},
            part="encoder",
        )
        for size, (width, layers, heads) in _WHISPER.items()
    },
    "input_features",
)
_WAVE = {"num_hidden_layers": 12}
add(
    "audio",
    "wav2vec2",
    {
        "wav2vec2_base_1s": partial(signal, "Wav2Vec2", "input_values", (16000,), _WAVE),
        "wav2vec2_base_5s": partial(signal, "Wav2Vec2", "input_values", (80000,), _WAVE),
        "wav2vec2_6l_2s": partial(
            signal,
            "Wav2Vec2",
            "input_values",
            (32000,),
            {"num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
        ),
        "hubert_base_2s": partial(signal, "Hubert", "input_values", (32000,), _WAVE),
        "data2vec_audio_2s": partial(signal, "Data2VecAudio", "input_values", (32000,), _WAVE),
        "unispeech_sat_1s": partial(signal, "UniSpeechSat", "input_values", (16000,), {"num_hidden_layers": 6}),
        "wavlm_base_1s": partial(signal, "WavLM", "input_values", (16000,), _WAVE),
    },
    "input_values",
)
add(
    "audio",
    "sew",
    {
        "sew_tiny_2s": partial(
            signal,
            "SEW",
            "input_values",
            (32000,),
            {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
        )
    },
    "input_values",
)
add(
    "audio",
    "conformer",
    {
        "wav2vec2_conformer_2s": partial(
            signal,
            "Wav2Vec2Conformer",
            "input_values",
            (32000,),
            {"num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
        ),
    },
    "input_values",
)
add(
    "audio",
    "ast",
    {
        "ast_base_1024": partial(signal, "AST", "input_values", (1024, 128), {}),
        "ast_small_256": partial(
            signal,
            "AST",
            "input_values",
            (256, 128),
            {"max_length": 256, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        ),
    },
    "input_values",
)
_IMAGE = (3, 224, 224)
add(
    "vit",
    "clip_vision",
    {
        "clip_vision_b32": partial(signal, "CLIPVision", "pixel_values", _IMAGE, {}),
        "clip_vision_b16": partial(signal, "CLIPVision", "pixel_values", _IMAGE, {"patch_size": 16}),
        "clip_vision_l14": partial(
            signal,
            "CLIPVision",
            "pixel_values",
            _IMAGE,
            {
                "patch_size": 14,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
            },
        ),
    },
    "pixel_values",
)
add("vit", "siglip", {"siglip_vision_b16": partial(signal, "SiglipVision", "pixel_values", _IMAGE, {})}, "pixel_values")
add(
    "vit",
    "dinov2",
    {
        "dinov2_small": partial(
            signal, "Dinov2", "pixel_values", _IMAGE, {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224}
        )
    },
    "pixel_values",
)
_SEGFORMER = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
}
add(
    "segmentation",
    "segformer",
    {
        f"segformer_{size}@{side}": partial(
            signal,
            "Segformer",
            "pixel_values",
            (3, side, side),
            {"hidden_sizes": list(widths), "depths": list(depths), "decoder_hidden_size": decoder},
            kind="ForSemanticSegmentation",
        )
        for size, (widths, depths, decoder) in _SEGFORMER.items()
        for side in ((512, 256) if size == "b0" else (512,))
    },
    "pixel_values",
)
add(
    "segmentation",
    "mobilevit_deeplab",
    {
        "mobilevit_deeplab@256": partial(
            signal, "MobileViT", "pixel_values", (3, 256, 256), {"output_stride": 16}, kind="ForSemanticSegmentation"
        )
    },
    "pixel_values",
)
add(
    "segmentation",
    "glpn",
    {
        "glpn@256": partial(
            signal, "GLPN", "pixel_values", (3, 256, 256), {}, kind="ForDepthEstimation", attribute="predicted_depth"
        )
    },
    "pixel_values",
)
add(
    "set-detector",
    "yolos",
    {
        "yolos_tiny@320": partial(
            signal,
            "Yolos",
            "pixel_values",
            (3, 320, 320),
            {"image_size": [320, 320], "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
            kind="ForObjectDetection",
            attribute="pred_boxes",
        )
    },
    "pixel_values",
)
add(
    "video",
    "videomae",
    {
        "videomae_small": partial(
            signal,
            "VideoMAE",
            "pixel_values",
            (16, 3, 224, 224),
            {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        )
    },
    "pixel_values",
)
add(
    "video",
    "timesformer",
    {
        "timesformer_small": partial(
            signal,
            "Timesformer",
            "pixel_values",
            (8, 3, 224, 224),
            {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        )
    },
    "pixel_values",
)
