"""Evaluation: choice questions and held-out text to accuracies with intervals, comparisons, perplexities."""

from .contamination import mark_overlaps, overlaps
from .perplexity import perplexity
from .provenance import hashes, model_files, provenance
from .run import evaluate
from .scoring import BATCH_TOKENS, Probe, log_probabilities
from .statistics import (
    across_seeds,
    calibration,
    compare,
    compare_all,
    confidence,
    flips,
    holm,
    mcnemar,
    share_of_letters,
    summarise,
    tally,
    wilson,
)
from .submission import submission

__all__ = [
    "BATCH_TOKENS", "Probe", "across_seeds", "calibration", "compare", "compare_all", "confidence", "evaluate", "flips",
    "hashes", "holm", "log_probabilities", "mark_overlaps", "mcnemar", "model_files", "overlaps", "perplexity",
    "provenance", "share_of_letters", "submission", "summarise", "tally", "wilson",
]
