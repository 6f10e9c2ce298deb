"""Settings of a merge: the methods by name and what goes with each."""

from __future__ import annotations

import dataclasses

from ..errors import MergeError

METHODS = ("svd", "exact", "linear", "ties", "dare", "dare-ties", "peft-ties", "knots", "core")
ENTRYWISE = ("ties", "dare", "dare-ties")
TRIMMED = ("ties", "dare", "dare-ties", "peft-ties", "knots", "core")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to merge. MergeError when the settings do not go together."""

    method: str = "svd"
    rank: int | None = None
    """svd: directions kept; None: the largest rank among the adapters, unless energy or noise says otherwise."""
    energy: float | None = None
    """svd: keep the fewest directions with this share of Σσ²."""
    noise: bool = False
    """svd: keep directions until the rest is below what rounding to the weight's dtype does anyway."""
    density: float | None = None
    """Share of the entries kept by methods that trim; None: all in `peft-ties`, 0.5 in the others."""
    seed: int = 0
    """For the random choice of dare."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise MergeError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.rank is not None and (self.method != "svd" or self.rank < 1):
            raise MergeError(
                f"rank goes with method svd and is at least 1, got rank {self.rank} with method {self.method}"
            )
        if self.energy is not None and (self.method != "svd" or not 0 < self.energy <= 1):
            raise MergeError(
                f"energy goes with method svd and is in (0, 1], got {self.energy} with method {self.method}"
            )
        if self.noise and self.method != "svd":
            raise MergeError(f"rank auto goes with method svd, got method {self.method}")
        if (self.rank is not None) + (self.energy is not None) + self.noise > 1:
            raise MergeError("rank, energy and rank auto exclude each other; give one")
        if self.density is not None and (self.method not in TRIMMED or not 0 < self.density <= 1):
            raise MergeError(
                f"density goes with {', '.join(TRIMMED)} and is in (0, 1], got {self.density} with {self.method}"
            )

    @property
    def share(self) -> float:
        """The density in force."""
        return 0.5 if self.density is None else self.density
