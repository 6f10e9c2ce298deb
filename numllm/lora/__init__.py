"""LoRA adapters on the linears of any module, several at once (LoRA, arXiv 2106.09685).

For adapters i = 1..n stacked into A (ΣR × K) and B (N × ΣR), m holding each token's scale in the columns of
its adapter and 0 elsewhere:

    s = (x Aᵀ) ⊙ m        y = x Wᵀ + bias + s Bᵀ

Which adapters a token goes through is chosen by `AdapterSet.use`.
"""

from __future__ import annotations

from .layer import LoRAEmbedding, LoRALinear
from .sets import AdapterSet, attach, carries, load_adapters
from .whole import Whole

__all__ = ["AdapterSet", "LoRAEmbedding", "LoRALinear", "Whole", "attach", "carries", "load_adapters"]
