"""The operators that a saved program may call, each with the kinds of its arguments. What is not here is not called.

The rows were taken from the graphs of torchvision's and timm's models, of the test nets, and of the operators that irtool
prunes through, and then read one by one: each computes tensors or plain values from tensors and plain values, checks its
indices and sizes itself, and does nothing else. docs/adr/0014-a-closed-world-for-archives.md says what was left out, and why.

A line is `places : names : row`. Places: `t` torch, `F` torch.nn.functional, `.` a tensor's method, `la` torch.linalg,
`fft` torch.fft, `op` operator, `math`, `py` builtins, `col` collections, `tv` torchvision.ops. A name need not be in each of them.
"""

from __future__ import annotations

UNARY = """
t F . : relu relu_ relu6 selu selu_ mish sigmoid sigmoid_ tanh tanh_ hardsigmoid hardswish silu : input=T inplace=b
t F . : softsign logsigmoid tanhshrink exp exp_ log log2 log10 log1p expm1 sqrt sqrt_ rsqrt square abs abs_ neg neg_ negative : input=T
t . : reciprocal sin cos tan erf sign floor floor_ ceil ceil_ trunc frac sinh cosh asin acos atan isnan isinf isfinite : input=T
t . : logical_not bitwise_not positive real imag angle conj adjoint ravel : input=T
t . : asinh acosh atanh exp2 erfc erfinv sinc digamma lgamma i0 sgn signbit deg2rad rad2deg isposinf isneginf : input=T
t . : logit : input=T eps=n0
t . : round round_ : input=T decimals=i
t F . : leaky_relu leaky_relu_ : input=T negative_slope=n inplace=b
t F . : elu elu_ celu celu_ : input=T alpha=n inplace=b
t F : rrelu : input=T lower=n upper=n training=b inplace=b
F : gelu : input=T approximate=|none|tanh
F : glu : input=T dim=i
F : softplus : input=T beta=n threshold=n
t F : softshrink hardshrink : input=T lambd=n
t F : threshold : input=T threshold=n value=n inplace=b
F : hardtanh hardtanh_ : input=T min_val=n max_val=n inplace=b
t F . : prelu : input=T weight=T
F : softmax log_softmax softmin : input=T dim=i0 _stacklevel=i dtype=d0
t . : softmax log_softmax : input=T dim=i dtype=d0
F : normalize : input=T p=n dim=I eps=n out=0
F : dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout : input=T p=n training=b inplace=b
t : dropout dropout_ feature_dropout alpha_dropout : input=T p=n train=b
t . : clamp clip clamp_ clip_ : input=T min=nT0 max=nT0
t . : clamp_min clamp_min_ : input=T min=nT
t . : clamp_max clamp_max_ : input=T max=nT
t . : nan_to_num : input=T nan=n0 posinf=n0 neginf=n0
"""
BINARY = """
t . : add sub subtract rsub add_ sub_ : input=nT other=nT alpha=n
t . : mul multiply mul_ true_divide floor_divide remainder fmod : input=nT other=nT
t . : div divide div_ : input=nT other=nT rounding_mode=0|floor|trunc
t . : eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor : input=nT other=nT
t . : maximum minimum fmax fmin atan2 hypot copysign : input=nT other=nT
t . : logaddexp logaddexp2 xlogy ldexp : input=nT other=nT
t . : pow pow_ float_power : input=nT exponent=nT
t : where : condition=T input=nT other=nT
. : where : input=T condition=T other=nT
t . : masked_fill masked_fill_ : input=T mask=T value=nT
t . : addcmul addcdiv : input=T tensor1=T tensor2=T value=n
t . : lerp lerp_ : input=T end=T weight=nT
. : copy_ : input=T src=T non_blocking=b
. : fill_ : input=T value=nT
. : zero_ : input=T
op : add sub mul truediv iadd isub imul itruediv : a=nTS b=nTS
op : floordiv mod pow ipow and_ or_ xor : a=nT b=nT
op : eq ne : a=nTS0dvmKs b=nTS0dvmKs
op : lt le gt ge : a=nT b=nT
op : is_ is_not : a=V b=V
op : neg pos abs invert : a=nT
op : not_ : a=nS0
op : matmul : a=T b=T
op : getitem : a=TP b=xc
op : setitem : a=T b=x c=nT
t : _assert : condition=bT message=s
math : ceil floor sqrt : x=n
py : len : obj=STL
py : int float : x=nT
py : round : number=n ndigits=0
py : max min : *args=nS
"""
PRODUCTS = """
t . : matmul : input=T other=T
t . : outer : input=T vec2=T
t . : bmm mm : input=T mat2=T
t . : baddbmm : input=T batch1=T batch2=T beta=n alpha=n
t . : addmm : input=T mat1=T mat2=T beta=n alpha=n
t F : einsum : equation=e *operands=TL
F : linear : input=T weight=T bias=T0
t F : bilinear : input1=T input2=T weight=T bias=T0
F : scaled_dot_product_attention : query=T key=T value=T attn_mask=T0 dropout_p=n is_causal=b scale=n0 enable_gqa=b
t F : conv1d conv2d conv3d : input=T weight=T bias=T0 stride=I padding=I|same|valid dilation=I groups=i
t F : conv_transpose1d conv_transpose2d conv_transpose3d : input=T weight=T bias=T0 stride=I padding=I output_padding=I groups=i dilation=I
F : embedding : input=T weight=T padding_idx=i0 max_norm=n0 norm_type=n scale_grad_by_freq=b sparse=b
F : batch_norm : input=T running_mean=T0 running_var=T0 weight=T0 bias=T0 training=b momentum=n0 eps=n
F : instance_norm : input=T running_mean=T0 running_var=T0 weight=T0 bias=T0 use_input_stats=b momentum=n eps=n
F : layer_norm : input=T normalized_shape=I weight=T0 bias=T0 eps=n
F : rms_norm : input=T normalized_shape=I weight=T0 eps=n0
F : group_norm : input=T num_groups=i weight=T0 bias=T0 eps=n
F : local_response_norm : input=T size=i alpha=n beta=n k=n
F : max_pool1d max_pool2d max_pool3d : input=T kernel_size=I stride=I0 padding=I dilation=I ceil_mode=b return_indices=F
t F : avg_pool1d : input=T kernel_size=I stride=I0 padding=I ceil_mode=b count_include_pad=b
F : avg_pool2d avg_pool3d : input=T kernel_size=I stride=I0 padding=I ceil_mode=b count_include_pad=b divisor_override=i0
F : max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices : input=T kernel_size=I stride=I0 padding=I dilation=I ceil_mode=b return_indices=b
F : adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices : input=T output_size=J return_indices=b
F : lp_pool1d lp_pool2d lp_pool3d : input=T norm_type=n kernel_size=I stride=I0 ceil_mode=b
t F : adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d : input=T output_size=J
F : adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d : input=T output_size=J return_indices=F
F : interpolate upsample : input=T size=I0 scale_factor=N0 mode=|nearest|linear|bilinear|bicubic|trilinear|area|nearest-exact align_corners=b0 recompute_scale_factor=b0 antialias=b
F : grid_sample : input=T grid=T mode=|bilinear|nearest|bicubic padding_mode=|zeros|border|reflection align_corners=b0
F : affine_grid : theta=T size=I align_corners=b0
tv : stochastic_depth : input=T p=n mode=|batch|row training=b
fft : fft ifft rfft irfft hfft ihfft : input=T n=i0 dim=i norm=0|forward|backward|ortho
fft : fft2 ifft2 rfft2 irfft2 : input=T s=I0 dim=I norm=0|forward|backward|ortho
fft : fftn ifftn rfftn irfftn : input=T s=I0 dim=I0 norm=0|forward|backward|ortho
t . : stft : input=T n_fft=i hop_length=i0 win_length=i0 window=T0 center=b pad_mode=|constant|reflect|replicate|circular normalized=b onesided=b0 return_complex=b0 align_to_window=0
t . : istft : input=T n_fft=i hop_length=i0 win_length=i0 window=T0 center=b normalized=b onesided=b0 length=i0 return_complex=b
fft : fftshift ifftshift : input=T dim=I0
t : complex : real=T imag=T
t : polar : abs=T angle=T
"""
REDUCTIONS = """
t . : mean sum amax amin prod all any logsumexp : input=T dim=I0 keepdim=b dtype=d0
t . : max min : input=T dim=iT keepdim=b other=T
t . : argmax argmin : input=T dim=i0 keepdim=b
t . : var std var_mean std_mean : input=T dim=I0b unbiased=b keepdim=b correction=n0
t . : median : input=T dim=i keepdim=b
. : norm : input=T p=n|fro dim=I0 keepdim=b dtype=d0
t : norm : input=T p=n|fro dim=I0 keepdim=b out=0 dtype=d0
la : vector_norm : x=T ord=n dim=I0 keepdim=b dtype=d0
t . : cumsum cumprod cummax cummin : input=T dim=i dtype=d0
t . : sort argsort : input=T dim=i descending=b stable=b
t . : topk : input=T k=i dim=i largest=b sorted=b
"""
MOVEMENT = """
. : view reshape permute expand repeat tile flip : input=T *sizes=I size=I shape=I dims=I repeats=I
t : reshape : input=T shape=I
t : permute : input=T dims=I
t : tile : input=T dims=I
t : flip : input=T dims=I
t : broadcast_to : input=T size=I
t . : flatten : input=T start_dim=i end_dim=i
t . : unflatten : input=T dim=i sizes=I
t . : squeeze : input=T dim=I
t . : unsqueeze : input=T dim=i
. : squeeze_ unsqueeze_ : input=T dim=i
. : view_as reshape_as expand_as type_as : input=T other=T
t . : transpose : input=T dim0=i dim1=i
t . : swapaxes : input=T axis0=i axis1=i
t . : swapdims : input=T dim0=i dim1=i
t . : t diag diagonal : input=T offset=i dim1=i dim2=i
t . : diag_embed : input=T offset=i dim1=i dim2=i
t . : movedim moveaxis : input=T source=I destination=I
t : cat concat concatenate stack : tensors=L dim=i axis=i
t : hstack vstack : tensors=L
t : split : tensor=T split_size_or_sections=I dim=i
. : split : tensor=T split_size=I dim=i
. : split_with_sizes : tensor=T split_sizes=I dim=i
t . : chunk : tensor=T chunks=i dim=i
t . : tensor_split : tensor=T indices_or_sections=I dim=i sections=i indices=I
t . : unbind : tensor=T dim=i
t . : narrow : input=T dim=i start=q length=q
t . : select : input=T dim=i index=q
t . : index_select : input=T dim=i index=T
t . : gather : input=T dim=i index=T
t . : take_along_dim : input=T indices=T dim=i0
t . : repeat_interleave : input=T repeats=i dim=i0
t : broadcast_tensors : *tensors=T
t : meshgrid : *tensors=TL indexing=|ij|xy
t . : roll : input=T shifts=I dims=I0
t . : fliplr flipud : input=T
t . : rot90 : input=T k=i dims=I
t F : pixel_shuffle : input=T upscale_factor=i
t F : pixel_unshuffle : input=T downscale_factor=i
t F : channel_shuffle native_channel_shuffle : input=T groups=i
F : pad : input=T pad=I mode=|constant|reflect|replicate|circular value=n0
F : unfold : input=T kernel_size=I dilation=I padding=I stride=I
F : fold : input=T output_size=I kernel_size=I dilation=I padding=I stride=I
. : unfold : input=T dimension=i size=i step=i
t . : tril triu : input=T diagonal=i
. : contiguous : input=T memory_format=m
t . : clone : input=T memory_format=m0
t . : detach : input=T
. : cpu float double half bfloat16 int long bool : input=T memory_format=m
. : to : input=T *options=dvTb|cpu dtype=d device=v|cpu non_blocking=b copy=b memory_format=m0
. : size : input=T dim=i
. : dim ndimension numel nelement is_floating_point : input=T
t : numel is_floating_point : input=T
"""
MAKERS = """
t : zeros ones rand randn : *size=I size=S dtype=d0 device=v0 layout=l0 requires_grad=F
t : full : size=I fill_value=nT dtype=d0 device=v0 layout=l0 requires_grad=F
t : arange : *bounds=n start=n end=n step=n dtype=d0 device=v0 layout=l0 requires_grad=F
t : linspace : start=n end=n steps=i dtype=d0 device=v0 layout=l0 requires_grad=F
t : hann_window hamming_window blackman_window bartlett_window : window_length=i periodic=b dtype=d0 device=v0 layout=l0 requires_grad=F
t : kaiser_window : window_length=i periodic=b beta=n dtype=d0 device=v0 layout=l0 requires_grad=F
t : logspace : start=n end=n steps=i base=n dtype=d0 device=v0 layout=l0 requires_grad=F
fft : fftfreq rfftfreq : n=i d=n dtype=d0 device=v0 layout=l0 requires_grad=F
t : eye : n=i m=i dtype=d0 device=v0 layout=l0 requires_grad=F
t : tensor scalar_tensor : data=N dtype=d0 device=v0 requires_grad=F
. : new_zeros new_ones : input=T *size=I size=S dtype=d0 device=v0
. : new_full : input=T size=I fill_value=nT dtype=d0 device=v0
t : zeros_like ones_like rand_like randn_like : input=T dtype=d0 device=v0 layout=l0 memory_format=m0 requires_grad=F
t : full_like : input=T fill_value=nT dtype=d0 device=v0 layout=l0 memory_format=m0
"""
STRUCTURES = """
py : getattr : input=TPv name=s
col : OrderedDict : items=C
"""
TABLES = (UNARY, BINARY, PRODUCTS, REDUCTIONS, MOVEMENT, MAKERS, STRUCTURES)

