"""Folds LoRA adapters into a checkpoint, on its safetensors files, without building the model.

For the adapters i with weights wᵢ and scales sᵢ, stacked into B̂ = [wᵢ sᵢ Bᵢ] (N × R) and  = [Aᵢ] (R × K):

    Δ = Σ wᵢ sᵢ Bᵢ Aᵢ = B̂ Â        W' = round(W + Δₖ)

`exact` takes Δ whole; `svd` takes the closest Δₖ of rank k, from the QR of B̂ and Âᵀ and the SVD of the small
R_B R_Aᵀ, so no dense N × K matrix is ever decomposed. ‖Δ − Δₖ‖²_F = Σ_{j>k} σⱼ². The sum is taken in fp64
and rounded once: every element is the number of the base's dtype nearest to the exact sum. `methods` has the
others.

Plan (from headers) → check → write → verify. A thread holds one row block and one module's factors at a time;
only a merged adapter is held whole before it is written.
"""

from .extraction import extract
from .factors import compare, decompose
from .layout import copy_range
from .options import METHODS, Options
from .plan import REPORT, MergePlan, Source, plan_merge, read_weights
from .run import merge, run_merge
from .summary import by_kind, by_layer
from .verify import verify_merge

__all__ = [
    "METHODS", "REPORT", "MergePlan", "Options", "Source", "by_kind", "by_layer", "compare", "copy_range", "decompose",
    "extract", "merge", "plan_merge", "read_weights", "run_merge", "verify_merge",
]
