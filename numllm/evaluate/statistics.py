"""Accuracies with intervals, calibration, and paired comparisons of evaluation results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import EvaluationError

Z95 = 1.959963984540054
"""0.975 quantile of the normal distribution."""

Json = dict[str, Any]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)."""
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"wanted 0 ≤ correct ≤ n and n ≥ 1, got {correct} of {n}")
    share, z = correct / n, Z95
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + side) / (1 + z * z / n) for side in (-half, half))
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)


def tally(rows: Iterable[Json]) -> Json:
    """{"n", "correct", "accuracy", "ci95"} of the rows that have an answer; None where there are none."""
    right = [row["predicted"] == row["answer"] for row in rows if row["answer"] is not None]
    n, correct = len(right), sum(right)
    return {
        "n": n, "correct": correct, "accuracy": correct / n if n else None,
        "ci95": list(wilson(correct, n)) if n else None,
    }


def _by(rows: Sequence[Json], key: str) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for row in rows:
        if row.get(key):
            found.setdefault(row[key], []).append(row)
    return found


def _macro(parts: Iterable[Sequence[Json]]) -> float | None:
    """Mean of the parts' accuracies."""
    shares = [tally["accuracy"] for tally in map(tally, parts) if tally["n"]]
    return math.fsum(shares) / len(shares) if shares else None


def _split(rows: Sequence[Json], key: str) -> Json:
    return {
        "numeric": tally(row for row in rows if row[key]),
        "non_numeric": tally(row for row in rows if not row[key]),
    }


def summarise(rows: Sequence[Json]) -> Json:
    """The accuracies of result rows: overall, numeric and not, by domain and by subject (each split too).

    "accuracy" is per question (micro); "macro" is the mean over subjects, "macro_domains" over domains.
    "any_digit" splits by the plain rule, "by_numeric_kind" as `questions.numeric_kind` says.
    """
    domains = _by(rows, "domain")
    return {
        "overall": {
            **tally(rows), "macro": _macro(_by(rows, "subject").values()),
            "macro_domains": _macro(domains.values()),
        },
        **_split(rows, "numeric"),
        "any_digit": _split(rows, "any_digit"),
        "by_numeric_kind": {name: tally(part) for name, part in sorted(_by(rows, "numeric_kind").items())},
        "by_domain": {
            name: {**tally(part), "macro": _macro(_by(part, "subject").values()), **_split(part, "numeric")}
            for name, part in domains.items()
        },
        "by_subject": {
            name: {**tally(part), **_split(part, "numeric")} for name, part in _by(rows, "subject").items()
        },
        "unanswered": sum(row["answer"] is None for row in rows),
    }


def share_of_letters(answers: Iterable[str | None]) -> dict[str, float]:
    """Share of each answer among those given."""
    counts = Counter(answer for answer in answers if answer is not None)
    total = sum(counts.values())
    return {answer: counts[answer] / total for answer in sorted(counts)}


def confidence(row: Json) -> float | None:
    """The share of probability on the predicted answer, softmax over the answers' scores; None without scores."""
    scores = list(row["logprobs"].values())
    if not scores:
        return None
    top = max(scores)
    return 1 / math.fsum(math.exp(score - top) for score in scores)


