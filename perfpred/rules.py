"""The fusion rules of each runtime, as tables.

To add a rule, write one line into the table of a runtime: its name, its pattern in the words of `labels`, its source.
Chains are tried in order and the first that joins anything wins; regions then collect what is left.
"""

from __future__ import annotations

from typing import Final

from perfpred.fusion import Chain, Region, RuleSet, Siblings

_GUIDE: Final = "NVIDIA TensorRT Developer Guide 8.x, Types of Fusions"
_SEEN: Final = "TensorRT-RTX 1.7.1 build logs, SM86, fp16"
_RECORDED: Final = "recorded TensorRT 8.x engines"
_ORT: Final = "ONNX Runtime graph optimisations, onnxruntime.ai"
_ACT: Final = "relu|clip|leaky|sigmoid|tanh|elu|softplus|hardsigmoid|hardswish"

TRIVIAL: Final = RuleSet(
    name="trivial",
    rules=(Chain(name="conv-bn-activation", pattern="conv bn? relu|clip?", source="the common rule of thumb"),),
)

NONE: Final = RuleSet(name="none", rules=())

TENSORRT: Final = RuleSet(
    name="tensorrt",
    borders=True,
    rules=(
        Chain(name="pad-conv", pattern="pad conv bn? add? relu|clip?", source=_GUIDE, resize=True),
        Chain(name="conv-residual-relu", pattern="conv bn? scale* bias* add relu|clip?", source=_GUIDE),
        Chain(name="conv-activation", pattern="conv bn? scale* bias* relu|clip?", source=_GUIDE),
        Chain(name="deconv-activation", pattern="deconv bn? scale* bias* relu|clip?", source=_GUIDE),
        Chain(name="fc-activation", pattern="fc scale? bias? relu|clip?", source=_GUIDE),
        Chain(name="bn-activation", pattern="bn relu|clip?", source=_GUIDE),
        Region(name="pointwise", pattern="pointwise", source=_GUIDE),
    ),
)

TENSORRT_RTX: Final = RuleSet(
    name="tensorrt-rtx",
    borders=True,
    rules=(
        Chain(
            name="attention",
            pattern="matmul scale* bias* add|badd|sub|bsub|where* softmax matmul",
            source=_SEEN,
            resize=True,
        ),
        Chain(name="conv-epilogue", pattern="conv&dense pointwise*", source=_SEEN),
        Chain(name="grouped-conv-relu", pattern="conv bn? bias? add? relu|clip|sigmoid?", source=_SEEN),
        Chain(name="gemm-epilogue", pattern="gemm pointwise*", source=_SEEN),
        Siblings(name="sibling-gemms", pattern="fc", source=_SEEN),
        Region(name="generated-kernel", pattern="pointwise|norm|reduction|softmax|move|view", source=_SEEN),
    ),
)

ONNXRUNTIME: Final = RuleSet(
    name="onnxruntime",
    rules=(
        Chain(name="conv-bn-activation", pattern=f"conv bn? scale? bias? add? {_ACT}?", source=_ORT),
        Chain(name="fc-bias-activation", pattern=f"fc bias? {_ACT}?", source=_ORT),
    ),
    free=("nothing",),
)

ONNXRUNTIME_CUDA: Final = RuleSet(
    name="onnxruntime-cuda",
    rules=(
        Chain(name="conv-residual-relu", pattern="conv bn? scale? bias? add? relu?", source=_ORT, dtypes=("float32",)),
        Chain(name="conv-bn", pattern="conv bn? scale? bias?", source=_ORT),
        Chain(name="fc-bias", pattern="fc bias?", source=_ORT),
    ),
)

RULE_SETS: Final = {r.name: r for r in (TENSORRT, TENSORRT_RTX, ONNXRUNTIME, ONNXRUNTIME_CUDA, TRIVIAL, NONE)}
