"""PEFT's adapter_config.json: what is honoured, what makes no difference, and what is refused by its key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .errors import AdapterError, DataError, short
from .files import read_json

CONFIG = "adapter_config.json"

_REFUSED = {
    "trainable_token_indices": "it replaces rows of the embedding",
    "target_parameters": "LoRA on bare parameters is not read",
    "layer_replication": "it changes the base's layers",
    "alora_invocation_tokens": "it acts only after certain tokens, so it is not a change of the weights",
    "use_qalora": "its A is over pooled inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it trains a diagonal between the factors",
    "monteclora_config": "it samples its factors",
    "velora_config": "it is not known to leave B A as it is",
    "megatron_config": "Megatron's split linears are not read",
    "ensure_weight_tying": "it ties adapters of the embedding and the head",
}
"""Configuration keys that must be absent, null, false, empty or "none", and why."""

_BEYOND = {
    "bias": "trained biases replace the base's",
    "lora_bias": "it adds to the base's biases",
    "modules_to_save": "it replaces whole modules of the base",
    "fan_in_fan_out": "the base's weights are stored transposed",
}
"""Keys of adapters that are more than Δ = scale · B A on stored (N, K) weights, and why."""

_MERGE_ONLY = ("fan_in_fan_out",)
"""Those that a merge honours and a running model does not."""

_INERT = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora",
    "use_rslora",
}  # fmt: skip
"""Keys that are read here, or that do not change what a trained adapter computes."""

_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights, beside true and false, that leave the base's weights as they are."""

_MOVED_STARTS = re.compile(r"pissa(_niter_\d+)?|olora|corda")
"""Those that took the adapter's start off the base's weights: W − scale · B₀ A₀ was trained on."""


def read_config(folder: Path, *, whole: bool = False, running: bool = False) -> dict[str, Any]:
    """The checked adapter_config.json of a folder; whole: with the keys that a merge honours; running: with those that
    a running model does.

    AdapterError, in one line, naming the key that cannot be honoured.
    """
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such adapter folder; give the folder that holds {CONFIG}")
    where = folder / CONFIG
    if not where.is_file():
        raise AdapterError(f"{folder}: lacks {CONFIG}; it is not a PEFT adapter")
    try:
        config = read_json(where)
    except DataError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(config, dict):
        raise AdapterError(f"{where}: wanted a JSON object, got {type(config).__name__}")
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{where}: peft_type must be LORA, got {short(config.get('peft_type'))}")
    for key, value in config.items():
        if not value or value == "none":
            continue
        if key in _BEYOND and (whole or running and key not in _MERGE_ONLY):
            continue
        if key in _BEYOND:
            raise AdapterError(
                f"{where}: {key}={short(value)} is not supported on a running model: {_BEYOND[key]}; fold the "
                "adapter into its base with numllm merge first"
            )
        if key in _REFUSED:
            raise AdapterError(f"{where}: {key}={short(value)} is not supported: {_REFUSED[key]}")
        if key not in _INERT:
            raise AdapterError(
                f"{where}: {key}={short(value)} is not known; take the key out if the adapter is B A without it"
            )
    start = config.get("init_lora_weights", True)
    known = start is None or isinstance(start, bool) or start in _STARTS
    if not known and not (whole and moves_base(config)):
        raise AdapterError(
            f"{where}: init_lora_weights={short(start)} is not supported: it changed the base's weights; "
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    if whole or running:
        _check_beyond(where, config)
    _check_numbers(where, config)
    return config


def moves_base(config: dict[str, Any]) -> bool:
    """Whether the adapter was trained on W − scale · B₀ A₀, its start taken off the base's weights."""
    start = config.get("init_lora_weights")
    return isinstance(start, str) and bool(_MOVED_STARTS.fullmatch(start))


def _check_beyond(where: Path, config: dict[str, Any]) -> None:
    bias, saved = config.get("bias") or "none", config.get("modules_to_save") or []
    if bias not in ("none", "all", "lora_only"):
        raise AdapterError(f"{where}: bias must be none, all or lora_only, got {short(bias)}")
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise AdapterError(f"{where}: modules_to_save must be a list of names, got {short(saved)}")
    for key in ("lora_bias", "fan_in_fan_out"):
        if not isinstance(config.get(key) or False, bool):
            raise AdapterError(f"{where}: {key} must be true or false, got {short(config[key])}")
    if config.get("use_dora") and config.get("fan_in_fan_out"):
        raise AdapterError(f"{where}: use_dora with fan_in_fan_out is not supported: the norms are of columns then")


def _check_numbers(where: Path, config: dict[str, Any]) -> None:
    def positive(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    def finite(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and value != 0

    for key, good, wanted in (
        ("r", positive, "a positive whole number"), ("lora_alpha", finite, "a finite number other than 0"),
    ):
        if not good(config.get(key)):
            raise AdapterError(f"{where}: {key} must be {wanted}, got {short(config.get(key))}")
        pattern = "rank_pattern" if key == "r" else "alpha_pattern"
        values = config.get(pattern) or {}
        if not isinstance(values, dict):
            raise AdapterError(f"{where}: {pattern} must map modules to numbers, got {short(values)}")
        for name, value in values.items():
            if not good(value):
                raise AdapterError(f"{where}: {pattern} of {short(name)} must be {wanted}, got {short(value)}")
            _compile(where, pattern, name)
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key) or False, bool):
            raise AdapterError(f"{where}: {key} must be true or false, got {short(config[key])}")


def _compile(where: Path, key: str, pattern: str) -> re.Pattern[str]:
    """The pattern as PEFT reads it: the whole name, or its end after a dot.

    Patterns come with files of strangers: those that could take exponential time (a repeated group) or a high
    power of the name's length are refused.
    """
    if len(pattern) > 500 or re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
        raise AdapterError(f"{where}: {key}: the pattern {short(pattern)} is too involved; name the modules instead")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise AdapterError(f"{where}: {key}: {short(pattern)} is not a regular expression: {error}") from error


def of_module(folder: Path, config: dict[str, Any], key: str, default: str, name: str) -> Any:
    """The value of rank_pattern or alpha_pattern for a module: the first pattern that matches, else the default."""
    for pattern, value in (config.get(key) or {}).items():
        if _compile(folder / CONFIG, key, pattern).match(name):
            return value
    return config[default]
