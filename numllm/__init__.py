"""numllm: numeric-sensitive language models for Chinese finance, from textbooks to merged weights.

Public names are resolved when first used, so `import numllm` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
