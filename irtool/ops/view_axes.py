"""The axes of a view that lie around its channels, and the equations of their sizes under which no channel is mixed with others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ViewAxes:
    """The axes around the channels of a view: before `first` and from `last` on, of its input and of its output."""

    first: tuple[int, int]
    last: tuple[int, int]
    ranks: tuple[int, int]

    def merging(self, listed: Sequence[Any]) -> ViewAxes:
        """Return the same axes, those in front of the channels counted among them where the view merges both into one computed size.

        A batch of one in front of the channels looks the same as none (`reshape(n * c * rows, 2, columns, 2)`): entries keep their
        order in memory, so that the product says for any batch where each channel lies.

        Args:
            listed: as in `open`.
        """
        merges = self.first[0] and not self.first[1] and len(listed) == self.ranks[1] and -1 not in listed
        return replace(self, first=(0, 0)) if merges and not isinstance(listed[0], int) else self

    def open(self, listed: Sequence[Any]) -> list[str]:
        """Return the parts ("before", "after", "channels") of which a view does not say how large they are.

        Args:
            listed: the sizes that are asked for: integers as written, anything else as computed from sizes.

        Returns:
            The parts; empty where the number of elements settles them. That is so for one part: the product of all is given, and
            the others are computed from sizes, or are the channels alone.
        """
        if len(listed) != self.ranks[1]:
            return []
        (i, o), (j, p) = self.first, self.last
        parts = {"before": (i, listed[:o]), "after": (self.ranks[0] - j, listed[p:])}
        found = [name for name, (axes, stated) in parts.items() if any(isinstance(size, int) for size in stated) or (axes and not stated)]
        alone = j - i == 1 and p - o == 1 and listed[o] != -1
        computed = not any(isinstance(size, int) for size in listed[o:p])
        found += [] if alone or computed else ["channels"]
        if -1 not in listed and [place for place, size in enumerate(listed) if isinstance(size, int)] in [[k] for k in range(o, p)]:
            return []  # all but the number of channels is computed from sizes
        return found if len(found) > 1 else []


def view_axes(before: Sequence[int], after: Sequence[int], cut: tuple[Sequence[int], Sequence[int]]) -> ViewAxes | None:
    """Find where the channels of a view begin and end.

    Args:
        before, after: the shapes of its input and output.
        cut: the axes of each that lost entries.

    Returns:
        The axes, or None if no channels were cut.
    """
    if not all(cut):
        return None
    products = [[math.prod(shape[:place]) for place in range(len(shape) + 1)] for shape in (before, after)]
    pairs = [(i, o) for i, one in enumerate(products[0]) for o, other in enumerate(products[1]) if one == other]
    first = max((pair for pair in pairs if pair[0] <= cut[0][0] and pair[1] <= cut[1][0]), default=(0, 0))
    last = min((pair for pair in pairs if pair[0] > cut[0][-1] and pair[1] > cut[1][-1]), default=(len(before), len(after)))
    return ViewAxes(first, last, (len(before), len(after)))


@dataclass(frozen=True)
class Behind:
    """The axes behind the channels of a view: the input's from `places[0]` on, the output's from `places[1]` on.

    Their products are as `ratio[0]` to `ratio[1]`. Where that holds at another size, too, and the channels' own sizes are fixed,
    each entry of the output holds the channels that it held before.
    """

    places: tuple[int, int]
    ratio: tuple[int, int]


def behind_channels(before: Sequence[int], after: Sequence[int], cut: tuple[Sequence[int], Sequence[int]]) -> Behind | None:
    """Tell what must hold of the axes behind the channels. None if that alone does not do.

    In memory, entry f of the input holds channel (f // inner) % channels; cut axes of the output see whole periods of that, or are
    whole parts of it.

    Args:
        before, after, cut: as in `view_axes`.
    """
    if not all(cut) or any(list(axes) != list(range(axes[0], axes[-1] + 1)) for axes in cut):
        return None
    places = cut[0][-1] + 1, cut[1][-1] + 1
    inner = math.prod(before[places[0] :]), math.prod(after[places[1] :])
    wide = math.prod(before[cut[0][0] : places[0]]), math.prod(after[cut[1][0] : places[1]])
    for one, other in ((0, 1), (1, 0)):
        if inner[one] % inner[other] == 0 and wide[other] % (wide[one] * (inner[one] // inner[other])) == 0:
            common = math.gcd(*inner)
            return Behind(places, (inner[0] // common, inner[1] // common))
        if inner[one] == inner[other] and wide[one] % wide[other] == 0:
            return Behind(places, (1, 1))
    return None
