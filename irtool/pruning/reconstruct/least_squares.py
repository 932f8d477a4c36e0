"""Ridge regression with the strength chosen on rows that were held out.

What is fitted is a *change* of a layer's weight and bias: the rows pair what the layer reads, x, with what its output
lacks, d. With C the covariance of x, K that of d with x, and t the mean of C's diagonal, the change of the weight is
K (C + strength * t * I)^-1, and that of the bias mean(d) - change * mean(x): ridge regression towards the weight as it is. The
strength is chosen by the error on a quarter of the rows of what three quarters give; one eigendecomposition of C serves
every strength. With the strength chosen all rows are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

STRENGTHS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weight of the penalty, relative to the mean variance of the inputs."""
WIDE = 2304
"""Inputs of a group above which rows are kept and the regression is solved among rows instead, which is the same solution."""
KEPT_ROWS = 3072
"""At most so many rows are kept then."""
_LEAST = 1e-12
"""Directions whose variance is below this share of the largest count as constant where nothing is penalised."""


@dataclass(frozen=True)
class Fit:
    """The result of a regression.

    Attributes:
        weight: the change of the weight, float64, (groups, outputs, inputs); None if only the bias changes.
        bias: the change of the bias, (groups, outputs); None if nothing changes.
        strength: the penalty chosen; None without a weight.
        before, after: mean squared lack over held-out rows, summed over outputs, and what is left of it.
    """

    weight: Tensor | None
    bias: Tensor | None
    strength: float | None
    before: float
    after: float


