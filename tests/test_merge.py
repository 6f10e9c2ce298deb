"""numllm.merge: equal to PEFT where PEFT is right, to fp64 in every bit, and whole or not there at all."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from models import save, transformers_model
from safetensors.torch import load_file, save_file

from numllm.adapter import read_adapter, write_adapter
from numllm.checkpoint import Checkpoint, write_safetensors
from numllm.errors import AdapterError, CheckpointError, MergeError, NumLLMError
from numllm.merge import (
    REPORT,
    Options,
    Source,
    copy_range,
    decompose,
    merge,
    methods,
    plan_merge,
    rounding,
    run_merge,
    verify_merge,
    write,
)
from numllm.merge.factors import Product, _decomposed, compare_all

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

SHAPES = {"q_proj": (64, 64), "v_proj": (32, 64), "gate_proj": (96, 64), "down_proj": (64, 96)}


def modules(*names: str) -> dict[str, tuple[int, int]]:
    return {
        f"model.layers.{layer}.{'mlp' if name in ('gate_proj', 'down_proj') else 'self_attn'}.{name}": SHAPES[name]
        for layer in range(2) for name in names
    }


def adapter(folder: Path, rank: int, *targets: str, seed: int, size: float = 0.1) -> Path:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * size

    factors = {name: (draw(rank, k), draw(n, rank)) for name, (n, k) in modules(*targets).items()}
    write_adapter(folder, factors, rank=rank, alpha=6, targets=targets)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[tuple[Path, float]]:
    """Two adapters of unlike ranks and targets that share some modules."""
    return [
        (adapter(tmp_path / "domain", 4, "q_proj", "gate_proj", "down_proj", seed=1), 0.7),
        (adapter(tmp_path / "numeric", 3, "q_proj", "v_proj", "down_proj", seed=2), -0.4),
    ]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], Path]:
    """The folder of a Qwen2 of a dtype, made once and only read."""
    @functools.cache
    def made(dtype: torch.dtype) -> Path:
        return save(transformers_model("qwen2", dtype=dtype), tmp_path_factory.mktemp("base") / "base")

    return made


@pytest.fixture
def base(tmp_path: Path, bases: Callable[[torch.dtype], Path]) -> Path:
    """A copy of one's own."""
    return shutil.copytree(bases(torch.float32), tmp_path / "base")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def deltas(adapters: list[tuple[Path, float]]) -> dict[str, torch.Tensor]:
    """Σ w s B A in fp64, dense."""
    total: dict[str, torch.Tensor] = {}
    for folder, weight in adapters:
        for name, factors in read_adapter(folder, whole=True).factors.items():
            change = weight * factors.scale * factors.b.double() @ factors.a.double()
            total[f"{name}.weight"] = total.get(f"{name}.weight", 0) + change
    return total


def truncated(delta: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def nearest(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The number of `dtype` nearest to each fp64 number, ties to even, found by trying the neighbours."""
    guess = x.to(dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    bits = guess.view(integer)
    candidates = torch.stack([(bits + step).view(dtype) for step in (-1, 0, 1)])
    distance = (candidates.double() - x).abs().nan_to_num(math.inf, math.inf, math.inf)
    odd = torch.stack([(bits + step) & 1 for step in (-1, 0, 1)])
    best = distance.amin(dim=0)
    choice = torch.where(distance == best, odd, 2).argmin(dim=0, keepdim=True)
    return candidates.view(integer).gather(0, choice)[0].view(dtype)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("base", "domain", "numeric"))


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_exact_equals_peft_cat(tmp_path: Path, base: Path, two: list[tuple[Path, float]], weight: float) -> None:
    """PEFT's add_weighted_adapter("cat") and merge_and_unload, in fp32."""
    adapters = [(folder, weight) for folder, _ in two]
    merge(base, adapters, tmp_path / "out", method="exact", verify=True)
    model = peft.PeftModel.from_pretrained(transformers_model("qwen2"), str(two[0][0]), adapter_name="a")
    model.load_adapter(str(two[1][0]), "b")
    model.add_weighted_adapter(["a", "b"], [weight, weight], "both", combination_type="cat")
    model.set_adapter("both")
    wanted = model.merge_and_unload().state_dict()
    found = weights(tmp_path / "out")
    assert set(found) == set(wanted)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("method", "rank"), [("exact", None), ("svd", None), ("svd", 2), ("svd", 7)])
def test_no_element_is_misrounded(
    tmp_path: Path, bases: Callable[[torch.dtype], Path], two: list[tuple[Path, float]], dtype: torch.dtype,
    method: str, rank: int | None,
) -> None:
    base = bases(dtype)
    merge(base, two, tmp_path / "out", method=method, rank=rank)
    before, after, change = weights(base), weights(tmp_path / "out"), deltas(two)
    for name, tensor in after.items():
        assert tensor.dtype == dtype
        if name not in change:
            assert torch.equal(tensor, before[name])
            continue
        kept = 7 if method == "exact" else rank or 4
        wanted = nearest(before[name].double() + truncated(change[name], kept), dtype)
        assert int((tensor != wanted).sum()) == 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1031), (517, 300), (700, 900), (1, 200_000)], ids=str)
