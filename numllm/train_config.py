"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math

from .config import LoRAConfig
from .errors import ConfigError

ADAPTERS = ("domain", "numeric")
"""The two adapters of the method, in the order they are stacked."""
SCHEDULES = ("cosine", "linear", "constant")
CHECKPOINTING = ("auto", "none", "selective", "full")


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
    steps: int = 300
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
    loss: str = "letter"
    """Choice loss of the numeric adapter: "letter", "likelihood", or "both"."""
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
    numeric_rate: float = 2e-4
    domain_steps: int | None = None
    """Step at which the domain adapter is finished; None: the last."""
    numeric_steps: int | None = None
    """Step at which the numeric adapter is finished; None: the last."""
    domain_schedule: str = "cosine"
    """How the domain adapter's rate falls after the warm-up: "cosine", "linear" or "constant"."""
    numeric_schedule: str = "cosine"
    warmup: float = 0.05
    """Share of an adapter's steps over which its rate rises."""
    last_rate: float = 0.1
    """The rate at the end, as a share of the highest."""
    weight_decay: float = 0.0
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
    """Text for validation; None: the rows of `corpus` marked heldout."""
    heldout_numct: str | None = None
    """Questions for validation; None: the rows of `numct` marked heldout."""
    validation_size: int = 256
    """Texts, and questions, looked at; always the same."""
    patience: int = 0
    """Validations in a row without improvement after which an adapter ends; 0: it goes on."""
    seed: int = 0
    save_every: int = 100
    """Steps between checkpoints."""
    save_minutes: float | None = None
    """Minutes after which a checkpoint is due too."""
    keep: int = 2
    """Checkpoints kept beside the best."""
    checkpointing: str = "auto"
    """What backward computes again: "none", "selective" (norms, SwiGLU), "full"; "auto": what fits CUDA."""
    offload: bool = False
    """Keep what backward needs in the host's memory."""
    device: str = "cpu"
    dtype: str | None = None
    """float32, bfloat16 or float16 of the frozen weights; None: as on disk."""
    impl: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "length", "rows", "questions", "save_every", "keep", "max_skips", "validation_size"):
            _whole(name, getattr(self, name), 1)
        for name in ("validate_every", "patience"):
            _whole(name, getattr(self, name), 0)
        for name in ("tokens", "micro_tokens", *(f"{adapter}_steps" for adapter in ADAPTERS)):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        for name in ("domain_rate", "numeric_rate", "clip"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        for name in ("text_weight", "letter_weight", "digit_weight", "weight_decay", "spike", "orthogonality"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
        if self.save_minutes is not None and not (math.isfinite(self.save_minutes) and self.save_minutes > 0):
            raise ConfigError(f"save_minutes must be a positive number, got {self.save_minutes!r}")
        if not 0 <= self.warmup <= 1 or not 0 <= self.last_rate <= 1:
            raise ConfigError("warmup and last_rate must be shares between 0 and 1")
        if not self.adapters or set(self.adapters) - set(ADAPTERS):
            raise ConfigError(f"adapters must be some of {', '.join(ADAPTERS)}, got {self.adapters!r}")
        if "domain" in self.adapters and self.corpus is None:
            raise ConfigError("the domain adapter needs a corpus; give --corpus or --adapters numeric")
        if "numeric" in self.adapters and self.numct is None:
            raise ConfigError("the numeric adapter needs choice questions; give --numct or --adapters domain")
        for name, allowed in (
            ("loss", ("letter", "likelihood", "both")), ("domain_schedule", SCHEDULES), ("numeric_schedule", SCHEDULES),
            ("checkpointing", CHECKPOINTING), ("dtype", (None, "float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in allowed:
                wanted = ", ".join(value for value in allowed[:-1] if value)
                raise ConfigError(f"{name} must be {wanted} or {allowed[-1]}, got {getattr(self, name)!r}")
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


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        kind = "positive whole number" if least else "whole number of at least 0"
        raise ConfigError(f"{name} must be a {kind}, got {value!r}")