def calibration(rows: Iterable[Json], bins: int = 10) -> Json:
    """{"error", "bins": [{"low", "high", "n", "confidence", "accuracy", "ci95"}]} of the answered rows with scores.

    error: Σ n_b / n · |accuracy_b − confidence_b| (expected calibration error) over bins of equal width.
    """
    parts: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row in rows:
        sure = confidence(row) if row["answer"] is not None else None
        if sure is not None:
            parts[min(int(sure * bins), bins - 1)].append((sure, row["predicted"] == row["answer"]))
    total = sum(map(len, parts))
    found = []
    for index, part in enumerate(parts):
        if part:
            correct = sum(right for _, right in part)
            found.append({
                "low": index / bins, "high": (index + 1) / bins, "n": len(part),
                "confidence": math.fsum(sure for sure, _ in part) / len(part), "accuracy": correct / len(part),
                "ci95": list(wilson(correct, len(part))),
            })
    error = math.fsum(b["n"] / total * abs(b["accuracy"] - b["confidence"]) for b in found) if total else None
    return {"error": error, "bins": found}


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: min(1, 2 · Σ_{k ≤ min(a, b)} C(n, k) / 2ⁿ), n = a + b."""
    n, term, total = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        total += term
        term = term * (n - k) // (k + 1)  # C(n, k + 1), exactly
    return min(1.0, 2 * total / 2**n)


def _answered(result: Json, which: str) -> dict[str, Json]:
    rows = result.get("questions") if isinstance(result, dict) else None
    keys = ("id", "answer", "predicted", "numeric")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and all(k in r for k in keys) for r in rows):
        raise EvaluationError(f"the {which} result is not an evaluation result: it lacks rows of questions")
    return {row["id"]: row for row in rows if row["answer"] is not None}


def compare(result_a: Json, result_b: Json, *, seed: int = 0, resamples: int = 10_000) -> Json:
    """Paired comparison of two evaluation results on the questions both have, B against A.

    {"n", "accuracy_a", "accuracy_b", "difference_points" (B − A), "ci95_points" (bootstrap over questions),
    "only_a", "only_b" (questions only one has right), "p_value" (`mcnemar`), "verdict" ("not distinguishable"
    when p ≥ 0.05, else "A is better" or "B is better")}, the same of the numeric and the non-numeric
    questions, and "not_shared": questions that one result lacks. EvaluationError when they share none or an
    answer differs.
    """
    a, b = _answered(result_a, "first"), _answered(result_b, "second")
    both = [name for name in a if name in b]
    if not both:
        raise EvaluationError("the results share no answered question; evaluate both on the same questions")
    for name in both:
        if a[name]["answer"] != b[name]["answer"]:
            raise EvaluationError(f"question {name} has two answers; the results are of different questions")

    def outcome(names: list[str]) -> Json:
        right = [
            tuple(side[name]["predicted"] == side[name]["answer"] for side in (a, b)) for name in names
        ]
        return _paired(right, np.random.default_rng(seed), resamples)

    return {
        **outcome(both),
        "numeric": outcome([name for name in both if a[name]["numeric"]]),
        "non_numeric": outcome([name for name in both if not a[name]["numeric"]]),
        "not_shared": len(a) + len(b) - 2 * len(both),
    }


def _verdict(only_a: int, only_b: int, p: float) -> str:
    if p >= 0.05:
        return "not distinguishable"
    return "B is better" if only_b > only_a else "A is better"


def _paired(right: Sequence[tuple[bool, bool]], rng: np.random.Generator, resamples: int) -> Json:
    n = len(right)
    if not n:
        return {"n": 0}
    only_a = sum(first and not second for first, second in right)
    only_b = sum(second and not first for first, second in right)
    # Resampling questions is a multinomial draw over the three differences −1, +1 and 0.
    drawn = rng.multinomial(n, [only_a / n, only_b / n, (n - only_a - only_b) / n], size=resamples)
    points = 100 * (drawn[:, 1] - drawn[:, 0]) / n
    p = mcnemar(only_a, only_b)
    return {
        "n": n,
        "accuracy_a": sum(first for first, _ in right) / n,
        "accuracy_b": sum(second for _, second in right) / n,
        "difference_points": 100 * (only_b - only_a) / n,
        "ci95_points": [float(bound) for bound in np.quantile(points, (0.025, 0.975))],
        "only_a": only_a, "only_b": only_b, "p_value": p,
        "verdict": _verdict(only_a, only_b, p),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each of m tests (1979): the running maximum of min(1, (m − i) p₍ᵢ₎), i from 0, p ascending.

    Below 0.05 exactly for the tests that Holm's step-down rule rejects at a family-wise 5 %.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compare_all(results: Mapping[str, Json], *, seed: int = 0, resamples: int = 10_000) -> list[Json]:
    """Each result against the first (`compare`), with the verdicts corrected for the number of comparisons.

    Adds "a" and "b" (names) and, for all, numeric and non-numeric questions, "p_holm": `holm` over the results,
    group by group; the verdict says "not distinguishable" when p_holm ≥ 0.05.
    """
    (base, first), *others = results.items()
    found = [{"a": base, "b": name, **compare(first, other, seed=seed, resamples=resamples)} for name, other in others]
    for group in (None, "numeric", "non_numeric"):
        outcomes = [outcome if group is None else outcome[group] for outcome in found]
        tested = [outcome for outcome in outcomes if outcome["n"]]
        for outcome, p in zip(tested, holm([outcome["p_value"] for outcome in tested]), strict=True):
            outcome |= {"p_holm": p, "verdict": _verdict(outcome["only_a"], outcome["only_b"], p)}
    return found


def flips(result_a: Json, result_b: Json) -> list[Json]:
    """Questions that one of two results has right and the other wrong: {"id", "subject", "question", "options",
    "answer", "a", "b", "gained"}, gained meaning that B has it right; the gained first."""
    a, b = _answered(result_a, "first"), _answered(result_b, "second")
    found = []
    for name in a:
        if name in b and (a[name]["predicted"] == a[name]["answer"]) != (b[name]["predicted"] == b[name]["answer"]):
            row = b[name]
            found.append({
                "id": name, "subject": row.get("subject", ""), "question": row.get("question", ""),
                "options": row.get("options", []), "answer": row["answer"], "a": a[name]["predicted"],
                "b": row["predicted"], "gained": row["predicted"] == row["answer"],
            })
    return sorted(found, key=lambda row: not row["gained"])


def across_seeds(
    base: Json | Sequence[Json], runs: Sequence[Json], *, seed: int = 0, resamples: int = 10_000
) -> Json:
    """What runs of one recipe with several seeds gain over the base, for all, numeric and non-numeric questions.

    base: what all runs are compared with, or for each run its own, as that of another recipe with its seed.

    {"seeds", "n", "accuracy" (mean over seeds), "spread" (standard deviation over seeds, n − 1; None for one seed),
    "each" (accuracy of each seed), "difference_points" (mean gain on the base), "ci95_points"}; the interval is a
    bootstrap over questions of the gain averaged over the seeds: it tells what other questions would show, and the
    spread what other seeds would. EvaluationError when the runs are of other questions than the base.
    """
    bases = [_answered(one, "first") for one in ([base] * len(runs) if isinstance(base, Mapping) else base)]
    others = [_answered(run, "second") for run in runs]
    if not others or len(bases) != len(others) or not bases[0]:
        raise EvaluationError("wanted answered questions, at least one run, and one base or as many as runs")
    own = bases[0]
    if any(set(run) != set(own) for run in (*bases, *others)):
        raise EvaluationError("the runs are of other questions than the base; evaluate all on the same")
    rng = np.random.default_rng(seed)

    def outcome(names: list[str]) -> Json:
        if not names:
            return {"seeds": len(others), "n": 0}
        before, after = (
            np.array([[run[name]["predicted"] == run[name]["answer"] for name in names] for run in found], dtype=float)
            for found in (bases, others)
        )
        gains = after.mean(0) - before.mean(0)
        each = after.mean(1)
        # Resampling questions is a multinomial draw over the distinct gains.
        values, counts = np.unique(gains, return_counts=True)
        drawn = rng.multinomial(len(names), counts / len(names), size=resamples) @ values * 100 / len(names)
        return {
            "seeds": len(others), "n": len(names), "accuracy": float(each.mean()),
            "spread": float(each.std(ddof=1)) if len(each) > 1 else None, "each": [float(value) for value in each],
            "difference_points": float(100 * gains.mean()),
            "ci95_points": [float(bound) for bound in np.quantile(drawn, (0.025, 0.975))],
        }

    return {
        **outcome(list(own)), "numeric": outcome([name for name in own if own[name]["numeric"]]),
        "non_numeric": outcome([name for name in own if not own[name]["numeric"]]),
        "by_domain": {
            domain: outcome([name for name in own if own[name].get("domain") == domain])
            for domain in dict.fromkeys(row["domain"] for row in own.values() if row.get("domain"))
        },
    }