def test_rounding_of_large_and_odd_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    """Enough elements for double rounding to show (a plain fp64 → fp32 → bf16 errs once in 2¹⁷), several blocks."""
    monkeypatch.setattr(methods, "BLOCK", 1 << 16)
    n, k = shape
    generator = torch.Generator().manual_seed(n * k)
    weight = (torch.randn(n, k, generator=generator) * 2e-3).to(dtype)
    (tmp_path / "base").mkdir()
    write_safetensors(tmp_path / "base" / "model.safetensors", {"x.weight": weight})
    (tmp_path / "base" / "config.json").write_text("{}")
    a, b = torch.randn(5, k, generator=generator) * 0.1, torch.randn(n, 5, generator=generator) * 0.01
    write_adapter(tmp_path / "domain", {"x": (a, b)}, rank=5, alpha=3, targets=["x"])
    report = merge(tmp_path / "base", [(tmp_path / "domain", 0.3)], tmp_path / "out", method="exact", verify=True)
    wanted = nearest(weight.double() + 0.3 * 0.6 * b.double() @ a.double(), dtype)
    found = weights(tmp_path / "out")["x.weight"]
    assert int((found != wanted).sum()) == 0
    row = report["tensors"]["x.weight"]
    assert row["elements_changed"] == int((found != weight).sum()) == report["overall"]["elements_changed"]
    assert row["weight_norm"] == pytest.approx(float(weight.double().norm()), rel=1e-9)


