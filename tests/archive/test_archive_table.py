"""The tables of what an archive may call: all that our nets need, and nothing of what is known to be dangerous."""

from __future__ import annotations

import builtins
import inspect
import math
import operator
import re
from contextlib import nullcontext

import pytest
import structures
import torch
import torchvision.models as tv
from random_cnns import BLOCKS, Recipe
from random_cnns.net import trace
from torch import nn

import irtool
from irtool.archive import allowed
from irtool.archive.allowed import NotData, function_name, functions, methods, row_of
from irtool.archive.kinds import KINDS, row
from irtool.archive.layers import layer_rows
from irtool.archive.operators import ATEN, ATTRIBUTES
from irtool.archive.state import encode_modules
from irtool.archive.trial import Trial, check_program

OWN = {"detector_dataclass": "Found", "unknown_leaf": "Sorted", "unknown_function": "linalg_eigvalsh"}
"""Structures with a class or a function that is in no table, and what it is called: the user's own, or one of torch's that stays out."""

DANGERS: dict[str, str] = {
    "runs or imports what it is given": r"__.*|apply_|map_|map2_|call|methodcaller|attrgetter|itemgetter|eval|exec|compile|open|input|type|numpy|_numpy|module_load|vmap|func|compiled.*|.*import.*|hub|jit.*|classes|ops|library|overrides|get_device_module|.*register_.*|.*hook.*|backward|_backward|grad_fn|autograd.*|vars|globals|setattr|delattr|dir|id|print|_print|help|breakpoint|exit|quit|memoryview|super|object|staticmethod|property|iter|next|map|filter|zip|sorted|reversed|enumerate|hash|repr|str|format|bytes|bytearray|chr|ascii|oct|hex|bin",
    "reads or writes files, or other processes' memory": r"from_file|save|load|_load.*|share_memory_|is_shared|pin_memory|_pin_memory|is_pinned|_nested.*|.*distributed.*|from_dlpack|to_dlpack|.*dlpack.*|frombuffer|from_numpy|asarray|as_tensor|utils",
    "gives a storage, a pointer or a handle": r".*storage.*|data_ptr|_cdata|.*_ptr|tolist|item|_local_scalar_dense|untyped.*|_version|_base|_is_view|_has_same_storage_numel",
    "changes which memory a tensor stands on": r"resize_|resize_as_|_resize.*|resize.*|set_|set_data|set|_reshape_alias|_reshape_copy|as_strided.*|empty_strided|new_empty_strided|_unsafe.*|unsafe_.*|_unsafe_view|.*_unsafe.*|.*_backward.*|lift|_fw_primal.*|_make_dual.*|view_as_real|view_as_complex|_view.*|_conj.*|_neg_view.*|resolve_.*|_to_functional.*|.*functorch.*",
    "gives memory that nobody wrote": r"empty|empty_like|new_empty|empty_permuted|_empty.*|empty_quantized|_efficientzerotensor",
    "builds what is not dense": r".*sparse.*|to_dense|coalesce|_coalesce.*|_indices|_values|crow_indices|col_indices|ccol_indices|row_indices|.*quantize.*|q_.*|_make_per_.*|int_repr|dequantize|fake_quant.*|.*mkldnn.*|.*nested.*|_weight_int.*|fbgemm.*|.*packed.*|_pack.*|.*fused.*|_fused.*|choose_qparams.*",
    "trusts indices or sizes": r"_index_put_impl_|index_put.*|_index_put.*|put_|_embedding_bag.*|embedding_bag|max_unpool.*|fractional.*|ctc_loss.*|_ctc_loss.*|_use_cudnn.*|native_batch_norm|native_group_norm|native_layer_norm|_native.*|_batch_norm.*|_transform.*|_transformer.*|nms|roi_.*|ps_roi.*|deform_conv2d|box_.*|bincount|histc.*|segment_reduce|_segment_reduce|grid_sampler_2d|_grid_sampler.*|_thnn.*|_lstm.*|_cudnn.*|cudnn.*|miopen.*|mps_.*|_nnpack.*|.*convolution_overrideable|_convolution.*|searchsorted|bucketize|scatter.*|scatter|index_add.*|index_fill.*|index_copy.*|masked_scatter.*|masked_select.*|nonzero.*|unique.*|_unique.*|argwhere|take|cdist|_cdist.*|pdist|_pdist.*|multi_margin.*|nll_loss.*|cross_entropy.*|tril_indices|triu_indices|combinations|cartesian_prod|block_diag|svd|qr|lu.*|linalg_[a-u].*|linalg_vander|linalg_vecdot|inverse|pinverse|cholesky.*|eig.*|lobpcg|ormqr|geqrf|det|logdet|slogdet|matrix_.*|symeig|triangular_solve|lstsq|kthvalue|mode|histogram.*|multinomial|bernoulli.*|normal.*|poisson.*|binomial|random_.*|uniform_.*|cauchy_.*|exponential_.*|geometric_.*|log_normal_.*|randperm.*|randint.*",
    "moves to a device, or tells of one": r"cuda|xpu|ipu|mtia|to_.*|_to_cpu|record_stream|get_device|is_cuda.*|cudnn_.*|_mps.*|set_default.*|set_num.*|manual_seed|seed|initial_seed|get_rng_state|set_rng_state|use_deterministic.*|set_.*|Generator|Stream|Event",
    "names axes, or asks for a gradient": r"requires_grad_|retain_grad|retains_grad|is_leaf|grad|_grad.*",
    "never ends on plain numbers": r"factorial|comb|perm|lcm|gcd|isqrt|range|lshift|rshift|ilshift|irshift|iconcat|divmod|index|countOf|indexOf|contains|delitem|length_hint",
}  # fmt: skip
"""Names that no table may hold, by what they do. Each is a pattern for the whole name."""
READ = frozenset({"index", "normalize", "resolve_conj", "resolve_neg"})
"""Names that a pattern meets and that were read: `aten.index` checks its indices, `F.normalize` writes nothing but its result, and
`aten.resolve_conj` and `resolve_neg` give the tensor itself or a copy of its numbers."""


