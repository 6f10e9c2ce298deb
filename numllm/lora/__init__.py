"""LoRA adapters on the linears and embeddings of any module, several at once (LoRA, arXiv 2106.09685).

For adapters i = 1..n stacked into A (ΣR × K) and B (N × ΣR), m holding each token's scale in the columns of
its adapter and 0 elsewhere:

    s = (x Aᵀ) ⊙ m        y = x Wᵀ + bias + s Bᵀ

Beside them an adapter may have biases and modules of its own, trained whole. Which adapters a token goes through is
chosen by `AdapterSet.use`.
"""

from __future__ import annotations

from .embedding import LoRAEmbedding
from .layer import LoRALinear
from .sets import AdapterSet, attach, load_adapters
from .targets import carries
from .whole import Whole

__all__ = ["AdapterSet", "LoRAEmbedding", "LoRALinear", "Whole", "attach", "carries", "load_adapters"]