ATEN = frozenset("""
_to_copy _upsample_bicubic2d_aa _upsample_bilinear2d_aa abs abs_ acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool2d add add_ addcdiv addcmul addmm adjoint affine_grid_generator alias all amax amin any arange argmax argmin argsort
asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm bitwise_and bitwise_not bitwise_or
bitwise_xor blackman_window bmm broadcast_tensors broadcast_to cat ceil celu channel_shuffle chunk clamp clamp_ clamp_max clamp_max_
clamp_min clamp_min_ clone col2im complex concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d
conv_transpose3d convolution copy_ cos cosh cummax cumprod cumsum deg2rad detach detach_ diag diag_embed diagonal digamma div div_
dropout dropout_ einsum elu elu_ embedding eq erf erfc erfinv exp exp2 exp_ expand expand_as expm1 eye feature_dropout fft_fftfreq
fft_rfftfreq fill fill_ flatten flip fliplr flipud float_power floor floor_ floor_divide fmax fmin fmod frac full full_like gather ge
gelu glu grid_sampler group_norm gt hamming_window hann_window hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh
hardtanh_ hstack i0 im2col index index_select instance_norm isfinite isinf isnan isneginf isposinf istft kaiser_window layer_norm ldexp le
leaky_relu leaky_relu_ lerp lgamma lift_fresh_copy linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax
logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit logspace logsumexp lt mT masked_fill masked_fill_ matmul max
max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mish mish_ mm movedim mul mul_ multiply nan_to_num narrow ne
neg neg_ new_full new_ones new_zeros norm one_hot ones ones_like outer pad permute pixel_shuffle pixel_unshuffle positive pow pow_ prelu prod
rad2deg rand rand_like randn randn_like ravel reciprocal reflection_pad1d reflection_pad2d relu relu6 relu_ remainder repeat
repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape rms_norm roll rot90 round rsqrt rsub scalar_tensor
scaled_dot_product_attention select selu selu_ sgn sigmoid sigmoid_ sign signbit silu silu_ sin sinc sinh slice softmax softplus
softshrink sort special_entr special_erfcx special_i0e special_i1 special_i1e special_log_ndtr special_ndtr special_ndtri special_xlog1py
split split_with_sizes sqrt sqrt_ square squeeze stack std std_mean stft sub sub_ sum swapaxes swapdims sym_numel sym_size t tan tanh tanh_
tensor_split threshold tile to topk transpose tril triu trunc type_as unbind unflatten unfold unsqueeze upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view
view_as vstack where xlogy zero_ zeros zeros_like
""".split())  # fmt: skip
"""ATen operators by name. Of their overloads those are called whose schema has arguments of `SCHEMA_KINDS` alone."""

