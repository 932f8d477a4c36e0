"""`nn.MultiheadAttention` written out as linear layers and scaled dot product attention.

The module itself ties its inner width to its outer width, so it cannot be sliced; written out, its heads are channels
like any others. Parameters keep their qualified names.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from irtool.errors import TraceError


def emit_attention(m: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any = None, need_weights: bool = True,
                   attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False) -> tuple[Tensor, None]:  # fmt: skip
    """The forward of `m` in plain operators, for (batch, length, embedding) inputs or (length, batch, embedding) ones.

    Formula: softmax(q k^T / sqrt(head size)) v, Vaswani et al. 2017.

    Raises:
        TraceError: the module uses a feature that has no plain form here.
    """
    if key_padding_mask is not None or m.bias_k is not None or m.add_zero_attn:
        raise TraceError("attention with key padding, bias_k or add_zero_attn", remedy="Name the module in leaf= to keep it whole.")
    heads, size = m.num_heads, m.head_dim
    q, k, v = _project(m, query, key, value)
    if not m.batch_first:
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    q, k, v = (t.unflatten(-1, (heads, size)).transpose(1, 2) for t in (q, k, v))
    dropout = {"dropout_p": m.dropout} if m.dropout and m.training else {}
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=size**-0.5, **dropout)
    merged = attended.transpose(1, 2).flatten(2)
    if not m.batch_first:
        merged = merged.transpose(0, 1)
    return F.linear(merged, m.out_proj.weight, m.out_proj.bias), None


def _project(m: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if m.in_proj_weight is None:
        bias = (None, None, None) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
        return F.linear(query, m.q_proj_weight, bias[0]), F.linear(key, m.k_proj_weight, bias[1]), F.linear(value, m.v_proj_weight, bias[2])
    if query is key and key is value:
        q, k, v = F.linear(query, m.in_proj_weight, m.in_proj_bias).chunk(3, dim=-1)
        return q, k, v
    weights = m.in_proj_weight.chunk(3)
    biases = (None, None, None) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    return F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1]), F.linear(value, weights[2], biases[2])
