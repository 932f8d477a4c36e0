"""`nn.MultiheadAttention` written out as linear layers and scaled dot product attention.

The module itself ties its inner width to its outer width, so it cannot be sliced; written out, its heads are channels
like any others. Parameters keep their qualified names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from irtool.errors import TraceError


def emit_attention(m: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any = None, need_weights: bool = True,
                   attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False) -> tuple[Tensor, Any]:  # fmt: skip
    """The forward of `m` in plain operators, for (batch, length, embedding) inputs or (length, batch, embedding) ones, and its weights.

    Formula: softmax(q k^T / sqrt(head size)) v, Vaswani et al. 2017.

    Raises:
        TraceError: the module uses a feature that has no plain form here.
    """
    if m.bias_k is not None or m.add_zero_attn:
        raise TraceError("attention with bias_k or add_zero_attn", remedy="Name the module in leaf= to keep it whole.")
    heads, size = m.num_heads, m.head_dim
    q, k, v = _project(m, query, key, value)
    if not m.batch_first:
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    q, k, v = (t.unflatten(-1, (heads, size)).transpose(1, 2) for t in (q, k, v))
    dropout = {"dropout_p": m.dropout} if m.dropout and m.training else {}
    if is_causal and not need_weights and key_padding_mask is None:  # a hint that the mask is that one
        attn_mask = None
    added, hidden = _masks(attn_mask, key_padding_mask, heads, q)
    mask = added if hidden is None else hidden.logical_not() if added is None else added.masked_fill(hidden, -math.inf)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal and mask is None, scale=size**-0.5, **dropout)
    merged = attended.transpose(1, 2).flatten(2)
    if not m.batch_first:
        merged = merged.transpose(0, 1)
    output = F.linear(merged, m.out_proj.weight, m.out_proj.bias)
    if not need_weights:
        return output, None
    scores = (q * size**-0.5) @ k.transpose(2, 3)
    scores = scores if added is None else scores + added
    weights = (scores if hidden is None else scores.masked_fill(hidden, -math.inf)).softmax(-1)
    weights = F.dropout(weights, m.dropout, training=True) if dropout else weights
    return output, weights.mean(1) if average_attn_weights else weights


def _masks(attn_mask: Any, padding: Any, heads: int, like: Tensor) -> tuple[Any, Any]:
    """Numbers added to the scores of all heads, in the type of `like`, and places that are hidden; None where there is no such mask.

    Of another type than the queries, torch's attention would read wrong numbers without a word.
    """
    if any(isinstance(mask, fx.Proxy) and "value" not in mask.__dict__ for mask in (attn_mask, padding)):
        raise TraceError("a mask of attention, of which this tracer does not know type and rank")  # the next one does
    added, hidden = None, None
    for mask, placed in ((attn_mask, _for_heads(attn_mask, heads)), (padding, None if padding is None else padding[:, None, None])):
        if mask is not None and mask.dtype is torch.bool:
            hidden = placed if hidden is None else hidden | placed
        elif mask is not None:
            typed = placed.type_as(like)  # type: ignore[union-attr]
            added = typed if added is None else added + typed
    return added, hidden


def _for_heads(mask: Any, heads: int) -> Any:
    """A mask with an axis for the heads, if it has one for batch and heads in one."""
    return mask.unflatten(0, (-1, heads)) if mask is not None and mask.dim() == 3 else mask


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
