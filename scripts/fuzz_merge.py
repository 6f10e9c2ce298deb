"""Mutates headers, indexes and adapter configurations: every mutant is merged or refused in one line, in time.

    python -m scripts.fuzz_merge --count 10000
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from numllm.errors import NumLLMError
from numllm.merge import merge
from scripts.merge_inputs import write_inputs

SECONDS, MEMORY = 5.0, 256 << 20
"""What a mutant may take: a wall-clock time with room for a busy machine, and memory above the start's, in bytes."""

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, [10**400] * 20, 0.5, 1e308, "", "none", "all", "\0",
    "../x", "/etc/passwd", "x" * 10_000, "(a+)+$", "(", [], {}, [[]], {"": ""}, ["q_proj"], [0, 8], [-1, 2**63],
    {"q_proj": 4}, "F32", "I8", "BF16", "pissa", "model-1-of-2.safetensors", "model.layers.0.q_proj.weight",
]


def mutated(value: Any, rng: random.Random) -> Any:
    """The JSON value with one node changed: replaced, removed, repeated, renamed or nudged."""
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            nodes.append((node, key))
            walk(child)

    walk(value)
    if not nodes:
        return rng.choice(VALUES)
    owner, key = rng.choice(nodes)
    act = rng.randrange(5)
    if act == 0:
        del owner[key]
    elif act == 1 and isinstance(owner, dict):
        names = [key + "x", key[:-1], "../" + key, "", "use_dora", "bias", "modules_to_save"]
        owner[rng.choice(names)] = owner.pop(key)
    elif act == 2 and isinstance(owner[key], int) and not isinstance(owner[key], bool):
        owner[key] += rng.choice([-8, -1, 1, 8, 2**40])
    elif act == 3 and isinstance(owner[key], str) and owner[key]:
        place = rng.randrange(len(owner[key]))
        owner[key] = owner[key][:place] + chr(rng.randrange(1, 300)) + owner[key][place + 1 :]
    else:
        owner[key] = json.loads(json.dumps(rng.choice(VALUES)))
    return value


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """One to three mutations of a JSON file; now and then a repeated key or a flipped byte as well."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        value = mutated(value, rng)
    text = json.dumps(value).encode()
    if rng.random() < 0.1 and text.startswith(b"{") and len(text) > 2:
        text = b'{"r": 1, ' + text[1:]
    return mutate_bytes(text, rng) if rng.random() < 0.1 else text


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped bytes, or a tail cut off or grown."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
    act = rng.random()
    return bytes(found[: rng.randrange(len(found) + 1)]) if act < 0.2 else bytes(found) + b"\0" * (act < 0.3)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A changed header, with its length put right or not; or changed bytes anywhere."""
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.15:
        return mutate_bytes(data[: 8 + length], rng) + data[8 + length :]
    header = mutate_json(data[8 : 8 + length], rng)
    claimed = len(header) if rng.random() < 0.9 else rng.choice([0, 1, len(header) + 9, 2**40, 2**64 - 1])
    return struct.pack("<Q", claimed) + header + data[8 + length :]


TARGETS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "base/config.json": mutate_json, "base/model.safetensors.index.json": mutate_json,
    "base/model-1-of-2.safetensors": mutate_safetensors, "domain/adapter_config.json": mutate_json,
    "domain/adapter_model.safetensors": mutate_safetensors,
}


def campaign(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Outcomes counted by file; AssertionError with the seed of the mutant that broke a promise."""
    write_inputs(folder, width=8, layers=2)
    outcomes: dict[str, int] = {}
    adapters = [(folder / "domain", 1.0), (folder / "numeric", 0.5)]
    merge(folder / "base", adapters, folder / "first")
    shutil.rmtree(folder / "first")
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        target = rng.choice(list(TARGETS))
        path = folder / target
        good = path.read_bytes()
        path.write_bytes(TARGETS[target](good, rng))
        # Every tenth that plans is written out too: arithmetic must not meet what the plan let through.
        begun, write = time.perf_counter(), number % 10 == 0
        try:
            merge(folder / "base", adapters, folder / "out", method="exact", dry_run=not write, verify=write)
            outcome = "merged"
        except NumLLMError as error:
            outcome = "refused"
            assert "\n" not in str(error) and len(str(error)) < 2000, f"{seed} {number}: {str(error)[:200]!r}"
            assert not (folder / "out").exists(), f"{seed} {number}: refused, yet something was written"
        except BaseException as error:
            raise AssertionError(f"mutant {seed} {number} of {target}: {type(error).__name__}: {error}") from error
        took = time.perf_counter() - begun
        assert took < SECONDS, f"mutant {seed} {number} of {target} took {took:.1f} s"
        shutil.rmtree(folder / "out", ignore_errors=True)
        path.write_bytes(good)
        outcomes[f"{target}: {outcome}"] = outcomes.get(f"{target}: {outcome}", 0) + 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) << 10
    assert grown < MEMORY, f"memory grew by {grown:,} bytes"
    return outcomes


def main() -> None:
    """Prints the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, count in sorted(campaign(Path(folder), arguments.count, arguments.seed).items()):
            print(f"{name} {count}")
    print(f"{arguments.count} mutants in {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