SCHEMA_KINDS = {
    "Tensor": "T", "Optional[Tensor]": "T0", "List[Tensor]": "L", "List[Optional[Tensor]]": "O", "int": "i", "Optional[int]": "i0",
    "List[int]": "I", "Optional[List[int]]": "I0", "float": "n", "Optional[float]": "n0", "number": "n", "Optional[number]": "n0", "List[float]": "N",
    "Optional[List[float]]": "N0", "bool": "b", "Optional[bool]": "b0", "Device": "v", "Optional[Device]": "v0",
}  # fmt: skip
"""Kinds by the type in a schema. Element types, layouts and memory formats are integers there and are told apart by name."""
SCHEMA_NAMES = {
    "start": "nq0",
    "end": "nq0",
    "step": "nq",
    "length": "q",
    "index": "q",
    "dtype": "d0",
    "layout": "l0",
    "memory_format": "m0",
    "pin_memory": "F0",
    "requires_grad": "F0",
}
"""Kinds by an argument's name, where its type in the schema is that of a number."""
SCHEMA_WORDS = {"equation": "e", "approximate": "|none|tanh", "rounding_mode": "0|floor|trunc", "indexing": "|ij|xy",
                "mode": "|constant|reflect|replicate|circular", "padding": "|same|valid"}  # fmt: skip
"""Kinds by an argument's name, where its type in the schema is a text."""
UNCHECKED = frozenset({"scales", "scales_d", "scales_h", "scales_w"})
"""Arguments that may only be None: a resize trusts them about where its input ends."""
UNCHECKED_OVERLOADS = frozenset({
    "addmm.dtype", "baddbmm.dtype", "bmm.dtype", "mm.dtype", "repeat_interleave.Tensor", "repeat_interleave.self_Tensor",
})  # fmt: skip
"""Overloads that end the process on arguments of another form, or trust one about how much memory their result needs."""

ATTRIBUTES = {
    "tensor": frozenset({"H", "T", "data", "device", "dtype", "imag", "is_cuda", "itemsize", "mH", "mT", "nbytes", "ndim", "real", "requires_grad", "shape"}),
    "result": frozenset({"indices", "values"}),
    "device": frozenset({"type"}),
}  # fmt: skip
"""Attributes that `getattr` may read, by owner: a tensor, the named result of an operator (`x.max(1).values`), a device."""
