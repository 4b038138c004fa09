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
    "probe": "single layers at drawn sizes: for training, never tested",
}

# The families of each lineage. A family changes its lineage only with a note in the changelog and re-scored history.
FAMILIES: dict[str, str] = {
    "vgg": "alexnet synthetic-plain vgg",
    "inception": (
        "googlenet inception-v2 inception_resnet_v2 inception_v3 inception_v4 nasnet synthetic-branches xception"
    ),
    "resnet": "resnet selecsls senet seresnet synthetic-residual wide_resnet",
    "resnext": "dpn res2net resnest resnext synthetic-grouped",
    "densenet": "densenet rdnet synthetic-dense",
    "regnet": "regnet regnetz",
    "nfnet": "nfnet resnetv2",
    "csp": "cspnet cspnext darknet",
    "aggregation": "dla hgnet hrnet hrnet-dense vovnet",
    "mobilenet": (
        "coordinate-bins fbnet hardcorenas lcnet mnasnet mobilenet-v1 mobilenetv1 mobilenetv2 mobilenetv3"
        " mobilenetv4 mobilenetv5 openpose-light rexnet synthetic-mbconv"
    ),
    "efficientnet": "efficientnet efficientnet_edge efficientnet_lite efficientnetv2 mixnet tinynet",
    "compact": "fasternet ghostnet shufflenetv2 squeezenet starnet",
    "reparam": "gernet mobileone repghost repvgg repvit",
    "convnext": "convmixer convnext convnextv2 inception_next mambaout",
    "metaformer": "focalnet metaformer poolformer sequencer",
    "mlp": "gmixer gmlp mixer resmlp",
    "vit": "beit cait clip_vision convit crossvit deit dinov2 eva samvit siglip tnt vit xcit",
    "hierarchical-vit": "coat coatnet davit gcvit hiera maxvit nest pit pvt_v2 swin swinv2 twins",
    "hybrid-vit": (
        "botnet cpubone edgenext efficientformer efficientvim efficientvit efficientvit_msra fastvit iformer"
        " levit lowformer mobilevit nextvit shvit swiftformer synthetic-mixed tiny_vit visformer vit_hybrid"
        " vitamin"
    ),
    "yolo-anchor": "yolov2 yolov3 yolov4 yolov5 yolov7",
    "yolo-decoupled": "ppyoloe yolo11 yolonas yolov10 yolov12 yolov6 yolov8 yolov9 yolox",
    "dense-detector": (
        "centernet efficientdet faster_rcnn_rpn fcos fomo nanodet picodet pointpillars retinanet ssd"
        " ssd-inception ssd-mobilenet ssd-resnet yolof"
    ),
    "set-detector": "detr rtdetr yolos",
    "cascade": "arcface blazeface face-classifier facenet mobilefacenet mtcnn pfld retinaface ultraface",
    "segmentation": (
        "atrous bisenet ddrnet deeplab deeplabv3 enet erfnet fast-scnn fcn fpn-segmentation glpn linknet liteseg"
        " lraspp mobilevit_deeplab segformer stdc ufld"
    ),
    "unet": (
        "dcgan drunet fastdepth hourglass light-pose monodepth nafnet simple-pose synthetic-decoder translator unet"
    ),
    "super-resolution": (
        "abpn dncnn edsr espcn esrgan fsrcnn imdn ircnn rfdn srcnn srresnet super-resolution swinir vdsr zero-dce"
    ),
    "text-encoder": "albert bert clip_text convbert deberta_v2 distilbert mobilebert modernbert mpnet squeezebert t5",
    "text-decoder": "gpt2 gpt_neo gpt_neox llama opt",
    "audio": "ast conformer keyword-transformer sew speech-transformer wav2vec2 wav2vec2-style whisper",
    "recurrent": (
        "crnn deepconvlstm deeplob deepspeech recurrent-autoencoder recurrent-series recurrent-text"
        " recurrent-translation rnnoise sound-events tacotron transducer"
    ),
    "conv1d": (
        "conv-tasnet ds-cnn ecapa hifi-gan inceptiontime matchboxnet pointnet quartznet signal-resnet tc-resnet"
        " tcn wav2letter waveform wavenet x-vector"
    ),
    "video": "c3d r3d resnet3d s3d slowfast stgcn timesformer tsm unet3d videomae voxnet x3d",
    "probe": (
        "probe-attention probe-conv1d probe-conv2d probe-conv3d probe-deconv2d probe-filter1d probe-gemm probe-grouped2d"
        " probe-linear probe-movement probe-norm probe-outlying probe-pointwise probe-recurrent probe-reduction probe-resize"
    ),
}

FAMILY_LINEAGE: dict[str, str] = {
    family: lineage for lineage, families in FAMILIES.items() for family in families.split()
}