class Sums:
    """Rows summed up: their first and second moments, groups side by side, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._x = self._d = self._xx = self._dx = self._dd = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, d: Tensor) -> None:
        """Take in rows: x (rows, groups, inputs), d (rows, groups, outputs), both float64."""
        a, b = x.transpose(0, 1), d.transpose(0, 1)
        self.count += len(x)
        self._x, self._d = self._x.to(x.device) + a.sum(1), self._d.to(x.device) + b.sum(1)
        self._xx, self._dx = self._xx.to(x.device) + a.mT @ a, self._dx.to(x.device) + b.mT @ a
        self._dd = self._dd.to(x.device) + b.square().sum(1)

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of x and d."""
        return self._x / self.count, self._d / self.count

    def about(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Second moments of x, of d with x, and of d alone, about these points."""
        n, dx, dd = self.count, self._x / self.count - x, self._d / self.count - d
        mx, md = self._x / n, self._d / n
        xx = self._xx / n - mx[:, :, None] * mx[:, None] + dx[:, :, None] * dx[:, None]
        cross = self._dx / n - md[:, :, None] * mx[:, None] + dd[:, :, None] * dx[:, None]
        return xx, cross, self._dd / n - md.square() + dd.square()

    def __add__(self, other: Sums) -> Sums:
        """All rows of both."""
        if not other.count:
            return self
        both = Sums()
        both.count = self.count + other.count
        both._x, both._d, both._dd = self._x + other._x, self._d + other._d, self._dd + other._dd
        both._xx, both._dx = self._xx + other._xx, self._dx + other._dx
        return both

    def solved(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Eigenvalues and eigenvectors of C, the mean of its diagonal, and K along the eigenvectors."""
        xx, dx, _ = self.about(*self.means())
        values, vectors, level = _spectrum(xx)
        return values, vectors, level, dx @ vectors

    def plain(self) -> Tensor:
        """The mean square of d."""
        return self._dd / self.count


@dataclass
class Regression:
    """Rows of one layer, fitted and held out, and the regression over them.

    Args:
        inputs: of each group; above `WIDE` rows are kept as they are, at most `KEPT_ROWS`.
    """

    inputs: int
    _fitted: Sums = field(default_factory=Sums)
    _held: Sums = field(default_factory=Sums)
    _rows: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add(self, x: Tensor, d: Tensor, held: Tensor) -> None:
        """Take in rows.

        Args:
            x: what is read, (rows, groups, inputs).
            d: what the output lacks, (rows, groups, outputs).
            held: which rows are held out, bool, (rows,).
        """
        if self.inputs > WIDE:
            self._rows.append((x.float(), d.double(), held))
            return
        x, d, held = x.double(), d.double(), held.to(x.device)
        for sums, chosen in ((self._fitted, ~held), (self._held, held)):
            if bool(chosen.any()):
                sums.add(x[chosen], d[chosen])

    def solve(self, *, weights: bool = True) -> Fit:
        """Choose among no change, a bias alone, and a weight at each strength, by the error on held-out rows; then fit all rows so.

        Args:
            weights: whether weights may change.
        """
        return self._among_rows(weights) if self._rows else self._among_inputs(weights)

    def _among_inputs(self, weights: bool) -> Fit:
        held, (x, d) = self._held if self._held.count else self._fitted, self._fitted.means()
        held_xx, held_dx, held_dd = held.about(x, d)
        errors = [float(held.plain().sum()), float(held_dd.sum())]
        if weights:
            values, vectors, level, projected = self._fitted.solved()
            rotated_dx, rotated_xx = held_dx @ vectors, vectors.mT @ held_xx @ vectors
            for strength in STRENGTHS:
                change = projected * _inverse(values, strength * level)[:, None]
                left = held_dd.sum() - 2 * (change * rotated_dx).sum() + ((change @ rotated_xx) * change).sum()
                errors.append(float(left.clamp(min=0)))
        best, whole = min(range(len(errors)), key=errors.__getitem__), self._fitted + self._held
        x, d = whole.means()
        if best < 2:
            return _without_weight(errors, best, d)
        strength = STRENGTHS[best - 2]
        values, vectors, level, projected = whole.solved()
        return _with_weight(errors, best, (projected * _inverse(values, strength * level)[:, None]) @ vectors.mT, x, d)

    def _among_rows(self, weights: bool) -> Fit:
        """Fit among the rows alone: change = D^T U (S + strength * t)^-1 U^T X / n, with X X^T / n = U S U^T."""
        x, d = (torch.cat([rows[part] for rows in self._rows]).transpose(0, 1) for part in (0, 1))
        held = torch.cat([rows[2] for rows in self._rows]).to(x.device)
        part = held if bool(held.any()) else ~held
        fitted = _Rows(x[:, ~held], d[:, ~held])
        seen, lack = x[:, part].double() - fitted.x_mean[:, None], d[:, part] - fitted.d_mean[:, None]
        errors = [float(d[:, part].square().mean(1).sum()), float(lack.square().mean(1).sum())]
        if weights:
            errors += [float((lack - seen @ fitted.change(strength).mT).square().mean(1).sum()) for strength in STRENGTHS]
        best, whole = min(range(len(errors)), key=errors.__getitem__), _Rows(x, d, spectrum=False)
        if best < 2:
            return _without_weight(errors, best, whole.d_mean)
        # Among rows the second fit would cost far more than it gains: the one of three quarters stays.
        return _with_weight(errors, best, fitted.change(STRENGTHS[best - 2]), fitted.x_mean, fitted.d_mean)


class _Rows:
    """Ridge regression among rows (groups, rows, inputs)."""

    def __init__(self, x: Tensor, d: Tensor, *, spectrum: bool = True) -> None:
        self.d_mean, self.x_mean = d.mean(1), x.double().mean(1)
        if not spectrum:
            return
        self._x, self._d, n = x.double() - self.x_mean[:, None], d - self.d_mean[:, None], x.shape[1]
        self._values, self._vectors, level = _spectrum(self._x @ self._x.mT / n)
        self._level = level * n / x.shape[2]  # the mean of C's diagonal, whose trace is the same
        self._projected = self._vectors.mT @ self._d / n

    def change(self, strength: float) -> Tensor:
        """Gradient of the weight, (groups, outputs, inputs)."""
        inverse = _inverse(self._values, strength * self._level)[:, :, None]
        return ((self._vectors @ (inverse * self._projected)).mT @ self._x).contiguous()


def _spectrum(square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (groups, n), eigenvectors (groups, n, n), and the mean of the diagonal (groups, 1)."""
    values, vectors = torch.linalg.eigh((square + square.mT) / 2)
    return values.clamp(min=0), vectors, square.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)


def _inverse(values: Tensor, penalty: Tensor) -> Tensor:
    """1 / (values + penalty), 0 where nothing varies."""
    total = values + penalty
    return torch.where(total > _LEAST * values.amax(1, keepdim=True), 1 / total.clamp(min=torch.finfo(total.dtype).tiny), 0)


def _without_weight(errors: list[float], best: int, d: Tensor) -> Fit:
    return Fit(None, d if best else None, None, errors[0], errors[best])


def _with_weight(errors: list[float], best: int, change: Tensor, x: Tensor, d: Tensor) -> Fit:
    return Fit(change, d - (change @ x[:, :, None])[:, :, 0], STRENGTHS[best - 2], errors[0], errors[best])
