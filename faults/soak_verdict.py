"""Whether a soak's figures grow: the trend of each over the part that is measured, its noise, and what is allowed.

Arithmetic on numbers that others have collected; knows of no process and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

__all__ = ["Allowed", "Check", "Trend", "flat", "rate_is_flat", "trend"]

#: A moment in seconds, and the figure then.
Sample = tuple[float, float]

#: The samples are put together into so many blocks, so that one which follows the last one closely is no news.
_BLOCKS = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict."""

    what: str
    seen: str
    expected: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through samples, by least squares: the `mean`, the `growth` over all of them, its `error`.

    The error is one standard deviation of the growth, from what the line leaves unexplained.
    """

    mean: float
    growth: float
    error: float


@dataclass(frozen=True, slots=True)
class Allowed:
    """How much a figure may grow over the measured part: the larger of a `share` of its mean and a `number`.

    `noisy`: or as much as chance alone may well do, three standard deviations, where that is more.
    """

    share: float = 0.0
    number: float = 0.0
    noisy: bool = False

    def of(self, seen: Trend) -> float:
        """The most that it may have grown."""
        return max(self.share * abs(seen.mean), self.number, 3 * seen.error if self.noisy else 0.0)


def trend(samples: Sequence[Sample]) -> Trend:
    """The trend of these samples, at least three of them, in the order of their time."""
    blocks = _blocks(samples)
    count = len(blocks)
    mean_at, mean = sum(at for at, _ in blocks) / count, sum(value for _, value in blocks) / count
    spread = sum((at - mean_at) ** 2 for at, _ in blocks)
    slope = sum((at - mean_at) * (value - mean) for at, value in blocks) / spread
    rest = sum((value - mean - slope * (at - mean_at)) ** 2 for at, value in blocks)
    lasts = samples[-1][0] - samples[0][0]
    return Trend(mean, slope * lasts, sqrt(rest / max(1, count - 2) / spread) * lasts)


def _blocks(samples: Sequence[Sample]) -> list[Sample]:
    if len(samples) < 3:
        raise ValueError(f"a trend needs three samples at least, not {len(samples)}")
    size = max(1, len(samples) // _BLOCKS)
    whole = len(samples) // size * size
    # What does not fill a block is left out at the beginning.
    pieces = [samples[at : at + size] for at in range(len(samples) - whole, len(samples), size)]
    return [(sum(at for at, _ in piece) / size, sum(value for _, value in piece) / size) for piece in pieces]


def flat(what: str, samples: Sequence[Sample], allowed: Allowed, unit: str = "") -> Check:
    """Whether a figure has not grown by more than is allowed."""
    if len(samples) < 3:
        return Check(what, f"{len(samples)} samples", "at least 3", passed=False)
    seen = trend(samples)
    most = allowed.of(seen)
    words = f"{seen.growth:+,.1f} ± {seen.error:,.1f}{unit} around {seen.mean:,.0f}{unit}"
    return Check(what, words, f"at most +{most:,.1f}{unit}", seen.growth <= most)


def rate_is_flat(what: str, samples: Sequence[Sample], begin: float, end: float, share: float) -> Check:
    """Whether what only ever rises has risen no faster in the last third from `begin` to `end` than in the middle one.

    `share`: by how much of it all the same.
    """
    third = (end - begin) / 3
    values = [_at(samples, begin + part * third) for part in (1, 2, 3)]
    middle, last = (60 * (after - before) / third for before, after in pairwise(values))
    words = f"{last:,.0f} bytes/min in the last third, {middle:,.0f} in the middle one"
    return Check(what, words, f"at most {middle * (1 + share):,.0f} bytes/min", last <= middle * (1 + share))


def _at(samples: Sequence[Sample], moment: float) -> float:
    """The figure at a moment, on the line between the samples around it."""
    before, after = samples[0], samples[-1]
    for sample in samples:
        if sample[0] <= moment:
            before = sample
        else:
            after = sample
            break
    if after[0] <= before[0]:
        return before[1]
    share = min(1.0, max(0.0, (moment - before[0]) / (after[0] - before[0])))
    return before[1] + share * (after[1] - before[1])
