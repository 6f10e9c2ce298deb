"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from .config import LoRAConfig
from .errors import ConfigError
from .fields import check_types

ADAPTERS = ("domain", "numeric")
"""The two adapters of the method, in the order they are stacked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Rates, ranks and the like that differ by adapter are given per adapter."""

    model: str
    """Checkpoint: folder, Hub id or demo."""
    out: str
    """Run folder."""
    corpus: str | None = None
    """Folder or file of corpus.jsonl; needed by the domain adapter."""
    numct: str | None = None
    """numct.jsonl; needed by the numeric adapter."""
    adapters: tuple[str, ...] = ADAPTERS
    """The adapters trained: both share every step, or one alone."""
    steps: int = 300
    """Optimizer steps."""
    length: int = 512
    """Tokens a row."""
    rows: int = 8
    """Rows of text a step (domain)."""
    questions: int = 8
    """Questions a step (numeric)."""
    tokens: int | None = None
    """Tokens a step of each adapter, instead of `rows` and `questions`."""
    micro_tokens: int | None = None
    """Positions that go through the model at once; a larger step is accumulated, to the same gradient."""
    loss: Literal["letter", "likelihood", "both"] = "letter"
    """Choice loss of the numeric adapter: the answer's letter, the likelihood of the options, or both weighted."""
    text_weight: float = 0.0
    """With "likelihood", "both": weight of the next-token loss on the right option's text, added to the choice loss."""
    letter_weight: float = 1.0
    """With "both": weight of the letter's loss, added to that of the likelihood."""
    varied: bool = False
    """Letters are asked in several layouts (`questions.PROMPT_FORMS`), not in FinEval's alone."""
    chat: bool = False
    """Letters are asked as a message in the checkpoint's chat template."""
    digit_weight: float = 0.0
    """With "likelihood", "both": weight of the expected distance of a right option's digits, `train.digit_loss`."""
    domain: LoRAConfig = LoRAConfig()
    numeric: LoRAConfig = LoRAConfig()
    domain_rate: float = 2e-4
    """Highest learning rate of the domain adapter."""
    numeric_rate: float = 2e-4
    """Highest learning rate of the numeric adapter."""
    domain_steps: int | None = None
    """Step at which the domain adapter is finished; default: the last."""
    numeric_steps: int | None = None
    """Step at which the numeric adapter is finished; default: the last."""
    domain_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the domain adapter's rate falls after the warm-up."""
    numeric_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the numeric adapter's rate falls after the warm-up."""
    b_ratio: float = 1.0
    """Rate of the factors B over that of the others, in both adapters; LoRA+ takes 16 or so."""
    warmup: float = 0.05
    """Share of an adapter's steps over which its rate rises."""
    last_rate: float = 0.1
    """The rate at the end, as a share of the highest."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of an adapter's gradient."""
    orthogonality: float = 0.0
    """Weight of a penalty that keeps the adapters' updates apart (see `train.penalty.overlap`)."""
    spike: float = 10.0
    """A loss this many standard deviations, and a nat, above its recent mean is skipped; 0: none is."""
    max_skips: int = 5
    """Steps in a row that an adapter may skip before the run stops."""
    validate_every: int = 0
    """Steps between looks at the held-out text and questions; 0: never."""
    heldout_corpus: str | None = None
    """Text for validation; default: the rows of `corpus` marked heldout."""
    heldout_numct: str | None = None
    """Questions for validation; default: the rows of `numct` marked heldout."""
    validation_size: int = 256
    """Texts, and questions, looked at; always the same."""
    patience: int = 0
    """Validations in a row without improvement after which an adapter ends; 0: it goes on."""
    seed: int = 0
    """Of the adapters' start and the order of the data."""
    save_every: int = 100
    """Steps between checkpoints."""
    save_minutes: float | None = None
    """Minutes after which a checkpoint is due too."""
    keep: int = 2
    """Checkpoints kept beside the best."""
    checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """What backward computes again: nothing, norms and SwiGLU, or whole layers; auto: what fits CUDA."""
    deterministic: bool = True
    """Add up in one order, so that a run gives the same bits again (see `determinism`)."""
    offload: bool = False
    """Keep what backward needs in the host's memory."""
    shard: bool = False
    """Shard the frozen model over the processes, when it does not fit on one device (FSDP2)."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder too."""
    peak_tflops: float | None = None
    """Peak of one device, to tell its utilisation by; default: by the GPU's name."""
    device: str = "cpu"
    """cpu, cuda or cuda:1; on the command line also auto, cuda where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the frozen weights; default: as on disk."""
    impl: Literal["auto", "torch", "triton", "triton-fused", "triton-produced"] = "auto"
    """What computes the adapted linears; auto: Triton kernels on CUDA."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "rows", "questions", "save_every", "keep", "max_skips", "validation_size"):
            _at_least(name, getattr(self, name), 1)
        _at_least("length", self.length, 2)  # a token, and the one it is to predict
        for name in ("validate_every", "patience"):
            _at_least(name, getattr(self, name), 0)
        for name in ("tokens", "micro_tokens", *(f"{adapter}_steps" for adapter in ADAPTERS)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("domain_rate", "numeric_rate", "b_ratio", "clip"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        for name in ("text_weight", "letter_weight", "digit_weight", "weight_decay", "spike", "orthogonality"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
        for name in ("save_minutes", "peak_tflops"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        if not 0 <= self.warmup <= 1 or not 0 <= self.last_rate <= 1:
            raise ConfigError("warmup and last_rate must be shares between 0 and 1")
        if not self.adapters or set(self.adapters) - set(ADAPTERS):
            raise ConfigError(f"adapters must be some of {', '.join(ADAPTERS)}, got {self.adapters!r}")
        self._check_together()

    def _check_together(self) -> None:
        """ConfigError for settings that contradict each other."""
        if self.text_weight and self.loss == "letter":
            raise ConfigError("text_weight needs the loss likelihood or both: the letter loss scores no text")
        if self.digit_weight and self.loss == "letter":
            raise ConfigError("digit_weight needs the loss likelihood or both: the letter loss scores no digits")
        if (self.varied or self.chat) and self.loss == "likelihood":
            raise ConfigError("varied and chat are about letters: they need the loss letter or both")
        for adapter in ADAPTERS:
            if (own := getattr(self, f"{adapter}_steps")) is not None and own > self.steps:
                raise ConfigError(f"{adapter}_steps is {own}, more than the run's {self.steps} steps")
        for name in ("tokens", "micro_tokens"):
            if (value := getattr(self, name)) is not None and value < self.length:
                raise ConfigError(f"{name} must hold at least one row of {self.length} tokens, got {value}")
        if self.patience and not self.validate_every:
            raise ConfigError("patience needs validation; give --validate-every")
        if self.orthogonality and len(self.adapters) < 2:
            raise ConfigError("orthogonality is between two adapters; give --adapters both or leave it at 0")

    def lora(self, adapter: str) -> LoRAConfig:
        """The LoRA settings of an adapter."""
        return getattr(self, adapter)

    def end(self, adapter: str) -> int:
        """The step at which an adapter is finished."""
        return getattr(self, f"{adapter}_steps") or self.steps

    def rate(self, adapter: str, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up, then the adapter's schedule to last_rate of the highest."""
        highest, steps = getattr(self, f"{adapter}_rate"), self.end(adapter)
        warmup = round(self.warmup * steps)
        if step < warmup:
            return highest * (step + 1) / warmup
        share = (step - warmup) / max(steps - warmup, 1)
        schedule = getattr(self, f"{adapter}_schedule")
        if schedule == "constant":
            return highest
        left = 0.5 * (1 + math.cos(math.pi * share)) if schedule == "cosine" else 1 - share
        return highest * (self.last_rate + (1 - self.last_rate) * left)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        kind = "positive whole number" if least == 1 else f"whole number of at least {least}"
        raise ConfigError(f"{name} must be a {kind}, got {value}")
