"""The fusion rules of each runtime, as tables.

To add a rule, write one line into the table of a runtime: its name, its pattern in the words of `labels`, its source.
Chains are tried in order and the first that joins anything wins; regions then collect what is left.
"""

from __future__ import annotations

from typing import Final

from perfpred.patterns import Absorb, Chain, Region, RuleSet, Siblings

_GUIDE: Final = "NVIDIA TensorRT Developer Guide 8.x, Types of Fusions"
_SEEN: Final = "TensorRT-RTX 1.7.1 build logs, SM86, fp16"
_RECORDED: Final = "recorded TensorRT 8.x engines"
_ORT: Final = "ONNX Runtime graph optimisations, onnxruntime.ai"
_ORT_CPU: Final = "ONNX Runtime 1.31 optimised models, CPU provider"
_ORT_CUDA: Final = "nodes that ONNX Runtime 1.31 launched on the CUDA provider"
_ACT: Final = "relu|clip|leaky|sigmoid|tanh|hardsigmoid"

_ATTENTION: Final = (
    "matmul&batched scale* bias* add|badd|bias|sub|bsub|where|view* cast* softmax cast|unary|where* matmul transpose?"
)

#: Elementwise work that a product does on its result; what a reduction reads and what is computed in branches is not.
_EPILOGUE: Final = "pointwise&!hardsigmoid&!reduced&!prelu&!softplus"
_GEMM_EPILOGUE: Final = "pointwise&!heads&!normed&!deep|swap|view"
_GROUP_NORM: Final = "view instancenorm&!whole view scale bias pointwise&!add&!broadcast*"

_ORT_SHARED: Final = (
    Chain(name="quick-gelu", pattern="sigmoid mul&gate", source=_ORT),
    Chain(name="gelu", pattern="scale erf bias mul scale", source=_ORT),
    Chain(name="gelu", pattern="scale scale erf bias mul", source=_ORT),
    Chain(name="scaled-matmul", pattern="matmul scalar&scale", source=_ORT),
    Absorb(name="transposed-matmul", pattern="lastswap&!permuted", source=_ORT, into="matmul"),
    Absorb(name="scaled-matmul", pattern="scalar&scale", source=_ORT, into="matmul"),
    Chain(name="skip-layer-norm", pattern="add bias? layernorm|rmsnorm", source=_ORT),
)

#: Functions that exporters spell out in primitive operators.
_ORT_SPELLED_OUT: Final = (
    Chain(name="quick-gelu", pattern="scale&scalar sigmoid mul", source=_ORT),
    Chain(name="fast-gelu", pattern="power scale add scale tanh bias mul", source=_ORT),
    Absorb(name="fast-gelu", pattern="scale&scalar", source=_ORT, completes=True),
    Chain(name="rms-norm", pattern="power reduction bias unary scale bmul scale", source=_ORT, resize=True),
    Chain(name="rms-norm", pattern="power reduction bias unary bdiv scale", source=_ORT, resize=True),
    Chain(
        name="layer-norm",
        pattern="reduction bsub power reduction bias unary bdiv scale bias",
        source=_ORT,
        resize=True,
    ),
)

TRIVIAL: Final = RuleSet(
    name="trivial",
    rules=(Chain(name="conv-bn-activation", pattern="conv bn? relu|clip?", source="the common rule of thumb"),),
)

NONE: Final = RuleSet(name="none", rules=())

TENSORRT: Final = RuleSet(
    name="tensorrt",
    borders=True,
    rules=(
        Chain(name="pad-conv", pattern="pad conv bn? scale? bias? add? relu|clip? q?", source=_GUIDE, resize=True),
        Chain(name="conv-residual", pattern="conv bn? scale? bias? add relu|clip? q?", source=_GUIDE),
        Chain(name="conv-activation", pattern="conv bn? scale? bias? relu|clip? q?", source=_GUIDE),
        Chain(name="deconv-activation", pattern="deconv bn? scale? bias? relu|clip? q?", source=_GUIDE),
        Chain(name="attention", pattern=_ATTENTION, source=_GUIDE, resize=True),
        Chain(name="fc-epilogue", pattern="fc pointwise&!broadcast*", source=_RECORDED),
        Chain(name="scale-activation", pattern="bn relu|clip?", source=_GUIDE),
        Chain(name="softmax-topk", pattern="softmax topk", source=_GUIDE),
        Absorb(name="dequantise", pattern="dq", source=_RECORDED),
        Region(name="pointwise", pattern="pointwise|layernorm|rmsnorm", source=_GUIDE),
    ),
)

