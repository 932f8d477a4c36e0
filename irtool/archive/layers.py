"""The classes of modules that a saved program may hold: what each takes when it is called, and the kinds of its attributes.

A line is `classes : row of the call : row of the attributes`, as in irtool/archive/kinds.py. No attribute is a function.
"""

from __future__ import annotations

from collections.abc import Iterator

LAYERS = """
ReLU ReLU6 SELU SiLU Mish Hardsigmoid Hardswish : input=T : inplace=b min_val=n max_val=n
Sigmoid Tanh LogSigmoid Softsign Tanhshrink Identity Softmax2d Sequential : input=T :
Hardtanh : input=T : min_val=n max_val=n inplace=b
LeakyReLU : input=T : negative_slope=n inplace=b
ELU CELU : input=T : alpha=n inplace=b
GELU : input=T : approximate=|none|tanh
GLU Softmax LogSoftmax Softmin : input=T : dim=i0
Softplus : input=T : beta=n threshold=n
Softshrink Hardshrink : input=T : lambd=n
Threshold : input=T : threshold=n value=n inplace=b
RReLU : input=T : lower=n upper=n inplace=b
PReLU : input=T : num_parameters=i init=n
Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout : input=T : p=n inplace=b
Linear : input=T : in_features=i out_features=i
Bilinear : input1=T input2=T : in1_features=i in2_features=i out_features=i
Conv1d Conv2d Conv3d : input=T : in_channels=i out_channels=i kernel_size=I stride=I padding=I|same|valid dilation=I transposed=b output_padding=I groups=i padding_mode=|zeros|reflect|replicate|circular _reversed_padding_repeated_twice=I
ConvTranspose1d ConvTranspose2d ConvTranspose3d : input=T output_size=I0 : in_channels=i out_channels=i kernel_size=I stride=I padding=I|same|valid dilation=I transposed=b output_padding=I groups=i padding_mode=|zeros _reversed_padding_repeated_twice=I
BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d : input=T : num_features=i eps=n momentum=n0 affine=b track_running_stats=b
GroupNorm : input=T : num_groups=i num_channels=i eps=n affine=b
LayerNorm : input=T : normalized_shape=S eps=n elementwise_affine=b
RMSNorm : x=T : normalized_shape=S eps=n0 elementwise_affine=b
LocalResponseNorm : input=T : size=i alpha=n beta=n k=n
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d : input=T : output_size=J
AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d : input=T : output_size=J return_indices=b
AvgPool1d AvgPool2d AvgPool3d : input=T : kernel_size=I stride=I0 padding=I ceil_mode=b count_include_pad=b divisor_override=i0
MaxPool1d MaxPool2d MaxPool3d : input=T : kernel_size=I stride=I0 padding=I dilation=I return_indices=b ceil_mode=b
LPPool1d LPPool2d LPPool3d : input=T : norm_type=n kernel_size=I stride=I0 ceil_mode=b
Flatten : input=T : start_dim=i end_dim=i
Unflatten : input=T : dim=i unflattened_size=S
Fold : input=T : output_size=I kernel_size=I dilation=I padding=I stride=I
Unfold : input=T : kernel_size=I dilation=I padding=I stride=I
PixelShuffle : input=T : upscale_factor=i
PixelUnshuffle : input=T : downscale_factor=i
ChannelShuffle : input=T : groups=i
ConstantPad1d ConstantPad2d ConstantPad3d ZeroPad1d ZeroPad2d ZeroPad3d : input=T : padding=I value=n
ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d : input=T : padding=I
Upsample UpsamplingNearest2d UpsamplingBilinear2d : input=T : name=s size=I0 scale_factor=N0 mode=|nearest|linear|bilinear|bicubic|trilinear|nearest-exact align_corners=b0 recompute_scale_factor=b0
Embedding : input=T : num_embeddings=i embedding_dim=i padding_idx=i0 max_norm=n0 norm_type=n scale_grad_by_freq=b sparse=b
LSTM GRU RNN : input=T hx=TL0 : mode=|LSTM|GRU|RNN_TANH|RNN_RELU input_size=i hidden_size=i num_layers=i bias=b batch_first=b dropout=n bidirectional=b proj_size=i nonlinearity=|tanh|relu _all_weights=h _flat_weights_names=h
StochasticDepth : input=T : p=n mode=|batch|row
ChannelSelect : x=T :
"""


def layer_rows() -> Iterator[tuple[list[str], str, str]]:
    """The lines of the table: class names, the row of the call, the row of the attributes."""
    for line in filter(None, map(str.strip, LAYERS.splitlines())):
        names, call, attributes = (part.strip() for part in f"{line} ".split(" : "))
        yield names.split(), call, attributes
