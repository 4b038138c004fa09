"""Which networks of timm and torchvision belong to the corpus: (lineage, family) to builder names."""

TORCHVISION: dict[tuple[str, str], str] = {
    ("vgg", "alexnet"): "alexnet",
    ("vgg", "vgg"): "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn",
    ("inception", "googlenet"): "googlenet",
    ("inception", "inception_v3"): "inception_v3",
    ("resnet", "resnet"): (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnet18@320 resnet50@128 resnet50@320 resnet34@160"
    ),
    ("resnet", "wide_resnet"): "wide_resnet50_2 wide_resnet101_2",
    ("resnext", "resnext"): "resnext50_32x4d resnext101_32x8d resnext101_64x4d",
    ("densenet", "densenet"): "densenet121 densenet161 densenet169 densenet201",
    ("mobilenet", "mnasnet"): "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    ("mobilenet", "mobilenetv2"): "mobilenet_v2 mobilenet_v2-width_mult-2.0 mobilenet_v2@160 mobilenet_v2@320",
    ("mobilenet", "mobilenetv3"): "mobilenet_v3_large mobilenet_v3_small",
    ("compact", "shufflenetv2"): "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    ("compact", "squeezenet"): "squeezenet1_0 squeezenet1_1",
    ("efficientnet", "efficientnet"): "efficientnet_b0",
    ("efficientnet", "efficientnetv2"): "efficientnet_v2_s",
    ("regnet", "regnet"): "regnet_y_400mf regnet_x_400mf regnet_y_1_6gf regnet_x_3_2gf",
    ("convnext", "convnext"): "convnext_tiny convnext_small",
    ("vit", "vit"): "vit_b_16 vit_b_32",
}

TORCHVISION_DENSE: dict[tuple[str, str], str] = {
    ("segmentation", "fcn"): "fcn_resnet50 fcn_resnet101 fcn_resnet50@256",
    ("segmentation", "deeplabv3"): (
        "deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large deeplabv3_mobilenet_v3_large@256"
    ),
    ("segmentation", "lraspp"): "lraspp_mobilenet_v3_large lraspp_mobilenet_v3_large@320",
    ("dense-detector", "ssd"): "ssd300_vgg16 ssdlite320_mobilenet_v3_large",
    ("dense-detector", "retinanet"): "retinanet_resnet50_fpn@512 retinanet_resnet50_fpn_v2@320",
    ("dense-detector", "fcos"): "fcos_resnet50_fpn@512 fcos_resnet50_fpn@320",
    ("dense-detector", "faster_rcnn_rpn"): (
        "fasterrcnn_resnet50_fpn@512 fasterrcnn_resnet50_fpn_v2@416 fasterrcnn_mobilenet_v3_large_fpn"
        " fasterrcnn_mobilenet_v3_large_320_fpn@320"
    ),
}

TORCHVISION_VIDEO: dict[tuple[str, str], str] = {
    ("video", "resnet3d"): "r3d_18 mc3_18 r2plus1d_18",
    ("video", "s3d"): "s3d",
}

