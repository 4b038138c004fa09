"""Text transformers: encoders, and decoders at prefill, with a small vocabulary where the embedding would dwarf them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from perfpred.zoo.configured import Built, add, prefill, text


def _bert_like(prefix: str, tokens: int, layers: int, hidden: int, heads: int, **more: Any) -> Callable[[], Built]:
    config = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": 30522,
    }
    return partial(text, prefix, tokens, config | more)


# Size of the published miniatures: layers, hidden size, heads.
_BERT = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "medium": (8, 512, 8), "base": (12, 768, 12)}
add(
    "text-encoder",
    "bert",
    {
        **{
            f"bert_{size}_{tokens}": _bert_like("Bert", tokens, *dims)
            for size, dims in _BERT.items()
            for tokens in (128,)
        },
        "bert_mini_384": _bert_like("Bert", 384, *_BERT["mini"]),
        "bert_base_384": _bert_like("Bert", 384, *_BERT["base"]),
        "bert_base_32": _bert_like("Bert", 32, *_BERT["base"]),
        "bert_large_384": _bert_like("Bert", 384, 24, 1024, 16),
        "minilm_l6_128": _bert_like("Bert", 128, 6, 384, 12),
        "minilm_l12_256": _bert_like("Bert", 256, 12, 384, 12),
        "roberta_base_128": _bert_like("Roberta", 128, 12, 768, 12, vocab_size=50265, max_position_embeddings=514),
        "electra_small_128": _bert_like("Electra", 128, 12, 256, 4, embedding_size=128),
        "camembert_base_64": _bert_like("Camembert", 64, 12, 768, 12, vocab_size=32005, max_position_embeddings=514),
    },
    "input_ids",
)
add(
    "text-encoder",
    "distilbert",
    {
        f"distilbert_{layers}_{tokens}": partial(text, "DistilBert", tokens, {"n_layers": layers})
        for layers, tokens in ((6, 128), (6, 384), (3, 64))
    },
    "input_ids",
)
add(
    "text-encoder",
    "albert",
    {
        "albert_base_128": _bert_like("Albert", 128, 12, 768, 12, embedding_size=128, vocab_size=30000),
        "albert_large_128": _bert_like("Albert", 128, 24, 1024, 16, embedding_size=128, vocab_size=30000),
    },
    "input_ids",
)
add("text-encoder", "mobilebert", {"mobilebert_128": partial(text, "MobileBert", 128, {})}, "input_ids")
add("text-encoder", "squeezebert", {"squeezebert_128": partial(text, "SqueezeBert", 128, {})}, "input_ids")
add("text-encoder", "mpnet", {"mpnet_base_128": partial(text, "MPNet", 128, {})}, "input_ids")
add("text-encoder", "convbert", {"convbert_base_128": partial(text, "ConvBert", 128, {})}, "input_ids")
add(
    "text-encoder",
    "deberta_v2",
    {
        "deberta_v3_xsmall_128": _bert_like(
            "DebertaV2", 128, 12, 384, 6, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=256
        ),
    },
    "input_ids",
)
_SPECIAL = ("pad", "bos", "eos", "cls", "sep")
_MODERN = {"vocab_size": 32000, **{f"{token}_token_id": 1 for token in _SPECIAL}}
add(
    "text-encoder",
    "modernbert",
    {
        "modernbert_base_128": partial(text, "ModernBert", 128, _MODERN),
        "modernbert_small_256": partial(
            text,
            "ModernBert",
            256,
            {
                "hidden_size": 384,
                "num_hidden_layers": 12,
                "num_attention_heads": 6,
                "intermediate_size": 576,
            }
            | _MODERN,
        ),
    },
    "input_ids",
)
_T5 = {"small": (512, 2048, 6, 8), "base": (768, 3072, 12, 12)}
add(
    "text-encoder",
    "t5",
    {
        f"t5_{size}_encoder_{tokens}": partial(
            text,
            "T5",
            tokens,
            {"d_model": width, "d_ff": inner, "num_layers": layers, "num_heads": heads},
            kind="EncoderModel",
        )
        for size, (width, inner, layers, heads) in _T5.items()
        for tokens in (128, 256)
    }
    | {
        "mt5_small_encoder_128": partial(
            text,
            "MT5",
            128,
            {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "vocab_size": 32128},
            kind="EncoderModel",
        )
    },
    "input_ids",
)
add(
    "text-encoder",
    "clip_text",
    {
        "clip_text_base_77": partial(text, "CLIPText", 77, {}),
        "clip_text_large_77": partial(
            text, "CLIPText", 77, {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        ),
    },
    "input_ids",
)


_SMALL_VOCABULARY = {"vocab_size": 32000}
add(
    "text-decoder",
    "gpt2",
    {
        f"{name}_{tokens}": partial(prefill, "GPT2", tokens, {"n_layer": layers, "n_embd": width, "n_head": heads})
        for name, layers, width, heads, tokens in (
            ("distilgpt2", 6, 768, 12, 128),
            ("gpt2", 12, 768, 12, 64),
            ("gpt2", 12, 768, 12, 256),
            ("gpt2_medium", 24, 1024, 16, 128),
            ("gpt2_mini", 4, 256, 4, 128),
        )
    },
    "input_ids",
)
add(
    "text-decoder",
    "opt",
    {
        f"opt_{size}_{tokens}": partial(
            prefill,
            "OPT",
            tokens,
            {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "ffn_dim": 4 * width}
            | {"word_embed_proj_dim": width, "vocab_size": 50272},
            positions=True,
        )
        for size, layers, width, heads, tokens in (("125m", 12, 768, 12, 128), ("mini", 6, 384, 6, 256))
    },
    "input_ids",
)


def _llama_like(
    prefix: str, tokens: int, layers: int, width: int, inner: int, heads: int, groups: int, **more: Any
) -> Callable[[], Built]:
    config = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
    }
    return partial(prefill, prefix, tokens, config | _SMALL_VOCABULARY | more)


add(
    "text-decoder",
    "llama",
    {
        "llama_15m_128": _llama_like("Llama", 128, 6, 288, 768, 6, 6),
        "llama_42m_256": _llama_like("Llama", 256, 8, 512, 1376, 8, 8),
        "llama_110m_128": _llama_like("Llama", 128, 12, 768, 2048, 12, 12),
        "smollm_135m_128": _llama_like("Llama", 128, 30, 576, 1536, 9, 3),
        "tinyllama_8l_64": _llama_like("Llama", 64, 8, 2048, 5632, 32, 4),
        "mistral_4l_128": _llama_like("Mistral", 128, 4, 1024, 3584, 16, 4, sliding_window=None),
        "qwen2_24l_64": _llama_like("Qwen2", 64, 24, 896, 4864, 14, 2),
        "qwen3_12l_128": _llama_like("Qwen3", 128, 12, 1024, 3072, 16, 8, head_dim=64),
        "gemma_6l_128": _llama_like("Gemma", 128, 6, 1024, 4096, 8, 1, head_dim=128),
        "phi_8l_128": _llama_like("Phi", 128, 8, 1024, 4096, 16, 16),
        "stablelm_8l_128": _llama_like("StableLm", 128, 8, 1024, 2816, 16, 16),
    },
    "input_ids",
)
add(
    "text-decoder",
    "gpt_neox",
    {
        "pythia_70m_128": _llama_like("GPTNeoX", 128, 6, 512, 2048, 8, 8),
        "pythia_160m_128": _llama_like("GPTNeoX", 128, 12, 768, 3072, 12, 12),
    },
    "input_ids",
)
add(
    "text-decoder",
    "gpt_neo",
    {
        "gpt_neo_125m_128": partial(
            prefill,
            "GPTNeo",
            128,
            {"num_layers": 12, "hidden_size": 768, "num_heads": 12, "attention_types": [[["global", "local"], 6]]},
        )
    },
    "input_ids",
)