@pytest.mark.parametrize("seed", range(24))
def test_random_configurations_against_fp64(tmp_path: Path, seed: int) -> None:
    """Random shapes, ranks, numbers of adapters, scales, weights, sizes and dtypes: no element is mis-rounded."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype = (torch.bfloat16, torch.float16, torch.float32)[seed % 3]
    shapes = {f"m.{index}.x": (rng.randint(1, 300), rng.randint(1, 300)) for index in range(3)}
    size = 10.0 ** rng.uniform(-3, 0)
    tensors = {f"{name}.weight": (torch.randn(*shape, generator=generator) * size).to(dtype)
               for name, shape in shapes.items()}
    (tmp_path / "base").mkdir()
    write_safetensors(tmp_path / "base" / "model.safetensors", tensors)
    (tmp_path / "base" / "config.json").write_text("{}")
    adapters = []
    for index in range(rng.randint(1, 5)):
        rank, kind = rng.randint(1, 40), rng.choice([torch.float32, torch.bfloat16, torch.float16])
        chosen = rng.sample(sorted(shapes), rng.randint(1, 3))
        factors = {name: ((torch.randn(rank, shapes[name][1], generator=generator) * 0.1).to(kind),
                          (torch.randn(shapes[name][0], rank, generator=generator) * size).to(kind))
                   for name in chosen}
        write_adapter(tmp_path / f"a{index}", factors, rank=rank, alpha=rng.uniform(1, 64), targets=chosen)
        adapters.append((tmp_path / f"a{index}", rng.choice([-1, 1]) * rng.uniform(0.1, 2)))
    merge(tmp_path / "base", adapters, tmp_path / "out", method="exact", verify=True)
    change, after = deltas(adapters), weights(tmp_path / "out")
    for name, tensor in tensors.items():
        wanted = nearest(tensor.double() + change.get(name, 0), dtype)
        assert int((after[name] != wanted).sum()) == 0, name


@pytest.mark.parametrize("careful", [False, True], ids=["by-bits", "careful"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_at_the_middles(dtype: torch.dtype, careful: bool) -> None:
    """Next to every middle between two neighbours, subnormals included, and at the end of the range."""
    small = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).double()
    small = small[small.isfinite()].unique()
    middles = (small[1:] + small[:-1]) / 2
    nudge = middles.abs().clamp_min(2.0**-140) * 2.0**-40
    x = torch.cat([small, middles, middles + nudge, middles - nudge])
    found = rounding.nearest(x, dtype) if careful else rounding.Rounder(len(x), dtype)(x)
    wanted = nearest(x, dtype)
    assert torch.equal(found.double(), wanted.double())


def test_svd_error_is_the_tail(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    """‖Δ − Δₖ‖² = Σ_{j>k} σⱼ², and the report says so."""
    report = merge(base, two, tmp_path / "out", rank=2)
    before, after, change = weights(base), weights(tmp_path / "out"), deltas(two)
    for name, row in report["tensors"].items():
        sigma = torch.linalg.svdvals(change[name])
        error = ((after[name].double() - before[name].double()) - change[name]).square().sum()
        assert float(error) == pytest.approx(float(sigma[2:].square().sum()), rel=1e-4)
        assert row["rank_kept"] == 2
        assert row["singular_values"] == pytest.approx(sigma[: row["rank"]].tolist(), rel=1e-9)
        energy = float(sigma[:2].square().sum() / sigma.square().sum())
        assert row["energy_kept"] == pytest.approx(energy, rel=1e-9)
        assert row["delta_norm"] == pytest.approx(float(sigma[:2].norm()), rel=1e-9)
        assert row["delta_norm_relative"] == pytest.approx(
            float(sigma[:2].norm() / before[name].double().norm()), rel=1e-9
        )


def test_svd_at_full_rank_is_exact(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    exact = merge(base, two, tmp_path / "exact", method="exact")
    full = merge(base, two, tmp_path / "full", rank=7)
    left, right = weights(tmp_path / "exact"), weights(tmp_path / "full")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert exact["overall"]["energy_kept"] == full["overall"]["energy_kept"] == 1.0


def test_cosines(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    """In factored form as in dense; the sign of a weight counts; modules of one adapter have none."""
    report = merge(base, two, tmp_path / "out")
    first, second = deltas(two[:1]), deltas(two[1:])
    for name, row in report["tensors"].items():
        if name in first and name in second:
            wanted = torch.nn.functional.cosine_similarity(first[name].view(-1), second[name].view(-1), dim=0)
            assert row["cosines"] == {"domain · numeric": pytest.approx(float(wanted), abs=1e-12)}
        else:
            assert row["cosines"] == {}


def test_comparisons_do_not_hang_on_how_many_wait(
    tmp_path: Path, base: Path, two: list[tuple[Path, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = merge(base, two, tmp_path / "together")["tensors"]
    sizes: list[int] = []
    real = write.add_comparisons
    monkeypatch.setattr(write, "COMPARED", 1)
    monkeypatch.setattr(write, "add_comparisons", lambda found: (sizes.append(len(found)), real(found)))
    alone = merge(base, two, tmp_path / "alone")["tensors"]
    assert set(sizes) <= {0, 1, 2} and sum(sizes) == len(alone)  # two threads may come at once
    for name, row in together.items():
        assert row["cosines"].keys() == alone[name]["cosines"].keys()
        for pair, cosine in row["cosines"].items():
            assert alone[name]["cosines"][pair] == pytest.approx(cosine, abs=1e-12)
            for side, angles in row["principal_angles"][pair].items():
                assert alone[name]["principal_angles"][pair][side] == pytest.approx(angles, abs=1e-12)


def test_what_is_compared_together_is_what_is_compared_alone() -> None:
    """Among others of its sizes: a change of lower rank than its factors, and one that is nothing."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        b, a = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((9, rank), (rank, 8)))
        return b, a

    changes = [{"x": drawn(3), "y": drawn(2)} for _ in range(4)] + [{"x": drawn(2), "y": drawn(2), "z": drawn(4)}]
    changes[1]["x"][0][:, 2] = changes[1]["x"][0][:, 0]
    changes[2]["y"][1].zero_()
    found = compare_all(changes)
    for parts, (cosines, angles) in zip(changes, found, strict=True):
        for i, j in itertools.combinations(parts, 2):
            dense = [(b @ a).view(-1) for b, a in (parts[i], parts[j])]
            if all(map(torch.any, dense)):
                wanted = torch.nn.functional.cosine_similarity(*dense, dim=0)
                assert cosines[f"{i} · {j}"] == pytest.approx(float(wanted), abs=1e-12)
            else:
                assert cosines[f"{i} · {j}"] is None
            sides = {"output": [parts[n][0] for n in (i, j)], "input": [parts[n][1].T for n in (i, j)]}
            for side, matrices in sides.items():
                bases = [torch.linalg.svd(x)[0][:, : int(torch.linalg.matrix_rank(x))] for x in matrices]
                wanted = torch.linalg.svdvals(bases[0].T @ bases[1]).tolist()
                assert angles[f"{i} · {j}"][side] == pytest.approx(wanted, abs=1e-9)
    assert len(found[1][1]["x · y"]["output"]) == 2 and found[2][1]["x · y"]["input"] == []
    assert compare_all([{"x": drawn(2)}, {}]) == [({}, {}), ({}, {})]