TIMM: dict[tuple[str, str], str] = {
    # Plain, branched and residual convolution networks.
    ("inception", "inception_v4"): "inception_v4",
    ("inception", "inception_resnet_v2"): "inception_resnet_v2",
    ("inception", "xception"): "legacy_xception xception41 xception65 xception41p",
    ("inception", "nasnet"): "nasnetalarge@224 pnasnet5large@224",
    ("resnet", "resnet"): (
        "resnet10t resnet14t resnet26 resnet26d resnet18d resnet34d resnet50c resnet50d resnet50d@320 resnet101d"
        " resnet101d@224 resnet152d resnet152d@224 resnet50s resnet26t resnet32ts resnet33ts resnet50_gn resnet51q"
        " resnet61q resnetrs50 resnetrs101 resnetaa50 resnetblur18 resnetblur50 resnet50_clip tresnet_m"
    ),
    ("resnet", "seresnet"): (
        "seresnet18 seresnet34 seresnet50 seresnet101 seresnet33ts legacy_seresnet18 legacy_seresnet50 ecaresnet26t"
        " ecaresnet50d ecaresnetlight eca_resnet33ts gcresnet33ts gcresnet50t skresnet18 skresnet34 skresnet50"
    ),
    ("resnet", "selecsls"): "selecsls42b selecsls60 selecsls84",
    ("resnext", "resnext"): (
        "resnext50d_32x4d resnext101_32x4d resnext101_32x16d resnext101_32x32d resnext26ts seresnext26d_32x4d"
        " seresnext50_32x4d seresnext101_32x4d eca_resnext26ts gcresnext26ts gcresnext50ts skresnext50_32x4d senet154"
        " legacy_seresnext26_32x4d"
    ),
    ("resnext", "resnest"): "resnest14d resnest26d resnest50d resnest50d_1s4x24d resnest101e",
    ("resnext", "res2net"): (
        "res2net50_14w_8s res2net50_26w_4s res2net50_26w_6s res2net50_26w_8s res2net50_48w_2s res2net50d res2net101d"
        " res2net101_26w_4s res2next50"
    ),
    ("resnext", "dpn"): "dpn48b dpn68 dpn68b dpn92 dpn98 dpn107 dpn131",
    ("densenet", "densenet"): "densenetblur121d densenet264d",
    ("densenet", "rdnet"): "rdnet_tiny rdnet_small",
    ("regnet", "regnet"): (
        "regnetx_002 regnetx_004 regnetx_006 regnetx_008 regnetx_016 regnetx_032 regnetx_040 regnetx_064 regnetx_080"
        " regnetx_120 regnetx_160 regnety_002 regnety_004 regnety_006 regnety_008 regnety_016 regnety_032 regnety_040"
        " regnety_064 regnety_080 regnety_120 regnety_160 regnetv_040"
    ),
    ("regnet", "regnetz"): "regnetz_005 regnetz_040 regnetz_b16 regnetz_c16 regnetz_d8",
    ("nfnet", "nfnet"): (
        "dm_nfnet_f0 dm_nfnet_f1 nfnet_l0 eca_nfnet_l0 eca_nfnet_l1 nf_regnet_b0 nf_regnet_b1 nf_resnet26 nf_resnet50"
        " nf_ecaresnet26"
    ),
    ("nfnet", "resnetv2"): "resnetv2_18 resnetv2_50 resnetv2_50d_gn resnetv2_101 resnetv2_50x1_bit resnetv2_101x1_bit",
    ("csp", "darknet"): "darknet17 darknet21 darknet53 darknetaa53 sedarknet21",
    ("csp", "cspnet"): (
        "cspdarknet53 cspresnet50 cspresnet50d cspresnet50w cspresnext50 cs3darknet_focus_s cs3darknet_focus_m"
        " cs3darknet_s cs3darknet_m cs3darknet_l cs3darknet_x cs3sedarknet_l cs3edgenet_x"
    ),
    ("csp", "cspnext"): "cspnext_tiny cspnext_s cspnext_m cspnext_l",
    ("aggregation", "dla"): (
        "dla34 dla46_c dla46x_c dla60 dla60x dla60x_c dla60_res2net dla102 dla102x dla102x2 dla169"
    ),
    ("aggregation", "hrnet"): (
        "hrnet_w18_small hrnet_w18_small_v2 hrnet_w18 hrnet_w30 hrnet_w32 hrnet_w40 hrnet_w44 hrnet_w48 hrnet_w64"
    ),
    ("aggregation", "vovnet"): (
        "vovnet39a vovnet57a ese_vovnet19b_dw ese_vovnet19b_slim ese_vovnet39b ese_vovnet57b eca_vovnet39b"
    ),
    ("aggregation", "hgnet"): "hgnet_tiny hgnet_small hgnetv2_b0 hgnetv2_b1 hgnetv2_b2 hgnetv2_b3 hgnetv2_b4",
    # Networks for phones.
    ("mobilenet", "mobilenetv1"): "mobilenetv1_100 mobilenetv1_125",
    ("mobilenet", "mobilenetv2"): "mobilenetv2_035 mobilenetv2_050 mobilenetv2_075 mobilenetv2_110d mobilenetv2_140",
    ("mobilenet", "mobilenetv3"): (
        "mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_large_075 mobilenetv3_large_150d mobilenetv3_rw"
        " tf_mobilenetv3_small_minimal_100 tf_mobilenetv3_large_minimal_100"
    ),
    ("mobilenet", "mobilenetv4"): (
        "mobilenetv4_conv_small_035 mobilenetv4_conv_small_050 mobilenetv4_conv_small mobilenetv4_conv_medium"
        " mobilenetv4_conv_large mobilenetv4_conv_aa_medium mobilenetv4_hybrid_medium mobilenetv4_hybrid_large"
    ),
    ("mobilenet", "mobilenetv5"): "mobilenetv5_base@256",
    ("mobilenet", "mnasnet"): "mnasnet_small semnasnet_050 semnasnet_075 semnasnet_100 semnasnet_140",
    ("mobilenet", "fbnet"): "fbnetc_100 spnasnet_100 fbnetv3_b fbnetv3_d fbnetv3_g",
    ("mobilenet", "hardcorenas"): "hardcorenas_a hardcorenas_c hardcorenas_f",
    ("mobilenet", "lcnet"): "lcnet_035 lcnet_050 lcnet_075 lcnet_100 lcnet_150 lcnetv2_base lcnetv2_large",
    ("mobilenet", "rexnet"): "rexnet_100 rexnet_130 rexnet_150 rexnet_200 rexnet_300 rexnetr_100 rexnetr_200",
    ("efficientnet", "efficientnet"): (
        "efficientnet_b0 efficientnet_b1 efficientnet_b1@240 efficientnet_b2 efficientnet_b2@260 efficientnet_b3 efficientnet_b3@300"
        " efficientnet_b4 efficientnet_b4@380 efficientnet_b5 efficientnet_b5@456 efficientnet_b6 efficientnet_b7"
        " efficientnet_b0_gn efficientnet_b0_g8_gn efficientnet_blur_b0 efficientnet_cc_b0_4e tf_efficientnet_b0"
        " efficientnet_b1_pruned efficientnet_b3_pruned"
    ),
    ("efficientnet", "efficientnet_lite"): (
        "efficientnet_lite0 efficientnet_lite1 efficientnet_lite2 efficientnet_lite3 efficientnet_lite4"
    ),
    ("efficientnet", "efficientnet_edge"): "efficientnet_es efficientnet_em efficientnet_el efficientnet_es_pruned",
    ("efficientnet", "efficientnetv2"): (
        "efficientnetv2_rw_t efficientnetv2_rw_s efficientnetv2_m gc_efficientnetv2_rw_t tf_efficientnetv2_b0"
        " tf_efficientnetv2_b1 tf_efficientnetv2_b2 tf_efficientnetv2_b3"
    ),
    ("efficientnet", "mixnet"): "mixnet_s mixnet_m mixnet_l mixnet_xl",
    ("efficientnet", "tinynet"): "tinynet_a tinynet_b tinynet_c tinynet_d tinynet_e",
    ("compact", "ghostnet"): (
        "ghostnet_050 ghostnet_100 ghostnet_130 ghostnetv2_100 ghostnetv2_130 ghostnetv2_160 ghostnetv3_100"
    ),
    ("compact", "fasternet"): "fasternet_t0 fasternet_t1 fasternet_t2 fasternet_s fasternet_m",
    ("compact", "starnet"): "starnet_s1 starnet_s2 starnet_s3 starnet_s4 starnet_s050 starnet_s100",
    ("reparam", "repvgg"): "repvgg_a0 repvgg_a1 repvgg_a2 repvgg_b0 repvgg_b1 repvgg_b1g4 repvgg_b2g4 repvgg_d2se",
    ("reparam", "mobileone"): "mobileone_s0 mobileone_s1 mobileone_s2 mobileone_s3 mobileone_s4",
    ("reparam", "repghost"): "repghostnet_050 repghostnet_080 repghostnet_100 repghostnet_130 repghostnet_200",
    ("reparam", "repvit"): "repvit_m0_9 repvit_m1 repvit_m1_1 repvit_m1_5 repvit_m2 repvit_m2_3",
    ("reparam", "gernet"): "gernet_s gernet_m gernet_l",
    # Large kernels and token mixers other than attention.
    ("convnext", "convnext"): (
        "convnext_atto convnext_femto convnext_pico convnext_nano convnext_tiny convnext_tiny_hnf convnext_small"
        " convnext_base convnext_atto_ols convnext_zepto_rms convnext_nano_ols"
    ),
    ("convnext", "convnextv2"): (
        "convnextv2_atto convnextv2_femto convnextv2_pico convnextv2_nano convnextv2_tiny convnextv2_base"
    ),
    ("convnext", "convmixer"): "convmixer_768_32 convmixer_1024_20_ks9_p14",
    ("convnext", "inception_next"): "inception_next_atto inception_next_tiny inception_next_small inception_next_base",
    ("convnext", "mambaout"): "mambaout_femto mambaout_kobe mambaout_tiny mambaout_small",
    ("metaformer", "poolformer"): "poolformer_s12 poolformer_s24 poolformer_s36 poolformer_m36 poolformerv2_s12",
    ("metaformer", "metaformer"): "caformer_s18 caformer_s36 convformer_s18 convformer_s36 caformer_m36",
    ("metaformer", "focalnet"): "focalnet_tiny_srf focalnet_tiny_lrf focalnet_small_srf",
    ("metaformer", "sequencer"): "sequencer2d_s",
    ("mlp", "mixer"): "mixer_s32_224 mixer_s16_224 mixer_b32_224 mixer_b16_224 mixer_l16_224",
    ("mlp", "gmixer"): "gmixer_12_224 gmixer_24_224",
    ("mlp", "gmlp"): "gmlp_ti16_224 gmlp_s16_224 gmlp_b16_224",
    ("mlp", "resmlp"): "resmlp_12_224 resmlp_24_224 resmlp_36_224",
    # Transformers.
    ("vit", "vit"): (
        "vit_tiny_patch16_224 vit_small_patch32_224 vit_small_patch16_224 vit_base_patch32_224 vit_base_patch16_224"
        " vit_base_patch32_384 vit_base_patch16_384 vit_large_patch32_384 vit_large_patch16_224 vit_large_patch16_384"
        " vit_tiny_patch16_384 vit_small_patch16_384 vit_medium_patch16_gap_240 vit_relpos_small_patch16_224"
        " vit_relpos_medium_patch16_224 vit_srelpos_small_patch16_224 vit_little_patch16_reg4_gap_256"
        " vit_pwee_patch16_reg1_gap_256 vit_dwee_patch16_reg1_gap_256 flexivit_small vit_wee_patch16_reg1_gap_256"
        " vit_small_patch14_dinov2@224 vit_small_patch16_dinov3 vit_base_patch16_siglip_224 vit_base_patch32_clip_224"
        " vit_base_patch16_rope_224"
    ),
    ("vit", "deit"): (
        "deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384"
        " deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224"
        " deit_base_distilled_patch16_384 deit3_small_patch16_224 deit3_base_patch16_224 deit3_medium_patch16_224"
    ),
    ("vit", "cait"): "cait_xxs24_224 cait_xxs36_224 cait_s24_224",
    ("vit", "beit"): "beit_base_patch16_224 beitv2_base_patch16_224",
    ("vit", "eva"): "eva02_tiny_patch14_224 eva02_small_patch14_224 eva02_base_patch14_224",
    ("vit", "xcit"): "xcit_nano_12_p16_224 xcit_tiny_12_p16_224 xcit_small_12_p16_224 xcit_tiny_24_p16_224",
    ("vit", "crossvit"): "crossvit_tiny_240 crossvit_9_240 crossvit_small_240 crossvit_15_240",
    ("vit", "tnt"): "tnt_s_patch16_224",
    ("vit", "convit"): "convit_tiny convit_small",
    ("vit", "samvit"): "samvit_base_patch16_224",
    ("hierarchical-vit", "swin"): (
        "swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 swin_base_patch4_window7_224"
        " swin_base_patch4_window12_384 swin_large_patch4_window7_224 swin_large_patch4_window12_384 swin_s3_tiny_224"
    ),
    ("hierarchical-vit", "swinv2"): "swinv2_tiny_window8_256 swinv2_small_window8_256 swinv2_cr_tiny_ns_224",
    ("hierarchical-vit", "pvt_v2"): "pvt_v2_b0 pvt_v2_b1 pvt_v2_b2 pvt_v2_b3 pvt_v2_b4 pvt_v2_b5",
    ("hierarchical-vit", "twins"): (
        "twins_pcpvt_small twins_pcpvt_base twins_pcpvt_large twins_svt_small twins_svt_base twins_svt_large"
    ),
    ("hierarchical-vit", "pit"): "pit_ti_224 pit_xs_224 pit_s_224 pit_b_224",
    ("hierarchical-vit", "davit"): "davit_tiny davit_small davit_base",
    ("hierarchical-vit", "hiera"): "hiera_tiny_224",
    ("hierarchical-vit", "nest"): "nest_tiny nest_small",
    ("hierarchical-vit", "coat"): "coat_lite_tiny coat_lite_mini coat_lite_small coat_tiny",
    ("hierarchical-vit", "gcvit"): "gcvit_xxtiny gcvit_xtiny",
    ("hierarchical-vit", "maxvit"): "maxvit_nano_rw_256 maxvit_tiny_tf_224 maxxvit_rmlp_nano_rw_256",
    (
        "hierarchical-vit",
        "coatnet",
    ): "coatnet_nano_rw_224 coatnet_0_rw_224 coatnet_rmlp_nano_rw_224 coatnet_bn_0_rw_224",
    ("hybrid-vit", "mobilevit"): (
        "mobilevit_xxs mobilevit_xs mobilevit_s mobilevitv2_050 mobilevitv2_075 mobilevitv2_100 mobilevitv2_150"
    ),
    ("hybrid-vit", "efficientvit"): (
        "efficientvit_b0 efficientvit_b1 efficientvit_b1@256 efficientvit_b1@288 efficientvit_b2 efficientvit_b2@256"
        " efficientvit_b2@288 efficientvit_b3 efficientvit_b3@256 efficientvit_b3@288 efficientvit_l1 efficientvit_l2"
    ),
    ("hybrid-vit", "efficientvit_msra"): (
        "efficientvit_m0 efficientvit_m1 efficientvit_m2 efficientvit_m3 efficientvit_m4 efficientvit_m5"
    ),
    ("hybrid-vit", "efficientformer"): (
        "efficientformer_l1 efficientformer_l3 efficientformerv2_s0 efficientformerv2_s1 efficientformerv2_s2"
        " efficientformerv2_l"
    ),
    ("hybrid-vit", "edgenext"): "edgenext_xx_small edgenext_x_small edgenext_small edgenext_base",
    ("hybrid-vit", "nextvit"): "nextvit_small nextvit_base nextvit_large",
    ("hybrid-vit", "levit"): "levit_128s levit_128 levit_192 levit_256 levit_384 levit_conv_128 levit_conv_256",
    ("hybrid-vit", "tiny_vit"): "tiny_vit_5m_224 tiny_vit_11m_224 tiny_vit_21m_224",
    ("hybrid-vit", "fastvit"): "fastvit_t8 fastvit_t12 fastvit_s12 fastvit_sa12 fastvit_sa24 fastvit_sa36",
    ("hybrid-vit", "swiftformer"): "swiftformer_xs swiftformer_s swiftformer_l1 swiftformer_l3",
    ("hybrid-vit", "visformer"): "visformer_tiny visformer_small",
    ("hybrid-vit", "shvit"): "shvit_s1 shvit_s2 shvit_s3 shvit_s4",
    ("hybrid-vit", "botnet"): "botnet26t_256 eca_botnext26ts_256 lambda_resnet26t halonet26t bat_resnext26ts",
    ("hybrid-vit", "vit_hybrid"): "vit_tiny_r_s16_p8_224 vit_small_r26_s32_224 vit_base_mci_224",
    ("hybrid-vit", "lowformer"): "lowformer_b0 lowformer_b1 lowformer_b2",
    ("hybrid-vit", "iformer"): "iformer_t iformer_s iformer_m",
    ("hybrid-vit", "efficientvim"): "efficientvim_m1 efficientvim_m2",
    ("hybrid-vit", "cpubone"): "cpubone_nano cpubone_b0_bfrobust cpubone_b1_dwnorm",
    ("hybrid-vit", "vitamin"): "vitamin_small_224",
}
