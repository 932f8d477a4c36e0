"""`nn.MultiheadAttention` as people call it: masks of every kind, weights that are asked for, in the order of either axis."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irtool

SIZES = ((1, 16), (3, 16), (2, 24))


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor, Tensor], Any], *, batch_first: bool = True) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.attention, self.head = nn.MultiheadAttention(32, 4, batch_first=batch_first), nn.Linear(32, 4)
        nn.init.normal_(self.attention.in_proj_bias)
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Any:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.function(self, tokens, tokens.mean(2) > 0)


def _hidden(tokens: Tensor) -> Tensor:
    return torch.triu(torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool), 1)


def _added(tokens: Tensor) -> Tensor:
    return torch.triu(torch.full((tokens.shape[1], tokens.shape[1]), -math.inf), 1)


def averaged(s: Any, t: Tensor, pad: Tensor) -> Any:
    out, weights = s.attention(t, t, t)
    return s.head(s.norm(out)), weights


def of_each_head(s: Any, t: Tensor, pad: Tensor) -> Any:
    out, weights = s.attention(t, t, t, average_attn_weights=False)
    return s.head(s.norm(out)), weights


def weights_alone(s: Any, t: Tensor, pad: Tensor) -> Any:
    return s.head(s.attention(t, t, t)[1] @ t)


def hidden(s: Any, t: Tensor, pad: Tensor) -> Any:
    return s.head(s.attention(t, t, t, attn_mask=_hidden(t))[0])


def added_as_a_hint(s: Any, t: Tensor, pad: Tensor) -> Any:
    return s.head(s.attention(t, t, t, attn_mask=_added(t), is_causal=True, need_weights=False)[0])


def padded(s: Any, t: Tensor, pad: Tensor) -> Any:
    return s.head(s.attention(t, t, t, key_padding_mask=pad & (pad.cumsum(1) > 1))[0])


def padded_and_added(s: Any, t: Tensor, pad: Tensor) -> Any:
    return s.head(s.attention(t, t, t, key_padding_mask=pad & (pad.cumsum(1) > 1), attn_mask=_added(t).clamp(min=-5.0).type_as(t))[0])


def padded_and_hidden(s: Any, t: Tensor, pad: Tensor) -> Any:
    out, weights = s.attention(t, t, t, key_padding_mask=pad & (pad.cumsum(1) > 1), attn_mask=_hidden(t).T & ~torch.eye(t.shape[1]).bool())
    return s.head(out)[:, :2], weights[:, :2].nan_to_num()


def masks_of_heads(s: Any, t: Tensor, pad: Tensor) -> Any:
    scores = t.new_zeros(4 * t.shape[0], t.shape[1], t.shape[1]) + torch.eye(t.shape[1]).type_as(t)
    return s.head(s.attention(t, t, t, attn_mask=scores)[0])


FORMS = [averaged, of_each_head, weights_alone, hidden, added_as_a_hint, padded, padded_and_added, padded_and_hidden, masks_of_heads]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_attention_stays_open_at_every_size(form: Callable[[Any, Tensor, Tensor], Any]) -> None:
    torch.manual_seed(0)
    net = Net(form)
    graph = irtool.trace(net, torch.randn(1, 3, 16, 16))
    assert graph.tracer in ("symbolic", "concrete")
    plan = irtool.plan(graph, "random", 0.5)
    check = irtool.check_prune(graph, plan)
    assert check.ok
    assert plan.removed / sum(layer.total for layer in plan.layers) > 0.4
    model, module = (copy.deepcopy(part).double() for part in (net, graph.module))
    for batch, size in SIZES:
        x = torch.randn(batch, 3, size, size, dtype=torch.float64)
        torch.testing.assert_close(module(x), model(x), rtol=1e-9, atol=1e-9)


def test_weights_that_nobody_asks_for_are_not_in_the_graph() -> None:
    kept = [len(irtool.trace(Net(form), torch.randn(1, 3, 16, 16)).nodes) for form in (hidden, averaged)]
    without = irtool.trace(Net(lambda s, t, pad: s.head(s.norm(s.attention(t, t, t)[0]))), torch.randn(1, 3, 16, 16))
    assert not any(node.op == "Softmax" for node in without.nodes)
    assert len(without.nodes) < kept[1]


class Queries(nn.Module):
    """Learned queries look at an image, the axes in torch's older order, and say where they look."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.queries = nn.Conv2d(3, 32, 3, 2, 1), nn.Embedding(5, 32)
        self.attention, self.head = nn.MultiheadAttention(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = self.trunk(x).relu().flatten(2).permute(2, 0, 1)
        found, weights = self.attention(self.queries.weight.unsqueeze(1).repeat(1, x.shape[0], 1), places, places)
        return self.head(found).transpose(0, 1), weights


def test_pruned_queries_take_every_batch() -> None:
    torch.manual_seed(0)
    net = Queries().eval()
    graph = irtool.trace(net, torch.randn(1, 3, 12, 12))
    plan = irtool.plan(graph, "l1", 0.5)
    assert irtool.check_prune(graph, plan, (torch.randn(3, 3, 10, 14),)).ok
    assert not irtool.prune(graph, plan).notes[len(graph.notes) :]


class Decoder(nn.Module):
    """torch's own decoder compares a mask with that of a causal one, and decides by that."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(6, 16))
        self.layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(6)
        found: Tensor = self.layers(self.queries.expand(x.shape[0], -1, -1), tokens, tgt_mask=mask)
        return found


def test_a_decision_by_a_constant_is_taken() -> None:
    net = Decoder().eval()
    graph = irtool.trace(net, torch.randn(1, 3, 16, 16))
    x = torch.randn(3, 3, 12, 20)
    torch.testing.assert_close(graph.module(x), net(x))


def test_an_exported_program_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    import irtool.hosts.torch.tracing.trace as tracing

    monkeypatch.setattr(tracing, "ATTEMPTS", (("export", False),))
    graph = irtool.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), torch.randn(1, 3, 8, 8))
    x = torch.randn(3, 3, 9, 10)
    torch.testing.assert_close(pickle.loads(pickle.dumps(graph)).module(x), graph.module(x))
    assert not graph.module._forward_pre_hooks
    assert "_guards_fn" not in graph.module._modules