@pytest.mark.parametrize(("merging", "copying"), [(10, 3), (3, 10), (0, 4), (4, 0), (0, 0), (1, 1)])
def test_copying_is_spread_among_merging(merging: int, copying: int) -> None:
    done: list[str] = []
    tasks = write._mixed(
        [lambda n=n: done.append(f"m{n}") for n in range(merging)],
        [lambda n=n: done.append(f"c{n}") for n in range(copying)],
    )
    for task in tasks:
        task()
    assert sorted(done) == sorted([f"m{n}" for n in range(merging)] + [f"c{n}" for n in range(copying)])
    assert [each for each in done if each[0] == "m"] == [f"m{n}" for n in range(merging)]
    if (merging, copying) == (10, 3):
        assert [place for place, each in enumerate(done) if each[0] == "c"] == [1, 4, 8]


@pytest.mark.parametrize("spread", [0.0, 1.0, 1.7, 2.0, 2.5, 5.0, 16.0])
@pytest.mark.parametrize("shape", [(40, 6, 90), (300, 32, 200), (5, 12, 9), (20, 20, 20)])
def test_decompose_is_the_svd_of_the_product(spread: float, shape: tuple[int, int, int]) -> None:
    """Columns of b that span `spread` powers of ten: by Cholesky, and by QR where that would not be exact."""
    rows, rank, columns = shape
    generator = torch.Generator().manual_seed(rank)
    b = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    b *= torch.logspace(0, -spread, rank, dtype=torch.float64)
    b = b @ torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0]
    a = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    u, s, v = decompose(b, a)
    size, one = float(s[0]), torch.eye(len(s), dtype=torch.float64)
    torch.testing.assert_close(s, torch.linalg.svdvals(b @ a)[: len(s)], rtol=0, atol=1e-13 * size)
    torch.testing.assert_close((u * s) @ v, b @ a, rtol=0, atol=1e-13 * size)
    for basis in (u.T @ u, v @ v.T):
        torch.testing.assert_close(basis, one, rtol=0, atol=1e-13)
    short = Product(b, a, vectors=False)
    # The triangles alone: the square of the condition they are made of is in their error.
    torch.testing.assert_close(short.singular, s, rtol=0, atol=1e-9 * size)
    assert decompose(b, a)[0].equal(u)