TENSORRT_RTX: Final = RuleSet(
    name="tensorrt-rtx",
    borders=True,
    copies=(("conv|deconv|pool", "reduction&!small|instancenorm&!whole"),),
    rules=(
        Chain(
            name="attention",
            pattern=_ATTENTION,
            source=_SEEN,
            resize=True,
        ),
        Chain(name="group-norm", pattern=_GROUP_NORM, source=_SEEN),
        Chain(name="conv-epilogue", pattern=f"conv relu|clip|tanh|sigmoid|{_EPILOGUE}*", source=_SEEN),
        Chain(name="gemm-epilogue", pattern=f"biased&!sibling {_GEMM_EPILOGUE}*", source=_SEEN, open=True),
        Chain(
            name="gemm-epilogue",
            pattern=f"fc&!sibling bias&!heads&!normed {_GEMM_EPILOGUE}*",
            source=_SEEN,
            open=True,
        ),
        Chain(name="gemm-activation", pattern="gemm&!sibling pointwise&!heads&!normed&!add*", source=_SEEN, open=True),
        Siblings(name="sibling-gemms", pattern="fc", source=_SEEN),
        Absorb(name="transpose-conv", pattern="layout|view", source=_SEEN, into="conv"),
        Absorb(name="transposed-gemm", pattern="swap", source=_SEEN, into="fc"),
        Region(
            name="generated-kernel",
            pattern="pointwise|norm|reduction|softmax|move|view|resize",
            source=_SEEN,
            cuts=(
                ("norm", "move|view"),
                ("instancenorm", "pointwise"),
                ("hardswish", "gpool&!small"),
                ("parts", "move|view|pointwise"),
                ("resized", "resized"),
            ),
        ),
    ),
)

ONNXRUNTIME: Final = RuleSet(
    name="onnxruntime",
    rules=(
        Chain(
            name="conv-activation",
            pattern=f"conv bn? scale? bias? add&blocked? {_ACT}|hardswish&blocked?",
            source=_ORT_CPU,
            operand="first",
        ),
        Chain(name="bn-as-conv", pattern="bn&blocked add&blocked? relu?", source=_ORT_CPU, operand="first"),
        Chain(name="fc-bias-activation", pattern=f"fc&flat bias? {_ACT}", source=_ORT),
        Chain(name="fc-bias", pattern="fc bias?", source=_ORT),
        Chain(name="reshapes", pattern="reshape reshape*", source=_ORT_CPU),
        *_ORT_SPELLED_OUT,
        *_ORT_SHARED,
        Siblings(name="slices-to-split", pattern="slice", source=_ORT_CPU, whole=True),
    ),
    free=("nothing",),
)

ONNXRUNTIME_CUDA: Final = RuleSet(
    name="onnxruntime-cuda",
    rules=(
        Chain(name="conv-bn", pattern="conv bn? scale? bias?", source=_ORT),
        Chain(name="fc-bias", pattern="fc bias?", source=_ORT),
        Chain(name="bias-softmax", pattern="badd|add|bias softmax", source=_ORT_CUDA),
        *_ORT_SPELLED_OUT,
        *_ORT_SHARED,
        Siblings(name="slices-to-split", pattern="slice", source=_ORT_CUDA, whole=True),
    ),
)

RULE_SETS: Final = {r.name: r for r in (TENSORRT, TENSORRT_RTX, ONNXRUNTIME, ONNXRUNTIME_CUDA, TRIVIAL, NONE)}
