"""Mixed precision: the fewest layers in float with which a model is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def fewest_float(order: Sequence[str], good: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...] | None:
    """The shortest prefix of `order` that, left in float, makes the rest good enough; None if not even all of it does.

    By doubling and bisection, so `good` is called about twice the logarithm of the number of layers. It supposes that more
    layers in float are no worse. In the end each layer of the prefix but the last is tried in int8 again if there are at most
    four, since the order is by each layer alone and layers may make up for one another.

    Args:
        order: layer names, the most sensitive first.
        good: whether a model with these layers in float is good enough.
    """
    if good(()):
        return ()
    low, high = 0, 1
    while not good(tuple(order[:high])):
        if high >= len(order):
            return None
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(tuple(order[:middle])) else (middle, high)
    return _thinned(tuple(order[:high]), good)


def _thinned(chosen: tuple[str, ...], good: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    if len(chosen) > 4:
        return chosen
    for layer in chosen[:-1]:
        fewer = tuple(name for name in chosen if name != layer)
        if fewer and good(fewer):
            chosen = fewer
    return chosen
