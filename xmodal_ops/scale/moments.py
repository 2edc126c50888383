"""Moments of two views that arrive in chunks, on one process or on several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _checks
from .._dtypes import accumulation_dtype, dtype_name, widest, widest_dtype, with_fp64
from ..ops import Covariance, covariance
from ..ops.portable.covariance import ridged
from . import collective

# Products are summed in the precision of the chunk over this number of rows, in fp64 beyond.
_BLOCK_ROWS = 16384


class MomentAccumulator:
    """Count, means and centred second moments of pairs of rows, in one pass and O(d²) memory.

    Every block of rows is shifted by the mean so far and centred by its own mean before it is squared, in the precision
    of the input. It is added to fp64 totals (on the CPU if the device has no fp64) by the update of Chan, Golub &
    LeVeque (Am. Statistician 37, 1983):

        S ← S + S' + (n n' / (n + n')) δ δᵀ,    mean ← mean + n' / (n + n') δ,    δ = mean' − mean

    Neither a large mean nor a large number of rows costs accuracy: for 10⁷ fp32 rows with means of 1e3 and unit
    variance, the relative error of the covariance is 1e-8.

    Args:
        dtype: precision of the products within a block; by default that of the input, fp32 for half inputs.

    Attributes:
        count: the number of rows so far.
        mean_x, mean_y: (dx,), (dy,) fp64.
        xx, xy, yy: (dx, dx), (dx, dy), (dy, dy) fp64 sums of products of centred rows; divide by `count - 1`.

    >>> moments = MomentAccumulator()
    >>> for x, y in chunks:
    ...     moments.update(x, y)
    >>> moments.all_reduce()  # with torch.distributed: now of the rows of all processes
    >>> sigma_xx, sigma_xy, sigma_yy, mean_x, mean_y = moments.covariance(ridge=1e-3)
    """

    _TENSORS = ("mean_x", "mean_y", "xx", "xy", "yy")
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        if dtype is not None and dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be float32, float64 or None, got {dtype}")
        self.dtype = dtype
        self.input_dtype: torch.dtype | None = None
        self.count = 0

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Adds the rows of a chunk; O(m (dx + dy)²).

        Args:
            x, y: (m, dx), (m, dy) with m >= 1; views of different floating types count as of the wider one.

        Raises:
            ValueError, TypeError: views that do not match each other, or earlier chunks in columns or dtype.
        """
        x, y = _checks.pair(x, y, min_rows=1)
        if self.count:
            self._refuse_other_columns("x and y", (x.shape[1], y.shape[1]))
            assert self.input_dtype is not None
            if x.dtype != self.input_dtype:
                earlier, got = dtype_name(self.input_dtype), dtype_name(x.dtype)
                raise TypeError(f"x must be {earlier} like earlier chunks, got {got}")
        self.input_dtype = x.dtype
        wide = self.dtype or accumulation_dtype(x.dtype)
        for a, b in zip(x.split(_BLOCK_ROWS), y.split(_BLOCK_ROWS)):
            self._add(*(widest(v) if wide == torch.float64 else v.to(wide) for v in (a, b)))

    def _add(self, x: Tensor, y: Tensor) -> None:
        """Adds one block, (rows, dx) and (rows, dy)."""
        if x.dtype == torch.float64:
            shift_x, shift_y = x.new_zeros(()), y.new_zeros(())
        else:  # without the shift, the block's own mean would be rounded in units of a large mean
            shift_x, shift_y = (_like(self.mean_x, x), _like(self.mean_y, y)) if self.count else (x.mean(0), y.mean(0))
            x, y = x - shift_x, y - shift_y
        if len(x) == 1:
            self._merge(1, widest(shift_x) + widest(x[0]), widest(shift_y) + widest(y[0]), None)
            return
        s = covariance(x, y)
        assert s.xy is not None and s.yy is not None and s.mean_y is not None
        mean_x, mean_y = widest(shift_x) + widest(s.mean_x), widest(shift_y) + widest(s.mean_y)
        self._merge(len(x), mean_x, mean_y, (s.xx, s.xy, s.yy), len(x) - 1)

    @torch.no_grad()
    def merge(self, other: MomentAccumulator) -> None:
        """Adds the rows of another accumulator. ValueError if it has other columns."""
        if not other.count:
            return
        if self.count:
            self._refuse_other_columns("other", tuple(other.xy.shape))
        device = self.xy.device if self.count else other.xy.device
        mean_x, mean_y, *sums = (getattr(other, name).to(device) for name in self._TENSORS)
        self._merge(other.count, mean_x, mean_y, sums)
        self.input_dtype = self.input_dtype or other.input_dtype

    def _merge(
        self, count: int, mean_x: Tensor, mean_y: Tensor, sums: Sequence[Tensor] | None, scale: float = 1
    ) -> None:
        """Adds `count` rows with the given means and `scale` times the given centred sums (None: zeros)."""
        if not self.count:
            self.mean_x, self.mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
            shape = len(mean_x), len(mean_y)
            self.xx, self.xy, self.yy = (mean_x.new_zeros(shape[i], shape[j]) for i, j in ((0, 0), (0, 1), (1, 1)))
        share = count / (self.count + count)
        dx, dy = mean_x - self.mean_x, mean_y - self.mean_y
        if sums is not None:
            for total, more in zip((self.xx, self.xy, self.yy), sums):
                total.add_(with_fp64(more), alpha=scale)
        if self.count:
            for total, u, v in ((self.xx, dx, dx), (self.xy, dx, dy), (self.yy, dy, dy)):
                total.addr_(u, v, alpha=self.count * share)
        self.mean_x.add_(dx, alpha=share)
        self.mean_y.add_(dy, alpha=share)
        self.count += count

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Adds up the moments of all processes of the group, in place on each; O(dx² + dy²) communication.

        Every rank gets the same bits. Call it once, after the last update: a second call would count all rows again.

        Raises:
            ValueError: on every rank, if one has seen no rows or if columns or dtypes differ.
            RuntimeError: a process died or did not answer within the timeout of the group, or there is no group.
        """
        collective.agree(self.header, group)
        self.reduce(group)

    @torch.no_grad()
    def reduce(self, group: dist.ProcessGroup | None) -> None:
        """`all_reduce` without the exchange of headers, for callers that have done it."""
        own = torch.cat([self.mean_x.new_tensor([self.count]), self.mean_x, self.mean_y])
        gathered = [torch.empty_like(own) for _ in range(collective.size(group))]
        with collective.answering():
            dist.all_gather(gathered, own, group=group)
        every = torch.stack(gathered)
        counts, means = every[:, 0], every[:, 1:]
        mean = means.mT @ (counts / counts.sum())
        dx, dy = (self.mean_x - mean[: len(self.mean_x)]), (self.mean_y - mean[len(self.mean_x) :])
        for total, u, v in ((self.xx, dx, dx), (self.xy, dx, dy), (self.yy, dy, dy)):
            total.addr_(u, v, alpha=self.count)  # now about the common mean, so that sums simply add up
        flat = torch.cat([self.xx.flatten(), self.xy.flatten(), self.yy.flatten()])
        with collective.answering():
            dist.all_reduce(flat, group=group)
        totals = self.xx, self.xy, self.yy
        for total, part in zip(totals, flat.split([t.numel() for t in totals])):
            total.copy_(part.view_as(total))
        self.mean_x, self.mean_y = mean.split([len(self.mean_x), len(self.mean_y)])
        self.count = int(counts.sum())

    def header(self) -> dict[str, Any]:
        """What the accumulators of all processes must have in common."""
        if not self.count:
            raise ValueError("moments must hold at least one row, got none: call update first")
        assert self.input_dtype is not None
        dx, dy = self.xy.shape
        dtype = dtype_name(self.input_dtype)
        return {"function": "all_reduce", "columns of x": dx, "columns of y": dy, "dtype": dtype}

    def covariance(self, ridge: float | Sequence[float] = 0.0) -> Covariance:
        """The covariances, divided by `count - 1`, with the ridge on their diagonals, and the means; all fp64.

        Args:
            ridge: a number or a pair (rx, ry), >= 0.

        Raises:
            ValueError: another ridge, or fewer than 2 rows.
        """
        rx, ry = _checks.ridges(ridge)
        if self.count < 2:
            raise ValueError(f"moments must hold at least 2 rows, got {self.count}")
        scale = 1 / (self.count - 1)
        xx, xy, yy = (s * scale for s in (self.xx, self.xy, self.yy))
        return Covariance(ridged(xx, rx), xy, ridged(yy, ry), self.mean_x.clone(), self.mean_y.clone())

    def to(self, device: torch.device | str) -> MomentAccumulator:
        """Moves the totals to a device; one without fp64 leaves them where they are."""
        if self.count and widest_dtype(torch.device(device)) == torch.float64:
            for name in self._TENSORS:
                setattr(self, name, getattr(self, name).to(device))
        return self

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in types that `torch.load(weights_only=True)` accepts."""
        tensors = {name: getattr(self, name).clone() for name in self._TENSORS} if self.count else {}
        return {"count": self.count, "dtype": self.dtype, "input_dtype": self.input_dtype, **tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a `state_dict`. ValueError if keys are missing or the columns differ from those of earlier rows."""
        missing = {"count", "dtype", "input_dtype", *(self._TENSORS if state.get("count") else ())} - state.keys()
        if missing:
            raise ValueError(
                f"state is missing keys {', '.join(sorted(missing))}; pass the result of MomentAccumulator.state_dict()"
            )
        if self.count and state["count"]:
            self._refuse_other_columns("state", tuple(state["xy"].shape))
        self.count, self.dtype, self.input_dtype = state["count"], state["dtype"], state["input_dtype"]
        for name in self._TENSORS if self.count else ():
            setattr(self, name, state[name].clone())

    def _refuse_other_columns(self, name: str, got: tuple[int, ...]) -> None:
        want = tuple(self.xy.shape)
        if got != want:
            raise ValueError(f"{name} must have {want[0]} and {want[1]} columns as before, got {got[0]} and {got[1]}")


def _like(mean: Tensor, x: Tensor) -> Tensor:
    """A mean in the type and on the device of x."""
    return mean.to(x.dtype).to(x.device)