@pytest.mark.parametrize("condition", [3.0, 500.0, 1e8])
def test_a_basis_and_its_triangle_give_the_matrix(condition: float) -> None:
    """As near as LAPACK's QR does: a triangle of one Cholesky factor alone would be ten times as far away."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(300, 20, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))
    x = q * torch.logspace(0, -math.log10(condition), 20, dtype=torch.float64) @ v.T
    y, turn, r = _decomposed(x)
    basis = y @ turn
    torch.testing.assert_close(basis @ r, x, rtol=0, atol=5e-16)
    torch.testing.assert_close(basis.T @ basis, torch.eye(20, dtype=torch.float64), rtol=0, atol=5e-15)


def test_decompose_is_deterministic_in_sign() -> None:
    torch.manual_seed(0)
    b, a = torch.randn(20, 4, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    u, s, v = decompose(b, a)
    torch.testing.assert_close((u * s) @ v, b @ a)
    torch.testing.assert_close(u.T @ u, torch.eye(4, dtype=torch.float64))
    assert bool((u.gather(0, u.abs().argmax(dim=0, keepdim=True)) > 0).all())
    again, _, other = decompose(-b, -a)
    torch.testing.assert_close(again, u)
    torch.testing.assert_close(other, v)


def test_more_rank_than_the_weight_has(tmp_path: Path) -> None:
    """Σr above min(N, K)."""
    weight = torch.randn(6, 9)
    (tmp_path / "base").mkdir()
    write_safetensors(tmp_path / "base" / "model.safetensors", {"x.weight": weight})
    (tmp_path / "base" / "config.json").write_text("{}")
    adapters = []
    for name in ("domain", "numeric"):
        factors = {"x": (torch.randn(5, 9), torch.randn(6, 5))}
        write_adapter(tmp_path / name, factors, rank=5, alpha=5, targets=["x"])
        adapters.append((tmp_path / name, 1.0))
    wanted = weight.double() + deltas(adapters)["x.weight"]
    for method in ("exact", "svd"):
        out = tmp_path / method
        rank = 100 if method == "svd" else None
        report = merge(tmp_path / "base", adapters, out, method=method, rank=rank, verify=True)
        assert report["tensors"]["x.weight"]["rank_kept"] == 6
        torch.testing.assert_close(weights(out)["x.weight"], wanted.float(), rtol=1e-6, atol=1e-6)
    merge(tmp_path / "base", adapters, tmp_path / "as", method="exact", as_="adapter", verify=True)
    torch.testing.assert_close(deltas([(tmp_path / "as", 1.0)])["x.weight"], wanted - weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shard", ["10GB", "60KB"], ids=["one-file", "sharded"])
def test_transformers_loads_the_result(tmp_path: Path, two: list[tuple[Path, float]], shard: str) -> None:
    base = save(transformers_model("qwen2", dtype=torch.bfloat16), tmp_path / "base", max_shard_size=shard)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    merge(base, two, tmp_path / "out", method="exact", verify=True)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) > 1 or shard == "10GB"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*before, REPORT, "README.md"])
    for name in files:
        left, right = base / name, tmp_path / "out" / name
        start = min(info.start for info in Checkpoint.open(base).tensors.values() if info.file.name == name)
        assert left.read_bytes()[:start] == right.read_bytes()[:start]
    load = transformers.AutoModelForCausalLM.from_pretrained
    merged, wanted = (load(folder, dtype=torch.float32).eval() for folder in (tmp_path / "out", base))
    change = deltas(two)
    with torch.no_grad():
        for name, weight in wanted.named_parameters():
            if name in change:
                weight.copy_(nearest(weight.double() + change[name], torch.bfloat16))
        tokens = torch.randint(160, (2, 9))
        assert torch.equal(merged(tokens).logits, wanted(tokens).logits)


@pytest.mark.parametrize(("method", "rank", "wanted_rank"), [("exact", None, 7), ("svd", None, 4), ("svd", 2, 2)])
def test_as_adapter_loads_in_peft(
    tmp_path: Path, base: Path, two: list[tuple[Path, float]], method: str, rank: int | None, wanted_rank: int
) -> None:
    out = tmp_path / "out"
    report = merge(base, two, out, method=method, rank=rank, as_="adapter", verify=True)
    merge(base, two, tmp_path / "model", method=method, rank=rank)
    written = read_adapter(out)
    assert {info.rank for info in written.modules.values()} == {wanted_rank} == {report["overall"]["rank_kept"]}
    assert {info.scale for info in written.modules.values()} == {1.0}
    model = peft.PeftModel.from_pretrained(transformers_model("qwen2"), str(out)).eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = torch.randint(160, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, merged(tokens).logits, rtol=1e-4, atol=1e-4)
    for name, factors in written.factors.items():
        norms = factors.b.double().norm(dim=0), factors.a.double().norm(dim=1)
        torch.testing.assert_close(*norms, rtol=1e-5, atol=1e-6)
        row = report["tensors"][f"{name}.weight"]
        torch.testing.assert_close(
            norms[0].square()[: row["rank_kept"]],
            torch.tensor(row["singular_values"][: row["rank_kept"]], dtype=torch.float64), rtol=1e-5, atol=1e-9,
        )


def test_as_adapter_names_modules_in_full_where_ends_would_name_too_many(tmp_path: Path, base: Path) -> None:
    name = "model.layers.1.self_attn.q_proj"
    write_adapter(tmp_path / "domain", {name: (torch.ones(2, 64), torch.ones(64, 2))}, rank=2, alpha=2, targets=[name])
    merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", as_="adapter", verify=True)
    assert read_adapter(tmp_path / "out").config["target_modules"] == [name]
    model = peft.PeftModel.from_pretrained(transformers_model("qwen2"), str(tmp_path / "out"))
    assert sum(isinstance(module, peft.tuners.lora.Linear) for module in model.modules()) == 1


def test_what_is_carried_along(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    carried = ["tokenizer.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE",
               "additional_chat_templates/tool.jinja", "modeling_x.py"]
    dropped = ["pytorch_model.bin", "pytorch_model.bin.index.json", "other.safetensors", "x.gguf", "training_args.bin",
               "adapter_config.json", ".hidden", "optimizer.pt", REPORT, "original/params.json"]
    for name in carried + dropped:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(f'"{name}"')
    merge(base, two, tmp_path / "out", verify=True)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    wanted = {*carried, "config.json", "generation_config.json", "model.safetensors", REPORT, "README.md"}
    assert found == wanted
    assert all((tmp_path / "out" / name).read_bytes() == (base / name).read_bytes() for name in carried)


def test_the_report(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    report = merge(base, two, tmp_path / "out", verify=True)
    assert json.loads((tmp_path / "out" / REPORT).read_text())["tensors"] == report["tensors"]
    overall = report["overall"]
    assert overall["tensors_changed"] == len(report["tensors"]) == 8
    assert overall["verified"] and all(overall["checks"].values())
    assert 0 < overall["energy_kept"] < 1 and overall["seconds"] > 0
    assert overall["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name not in (REPORT, "README.md")
    )
    files = report["inputs"]["base"]["sha256"]
    assert files["model.safetensors"] == hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    assert set(files) == {path.name for path in base.iterdir()}
    names = [(entry["name"], entry["weight"], entry["rank"]) for entry in report["inputs"]["adapters"]]
    assert names == [("domain", 0.7, 4), ("numeric", -0.4, 3)]


def test_the_same_again(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    """Bit for bit, on one thread or two, block by block or at once."""
    before = torch.get_num_threads()
    merge(base, two, tmp_path / "first")
    try:
        torch.set_num_threads(3)
        merge(base, two, tmp_path / "second")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    name = "model.safetensors"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize(("method", "dtype"), [
    ("exact", torch.float32), ("svd", torch.float16), *((m, torch.bfloat16) for m in ("exact", "ties", "dare-ties")),
], ids=str)
def test_a_devices_way_gives_the_same(
    tmp_path: Path, bases: Callable[[torch.dtype], Path], two: list[tuple[Path, float]], dtype: torch.dtype, method: str
) -> None:
    """What is done on a GPU, done on the CPU."""
    base = bases(dtype)
    merge(base, two, tmp_path / "one", method=method)
    sources = [Source(read_adapter(folder, whole=True), weight, folder.name) for folder, weight in two]
    plan = plan_merge(Checkpoint.open(base), sources, Options(method=method), device=torch.device("cpu"))
    report = run_merge(plan, tmp_path / "two", verify=True)
    assert report["overall"]["verified"]
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["exact", "svd", "ties", "dare"])
def test_on_a_gpu(
    tmp_path: Path, bases: Callable[[torch.dtype], Path], two: list[tuple[Path, float]], method: str
) -> None:
    base = bases(torch.bfloat16)
    merge(base, two, tmp_path / "cpu", method=method)
    merge(base, two, tmp_path / "gpu", method=method, device="cuda", verify=True)
    assert (tmp_path / "cpu/model.safetensors").read_bytes() == (tmp_path / "gpu/model.safetensors").read_bytes()


def test_refuses_devices(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    refused(base, two, tmp_path / "out", "must be cpu or cuda", device="meta")
    refused(base, two, tmp_path / "out", "'cuda:99' is not available here", device="cuda:99")
    refused(base, two, tmp_path / "out", "'gpu' is not available here", device="gpu")


def test_dry_run_writes_nothing(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    report = merge(base, two, tmp_path / "out", dry_run=True)
    assert leftovers(tmp_path) == []
    assert report["overall"]["tensors_changed"] == 8 and report["overall"]["bytes"] > 100_000
    assert all(row["rank_kept"] == min(4, row["rank"]) for row in report["tensors"].values())


def test_overwrite(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    with pytest.raises(NumLLMError, match="not empty"):
        merge(base, two, out)
    assert (out / "precious.txt").exists()
    merge(base, two, out, overwrite=True)
    assert not (out / "precious.txt").exists() and (out / "model.safetensors").exists()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_copies_without_range_copy(
    tmp_path: Path, base: Path, two: list[tuple[Path, float]], monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """Where the system has no copy_file_range between the files, or none at all, bytes are read and written."""
    merge(base, two, tmp_path / "one")

    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    merge(base, two, tmp_path / "two", verify=True)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_copy_range_of_a_file_that_shrinks(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with open(tmp_path / "a", "rb") as a, open(tmp_path / "b", "wb+") as b:
        copy_range(a.fileno(), b.fileno(), 1, 4, 1)
        with pytest.raises(CheckpointError, match="shorter"):
            copy_range(a.fileno(), b.fileno(), 1, 9, 1)
    assert (tmp_path / "b").read_bytes()[1:4] == b"234"


@pytest.mark.parametrize(("function", "number"), [
    ("copy_file_range", errno.ENOSPC), ("copy_file_range", errno.EIO), ("pwrite", errno.ENOSPC),
    ("pwrite", errno.EIO), ("fsync", errno.EIO), ("replace", errno.EACCES),
])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, base: Path, two: list[tuple[Path, float]], monkeypatch: pytest.MonkeyPatch, function: str,
    number: int,
) -> None:
    def fail(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(NumLLMError, match=os.strerror(number)) as caught:
            merge(base, two, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []
    merge(base, two, tmp_path / "out", verify=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing(
    tmp_path: Path, base: Path, two: list[tuple[Path, float]], error: type[BaseException]
) -> None:
    def progress(iterable: Any, total: int | None = None, description: str = "", unit: str = "it") -> Any:
        for place, item in enumerate(iterable):
            if place == 3:
                raise error
            yield item

    with pytest.raises(error):
        merge(base, two, tmp_path / "out", progress=progress)
    assert leftovers(tmp_path) == []


def test_an_input_that_changes_meanwhile(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    def progress(iterable: Any, total: int | None = None, description: str = "", unit: str = "it") -> Any:
        os.utime(base / "model.safetensors", ns=(1, 1))
        return iterable

    with pytest.raises(MergeError, match="changed while"):
        merge(base, two, tmp_path / "out", progress=progress)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("as_", ["model", "adapter"])
def test_verify_finds_one_flipped_bit(
    tmp_path: Path, base: Path, two: list[tuple[Path, float]], name: str, as_: str
) -> None:
    out = tmp_path / "out"
    merge(base, two, out, as_=as_)
    plan = plan_merge(Checkpoint.open(base), [Source(read_adapter(f), w, f.name) for f, w in two])
    assert all(verify_merge(plan, out, as_=as_).values())
    path = out / ("model.safetensors" if as_ == "model" else "adapter_model.safetensors")
    at = Checkpoint.open(out).info(name).start + 5 if as_ == "model" else path.stat().st_size - 5
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(MergeError, match="is not what was written"):
        verify_merge(plan, out, as_=as_)


def test_a_base_in_the_hubs_cache(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    """Its files are links to blobs; the result holds files."""
    merge(base, two, tmp_path / "plain")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in list(base.iterdir()):
        path.rename(blobs / path.name[::-1])
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name[::-1])
    merge(snapshot, two, tmp_path / "out", verify=True)
    for path in (tmp_path / "plain").iterdir():
        assert not (tmp_path / "out" / path.name).is_symlink()
        if path.name not in (REPORT, "README.md"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def refused(base: Path, adapters: list[tuple[Path, float]], out: Path, match: str, **options: Any) -> None:
    with pytest.raises((MergeError, AdapterError), match=match) as caught:
        merge(base, adapters, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf, 1e308, -1e40])
def test_refuses_weights(tmp_path: Path, base: Path, two: list[tuple[Path, float]], weight: float) -> None:
    refused(base, [two[0], (two[1][0], weight)], tmp_path / "out", r"a number other than 0 and smaller than 1e\+40")


def test_refuses_options(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    refused(base, [], tmp_path / "out", "at least one")
    refused(base, two, tmp_path / "out", "method must be", method="slerp")
    refused(base, two, tmp_path / "out", "rank goes with", method="exact", rank=4)
    refused(base, two, tmp_path / "out", "rank goes with", rank=0)
    refused(base, two, tmp_path / "out", "as must be", as_="gguf")


def test_refuses_the_same_adapter_twice(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    (tmp_path / "numeric" / "x").mkdir()
    twin = tmp_path / "numeric" / "x" / ".."
    refused(base, [two[1], (twin, 1.0)], tmp_path / "out", "given twice")


def test_refuses_an_untrained_adapter(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    zero = {name: (torch.ones(2, k), torch.zeros(n, 2)) for name, (n, k) in modules("q_proj").items()}
    write_adapter(tmp_path / "domain", zero, rank=2, alpha=2, targets=["q_proj"])
    refused(base, two, tmp_path / "out", "never trained")


@pytest.mark.parametrize("place", [".", "x", "x/y"])
def test_refuses_outputs_in_inputs(tmp_path: Path, base: Path, two: list[tuple[Path, float]], place: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    for folder in (base, two[0][0]):
        with pytest.raises(MergeError, match="overlap"):
            merge(base, two, folder / place, overwrite=True)
    with pytest.raises(MergeError, match="overlap"):
        merge(base, two, tmp_path, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_refuses_a_full_disk(
    tmp_path: Path, base: Path, two: list[tuple[Path, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("numllm.merge.run.shutil.disk_usage", lambda _: Usage)
    refused(base, two, tmp_path / "out", "1,000 free")
    refused(base, two, tmp_path / "out", "1,000 free", dry_run=True)


def test_refuses_an_adapter_of_another_model(tmp_path: Path, base: Path) -> None:
    name = "model.layers.7.self_attn.q_proj"
    write_adapter(tmp_path / "domain", {name: (torch.ones(2, 64), torch.ones(64, 2))}, rank=2, alpha=2,
                  targets=["q_proj"])
    refused(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", "another model")


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens"])
def test_refuses_tied_heads(tmp_path: Path, target: str) -> None:
    base = save(transformers_model("qwen2-tied"), tmp_path / "base")
    factors = {target: (torch.ones(2, 64), torch.ones(160, 2))}
    write_adapter(tmp_path / "domain", factors, rank=2, alpha=2, targets=[target])
    refused(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", "ties its head")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_merges_an_untied_head_whose_copy_is_the_bases(tmp_path: Path, base: Path) -> None:
    model = peft.get_peft_model(transformers_model("qwen2"), peft.LoraConfig(r=2, target_modules=["lm_head"]))
    with torch.no_grad():
        model.base_model.model.lm_head.lora_B["default"].weight.fill_(0.1)
    model.save_pretrained(tmp_path / "domain")
    merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", method="exact", verify=True)
    wanted = model.merge_and_unload().lm_head.weight
    torch.testing.assert_close(weights(tmp_path / "out")["lm_head.weight"], wanted.detach(), rtol=0, atol=1e-6)
    other = save(transformers_model("qwen2", seed=5), tmp_path / "other")
    refused(other, [(tmp_path / "domain", 1.0)], tmp_path / "no", "stores its own lm_head.weight")


def test_a_missing_head_is_a_tied_one(tmp_path: Path, base: Path) -> None:
    """Whatever the configuration says or leaves out."""
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors")
    for target in ("lm_head", "model.embed_tokens"):
        factors = {target: (torch.ones(2, 64), torch.ones(160, 2))}
        write_adapter(tmp_path / "domain", factors, rank=2, alpha=2, targets=[target])
        refused(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", "ties its head")


def change_weight(base: Path, value: torch.Tensor) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.weight"] = value
    save_file(tensors, path, metadata={"format": "pt"})


def test_refuses_quantised_bases(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    change_weight(base, torch.zeros(64, 64, dtype=torch.int8))
    refused(base, two, tmp_path / "out", "is I8")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    refused(base, two, tmp_path / "out", r"quantised \(gptq\)")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_a_damaged_base(tmp_path: Path, base: Path, two: list[tuple[Path, float]], value: float) -> None:
    weight = torch.zeros(64, 64)
    weight[63, 63] = value
    change_weight(base, weight)
    refused(base, two, tmp_path / "out", "holds NaN or infinity")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_refuses_overflow(tmp_path: Path, base: Path, two: list[tuple[Path, float]], dtype: torch.dtype) -> None:
    change_weight(base, torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype))
    refused(base, [(two[0][0], torch.finfo(dtype).max * 0.5)], tmp_path / "out", "overflows")
    assert leftovers(tmp_path) == []


def test_refuses_links_out_of_the_base(tmp_path: Path, base: Path, two: list[tuple[Path, float]]) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (base / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    refused(base, two, tmp_path / "out", "link to outside")