def reachable() -> dict[str, set[str]]:
    """Every public and private name of what torch and Python offer, by place."""
    return {
        "torch": set(dir(torch)) | set(dir(torch._C._VariableFunctions)),
        "torch.Tensor": set(dir(torch.Tensor)),
        "torch.nn.functional": set(dir(nn.functional)) | set(dir(torch._C._nn)),
        "torch.ops.aten": {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")},
        "math": set(dir(math)),
        "operator": set(dir(operator)),
        "builtins": set(dir(builtins)),
    }  # fmt: skip


def named() -> dict[str, set[str]]:
    """The names in the tables, by the same places."""
    places: dict[str, set[str]] = {}
    for name in functions():
        place, _, own = name.rpartition(".")
        places.setdefault(place, set()).add(own)
    return {**places, "torch.Tensor": set(methods()), "torch.ops.aten": set(ATEN)}


@pytest.mark.parametrize("why", DANGERS)
def test_no_known_danger_is_in_a_table(why: str) -> None:
    pattern = re.compile(DANGERS[why])
    known = {place: {name for name in names if pattern.fullmatch(name)} for place, names in reachable().items()}
    assert sum(map(len, known.values())) > 5, "a pattern that meets nothing tests nothing"
    for place, names in named().items():
        met = {name for name in names if pattern.fullmatch(name)} - READ
        assert not met, (place, sorted(met))


def test_each_part_of_a_pattern_of_dangers_meets_something() -> None:
    every = set().union(*reachable().values()) | {"nms", "roi_align", "ps_roi_align", "deform_conv2d", "box_iou"}
    stale = [part for pattern in DANGERS.values() for part in pattern.split("|") if not any(re.fullmatch(part, name) for name in every)]
    assert not stale


def test_builtins_and_operators_are_few() -> None:
    assert named()["builtins"] == {"getattr", "len", "int", "float", "round", "max", "min"}
    assert named()["math"] == {"ceil", "floor", "sqrt"}
    assert named()["collections"] == {"OrderedDict"}
    assert all(name in operator.__all__ for name in named()["operator"])


def test_every_name_in_the_tables_exists() -> None:
    assert all(callable(function) for function in functions().values())
    assert set(reachable()["torch.ops.aten"]) >= ATEN
    for name in ATEN:
        packet = getattr(torch.ops.aten, name)
        assert any(allowed._schema_row(getattr(packet, overload)) for overload in packet.overloads()), name


def test_overloads_write_into_nothing_but_their_first_argument() -> None:
    for name in ATEN:
        packet = getattr(torch.ops.aten, name)
        for found in (getattr(packet, overload) for overload in packet.overloads()):
            if allowed._schema_row(found) is not None:
                writes = [argument.name for argument in found._schema.arguments if argument.alias_info and argument.alias_info.is_write]
                assert writes == (["self"] if name.endswith("_") else []), found
                assert not {str(argument.type) for argument in found._schema.arguments} & {"Storage", "Generator", "Stream", "QScheme"}


@pytest.mark.parametrize("name", sorted(functions()))
def test_arguments_are_called_as_torch_calls_them(name: str) -> None:
    """A row that names another argument would check the wrong one."""
    try:
        parameters = inspect.signature(functions()[name]).parameters.values()
    except (ValueError, TypeError):
        return
    real = [parameter.name for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    ours = [argument.name for argument in row_of(functions()[name]).arguments]
    both = min(len(real), len(ours))
    assert real[:both] == ours[:both]


def test_attributes_of_layers_are_those_of_torch() -> None:
    for names, call, attributes in layer_rows():
        for kind in (getattr(nn, name) for name in names if hasattr(nn, name)):
            parameters = [p for p in inspect.signature(kind.forward).parameters if p != "self"]
            ours = [argument.name for argument in row(call).arguments]
            assert parameters[: len(ours)] == ours or kind in (nn.GRU, nn.LSTM, nn.RNN), kind
            assert not any(callable(getattr(kind, argument, None)) for argument in row(attributes).by_name), kind


def test_no_kind_takes_a_function_a_class_or_a_module() -> None:
    for letter, test in KINDS.items():
        for value in (
            torch.relu,
            nn.ReLU,
            nn.ReLU(),
            torch,
            torch.zeros(1).untyped_storage(),
            object(),
            2**64,
            torch.qint8,
            torch.device("cuda"),
        ):
            assert not test(value), (letter, value)
            assert not test([value]) or letter == "P", (letter, value)
    assert all(not name.startswith("_") for names in ATTRIBUTES.values() for name in names)


def check_tables(graph: irtool.FxGraph) -> None:
    """A graph is within the tables: as `save` and as `load` ask, and each module that it calls has its row."""
    for node in graph.module.graph.nodes:
        if node.op == "call_function":
            function_name(node.target)
    check_program(graph)
    rows = encode_modules(graph.module)
    assert {str(node.target) for node in graph.module.graph.nodes if node.op == "call_module"} <= {
        name for name, row in rows.items() if row
    }
    Trial(graph.module, graph.example_inputs)


@pytest.mark.parametrize("name", sorted(structures.CASES))
def test_the_tables_have_what_the_test_nets_need(name: str) -> None:
    own = OWN.get(name)
    with pytest.raises(NotData, match=own) if own else nullcontext():
        check_tables(structures.graph(name))


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_the_tables_have_what_the_random_nets_need(block: str) -> None:
    for seed in range(3):
        check_tables(trace(Recipe("one", 8, (("Plain", 1), (block, seed), ("Plain", 2)), "pooled", seed)))


ZOO = ("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "maxvit_t", "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf",
       "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_v2_t", "vit_b_16")  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_the_tables_have_what_the_zoo_needs(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    check_tables(irtool.trace(tv.get_model(name, weights=None, **options).eval(), torch.zeros(1, 3, 224, 224)))
