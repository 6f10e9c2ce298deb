"""The methods of numllm.merge: each against its definition, dense and spelt out, and PEFT's against PEFT itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import save, transformers_model
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file

from numllm.adapter import read_adapter, write_adapter
from numllm.checkpoint import write_safetensors
from numllm.errors import MergeError
from numllm.merge import METHODS, Options, compare, merge, methods, selection
from numllm.merge.entrywise import EntrywiseDelta, elect
from numllm.merge.methods import trim
from numllm.merge.selection import smallest_kept

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

N, K = 37, 53
WEIGHTS = (0.7, -0.4, 1.3)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint of one fp32 weight, 0, so that the result is Δ rounded to fp32."""
    (tmp_path / "base").mkdir()
    write_safetensors(tmp_path / "base" / "model.safetensors", {"x.weight": torch.zeros(N, K)})
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path / "base"


@pytest.fixture
def three(tmp_path: Path) -> list[tuple[Path, float]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for index, weight in enumerate(WEIGHTS):
        factors = {"x": (torch.randn(4, K, generator=generator), torch.randn(N, 4, generator=generator))}
        write_adapter(tmp_path / f"a{index}", factors, rank=4, alpha=2 + index, targets=["x"])
        found.append((tmp_path / f"a{index}", weight))
    return found


def deltas(adapters: list[tuple[Path, float]]) -> list[torch.Tensor]:
    """sᵢ Bᵢ Aᵢ, dense, fp64."""
    read = [read_adapter(folder).factors["x"] for folder, _ in adapters]
    return [each.scale * each.b.double() @ each.a.double() for each in read]


def result(base: Path, adapters: list[tuple[Path, float]], out: Path, **options: Any) -> torch.Tensor:
    merge(base, adapters, out, verify=True, **options)
    return load_file(out / "model.safetensors")["x.weight"].double()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def mergekit(tensors: list[torch.Tensor], *, consensus: bool, normalise: bool) -> torch.Tensor:
    """mergekit's generalised task arithmetic, element by element."""
    out = torch.zeros(tensors[0].numel(), dtype=torch.float64)
    for at, values in enumerate(zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)):
        weighted = [w * v for w, v in zip(WEIGHTS, values, strict=True)]
        majority = 1 if math.fsum(weighted) >= 0 else -1
        chosen = [i for i, v in enumerate(weighted) if not consensus or v * majority > 0]
        total, divisor = math.fsum(weighted[i] for i in chosen), math.fsum(WEIGHTS[i] for i in chosen)
        out[at] = total / (divisor or 1.0) if normalise else total
    return out.view(tensors[0].shape)


def cut(tensor: torch.Tensor, density: float) -> torch.Tensor:
    smallest = tensor.abs().flatten().sort(descending=True).values[int(density * tensor.numel()) - 1]
    return torch.where(tensor.abs() >= smallest, tensor, 0.0)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
@pytest.mark.parametrize(("block", "tile"), [(1 << 17, 1 << 17), (1 << 17, 100), (100, 100)], ids=str)
def test_ties_is_mergekits(
    tmp_path: Path, base: Path, three: list[tuple[Path, float]], density: float, block: int, tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(methods, "BLOCK", block)
    monkeypatch.setattr(selection, "TILE", tile)
    found = result(base, three, tmp_path / "out", method="ties", density=density)
    close(found, mergekit([cut(delta, density) for delta in deltas(three)], consensus=True, normalise=True))


@pytest.mark.parametrize(("method", "consensus"), [("dare", False), ("dare-ties", True)])
def test_dare_is_mergekits(
    tmp_path: Path, base: Path, three: list[tuple[Path, float]], method: str, consensus: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given what was drawn, which is recovered from merges of one adapter; the draw is fair and depends on the seed."""
    masks = []
    for index, (each, delta) in enumerate(zip(three, deltas(three), strict=True)):
        alone = result(base, [(each[0], 1.0)], tmp_path / f"m{index}", method="dare", density=0.4, seed=5)
        close(alone, torch.where(alone != 0, delta / 0.4, 0.0))
        masks.append(alone != 0)
        assert abs(float(masks[-1].double().mean()) - 0.4) < 4 * math.sqrt(0.24 / (N * K))
    assert not torch.equal(masks[0], masks[1])
    dropped = [delta * mask / 0.4 for delta, mask in zip(deltas(three), masks, strict=True)]
    found = result(base, three, tmp_path / "out", method=method, density=0.4, seed=5)
    close(found, mergekit(dropped, consensus=consensus, normalise=False))
    monkeypatch.setattr(methods, "BLOCK", 100)
    monkeypatch.setattr(selection, "TILE", 100)
    assert torch.equal(result(base, three, tmp_path / "again", method=method, density=0.4, seed=5), found)
    assert not torch.equal(result(base, three, tmp_path / "other", method=method, density=0.4, seed=6), found)


def test_knots_and_core_by_their_definitions(tmp_path: Path, base: Path, three: list[tuple[Path, float]]) -> None:
    """Dense, by an SVD of the concatenated deltas (KnOTS) and of the stacked factors (core space)."""
    whole = deltas(three)
    u, s, v = torch.linalg.svd(torch.cat(whole, dim=1), full_matrices=False)
    pieces = [cut(piece, 0.3) for piece in v[:12].split(K, dim=1)]
    close(
        result(base, three, tmp_path / "knots", method="knots", density=0.3),
        (u[:, :12] * s[:12]) @ mergekit(pieces, consensus=True, normalise=True),
    )
    read = [read_adapter(folder).factors["x"] for folder, _ in three]
    left = torch.linalg.svd(torch.cat([f.scale * f.b.double() for f in read], dim=1), full_matrices=False).U
    right = torch.linalg.svd(torch.cat([f.a.double() for f in read]), full_matrices=False).Vh
    cores = [cut(left.T @ delta @ right.T, 0.3) for delta in whole]
    close(
        result(base, three, tmp_path / "core", method="core", density=0.3),
        left @ mergekit(cores, consensus=True, normalise=True) @ right,
    )


@pytest.mark.parametrize("method", ["knots", "core"])
def test_joint_subspaces_lose_nothing(
    tmp_path: Path, base: Path, three: list[tuple[Path, float]], method: str
) -> None:
    """One adapter at density 1 comes out as it went in (the election divides by the weight)."""
    found = result(base, three[:1], tmp_path / "out", method=method, density=1.0)
    close(found, deltas(three)[0])


@pytest.mark.parametrize("method", ["linear", "peft-ties"])
def test_lossy_twins_are_pefts(tmp_path: Path, method: str) -> None:
    base = save(transformers_model("qwen2"), tmp_path / "base")
    adapters = []
    torch.manual_seed(4)
    for name, weight, alpha in (("a", 0.6, 3), ("b", -0.8, 5)):
        factors = {f"model.layers.{i}.self_attn.q_proj": (torch.randn(4, 64) * 0.1, torch.randn(64, 4) * 0.1)
                   for i in range(2)}
        write_adapter(tmp_path / name, factors, rank=4, alpha=alpha, targets=["q_proj"])
        adapters.append((tmp_path / name, weight))
    model = peft.PeftModel.from_pretrained(transformers_model("qwen2"), str(adapters[0][0]), adapter_name="a")
    model.load_adapter(str(adapters[1][0]), "b")
    extra = {"density": 0.4} if method == "peft-ties" else {}
    model.add_weighted_adapter(["a", "b"], [0.6, -0.8], "c", combination_type=method.removeprefix("peft-"), **extra)
    model.set_adapter("c")
    wanted = model.merge_and_unload().state_dict()
    merge(base, adapters, tmp_path / "out", method=method, verify=True, **extra)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)


def test_linear_has_cross_terms(tmp_path: Path, base: Path, three: list[tuple[Path, float]]) -> None:
    """Why PEFT's "linear" is lossy: an adapter merged with itself at ½ gives twice its change."""
    twin = tmp_path / "twin"
    twin.mkdir()
    for path in three[0][0].iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    found = result(base, [(three[0][0], 0.5), (twin, 0.5)], tmp_path / "out", method="linear")
    close(found, 2 * deltas(three)[0])


def test_folding_one_after_another_rounds_twice(tmp_path: Path) -> None:
    """PEFT's way in bf16 is off the nearest number in a good part of the elements; one sum and one rounding is not."""
    base = save(transformers_model("qwen2", dtype=torch.bfloat16), tmp_path / "base")
    torch.manual_seed(4)
    name = "model.layers.0.self_attn.q_proj"
    for folder in ("a", "b"):
        factors = {name: (torch.randn(4, 64) * 0.1, torch.randn(64, 4) * 0.1)}
        write_adapter(tmp_path / folder, factors, rank=4, alpha=4, targets=[name])
    model = peft.PeftModel.from_pretrained(
        transformers_model("qwen2", dtype=torch.bfloat16), str(tmp_path / "a"), adapter_name="a"
    )
    model.load_adapter(str(tmp_path / "b"), "b")
    model.base_model.set_adapter(["a", "b"])
    pefts = model.merge_and_unload().get_submodule(name).weight.detach()
    adapters = [(tmp_path / folder, 1.0) for folder in ("a", "b")]
    merge(base, adapters, tmp_path / "out", method="exact", verify=True)
    found = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"]
    total = load_file(base / "model.safetensors")[f"{name}.weight"].double()
    for folder, _ in adapters:
        total += b_a(read_adapter(folder).factors[name])
    nearest = total.to(torch.bfloat16)  # by way of fp32: right but for one in 2¹⁷
    assert float((found != nearest).double().mean()) < 0.001
    assert 0.1 < float((pefts != nearest).double().mean()) < 0.6


def test_mean_of_agreeing_values_is_pefts() -> None:
    """The sign election with equal weights is PEFT's disjoint mean times the weight."""
    torch.manual_seed(0)
    values = torch.randn(3, 11, 13)
    wanted = merge_utils.ties(list(values), torch.ones(3), 0.5)
    trimmed = torch.stack([trim(value, 0.5) for value in values]).double()
    close(elect(trimmed, [1.0] * 3, divide=True), wanted.double())


def test_what_dare_keeps_is_rescaled_in_fp64(tmp_path: Path, base: Path, three: list[tuple[Path, float]]) -> None:
    """1 / 0.3 in fp32 would make a good part of the entries another fp32 number."""
    found = result(base, [(three[0][0], 1.0)], tmp_path / "out", method="dare", density=0.3)
    wanted = (deltas(three)[0] / 0.3).float().double()
    assert torch.equal(found, torch.where(found != 0, wanted, 0.0))


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0), (0.5, -0.5), (-1.0, 2.0, -1.0), (0.3, 0.3, 0.3, -0.9), (-2.0,)], ids=str
)
@pytest.mark.parametrize("divide", [True, False])
def test_election_of_signs(weights: tuple[float, ...], divide: bool) -> None:
    """Every combination of a few values, among them equal ones of unlike signs, whose sum is 0: plus is elected."""
    few = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, 5e-324], dtype=torch.float64)
    values = torch.cartesian_prod(*[few] * len(weights)).view(-1, len(weights)).T
    weighted = values * torch.tensor(weights, dtype=torch.float64)[:, None]
    wanted = []
    for column in weighted.T.tolist():
        majority = 1 if sum(column) >= 0 else -1
        chosen = [i for i, value in enumerate(column) if value * majority > 0]
        divisor = sum(weights[i] for i in chosen) if divide else 1.0
        wanted.append(sum(column[i] for i in chosen) / (divisor or 1.0))
    assert elect(weighted.clone(), weights, divide=divide).tolist() == wanted


def products(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """b and a, of a product of 40 × 50 entries."""
    torch.manual_seed(1)
    whole = {
        "equal": torch.ones(40, 50), "all zero": torch.zeros(40, 50),
        "wide": torch.randn(40, 50) * 10.0 ** torch.randint(-300, 300, (40, 50)).double(),
        "zeros": torch.randn(40, 50) * (torch.rand(40, 50) < 0.2),
        "one row": torch.randn(40, 50) * (torch.arange(40) == 17)[:, None],
        "rising": torch.arange(2000.0).view(40, 50),
    }
    if kind in whole:
        return whole[kind].double(), torch.eye(50, dtype=torch.float64)
    b, a = torch.randn(40, 3, dtype=torch.float64), torch.randn(3, 50, dtype=torch.float64)
    return (b.round(), a.round()) if kind == "few numbers" else (b, a)


@pytest.mark.parametrize("room", [1 << 16, 0], ids=["all-kept", "sampled"])
@pytest.mark.parametrize(
    "kind", ["product", "few numbers", "equal", "all zero", "wide", "zeros", "one row", "rising"]
)
def test_smallest_kept_is_the_sorted_one(kind: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "ROOM", room)
    monkeypatch.setattr(selection, "TILE", 300)
    b, a = products(kind)
    ordered = (b @ a).abs().flatten().sort(descending=True).values
    for count in (1, 2, 49, 50, 100, 399, 1000, 1999, 2000):
        assert smallest_kept(b, a, count) == float(ordered[count - 1])
    assert smallest_kept(b, a, 0) == math.inf


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-300), (3.0, math.inf), (0.0, 0.0), (1e300, math.inf)], ids=str)
def test_smallest_kept_is_found_where_the_guess_is_wrong(
    low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "ROOM", 0)
    monkeypatch.setattr(selection, "_guesses", lambda b, a, share: ([(low, high)], 50))
    b, a = products("product")
    ordered = (b @ a).abs().flatten().sort(descending=True).values
    for count in (1, 700, 2000):
        assert smallest_kept(b, a, count) == float(ordered[count - 1])


def test_smallest_kept_takes_one_pass_as_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    counted = selection._count
    monkeypatch.setattr(selection, "ROOM", 1000)
    monkeypatch.setattr(selection, "_count", lambda *args: passes.append(args) or counted(*args))
    torch.manual_seed(0)
    b, a = torch.randn(700, 8, dtype=torch.float64), torch.randn(8, 300, dtype=torch.float64)
    ordered = (b @ a).abs().flatten().sort(descending=True).values
    for count in (1, 2000, 100_000, 150_000, 209_999):
        passes.clear()
        assert smallest_kept(b, a, count) == float(ordered[count - 1])
        assert len(passes) == 1 and passes[0][4] < b.shape[0] * a.shape[1] / 2


def test_what_is_kept_does_not_hang_on_the_order_of_a_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((30, 4), (4, 40)))
    threshold = smallest_kept(b, a, 300)
    found = []
    for factor in (1.0, 1 - 2.0**-50, 1 + 2.0**-50):  # as another library's rounding
        delta = EntrywiseDelta(
            ((b * factor, a),), (1.0,), (threshold,), Options(method="ties", density=0.25), (0,), {}
        )
        found.append(torch.zeros(30, 40, dtype=torch.float64))
        delta.add_to(found[-1], 0)
    assert [int(x.count_nonzero()) for x in found] == [300] * 3


def test_refuses_a_density_that_keeps_nothing(
    tmp_path: Path, base: Path, three: list[tuple[Path, float]]
) -> None:
    with pytest.raises(MergeError, match="keeps no entry"):
        merge(base, three, tmp_path / "out", method="ties", density=0.99 / (N * K))
    merge(base, three, tmp_path / "out", method="ties", density=1.01 / (N * K))
    assert 0 < int(load_file(tmp_path / "out" / "model.safetensors")["x.weight"].count_nonzero()) <= len(three)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e80, 1e300])
def test_refuses_factors_whose_product_overflows(
    tmp_path: Path, base: Path, three: list[tuple[Path, float]], method: str, size: float
) -> None:
    """Adapters in fp64 hold numbers whose products, or the squares of these, it does not."""
    for folder, _ in three[1:]:
        path = folder / "adapter_model.safetensors"
        save_file({name: tensor.double() * size for name, tensor in load_file(path).items()}, path)
    with pytest.raises(MergeError, match="are too large"):
        merge(base, three, tmp_path / "out", method=method)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99, 1.0])
def test_energy_keeps_the_fewest_that_suffice(
    tmp_path: Path, base: Path, three: list[tuple[Path, float]], energy: float
) -> None:
    total = sum(w * d for w, d in zip(WEIGHTS, deltas(three), strict=True))
    squares = torch.linalg.svdvals(total)[:12].square()
    report = merge(base, three, tmp_path / "out", energy=energy)
    row = report["tensors"]["x.weight"]
    assert row["energy_kept"] >= energy - 1e-12
    assert float(squares[: row["rank_kept"] - 1].sum() / squares.sum()) < energy
    if energy == 1.0:
        assert row["rank_kept"] == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rank_auto_stops_at_the_rounding_noise(tmp_path: Path, dtype: torch.dtype) -> None:
    """The tail cut is below what rounding does on average, which is that of a real rounding to within its spread."""
    torch.manual_seed(0)
    weight = torch.randn(300, 200, dtype=torch.float64) * 0.02
    (tmp_path / "base").mkdir()
    write_safetensors(tmp_path / "base" / "model.safetensors", {"x.weight": weight.to(dtype)})
    (tmp_path / "base" / "config.json").write_text("{}")
    sizes = 10.0 ** -torch.arange(12).float()
    factors = {"x": (torch.linalg.qr(torch.randn(200, 12)).Q.T * sizes[:, None],
                     torch.linalg.qr(torch.randn(300, 12)).Q)}
    write_adapter(tmp_path / "a", factors, rank=12, alpha=12, targets=["x"])
    report = merge(tmp_path / "base", [(tmp_path / "a", 1.0)], tmp_path / "out", noise=True, verify=True)
    row = report["tensors"]["x.weight"]
    noise = float((weight.to(dtype).double() - weight).square().sum())
    tails = torch.tensor(row["singular_values"], dtype=torch.float64).square().flip(0).cumsum(0).flip(0)
    kept = row["rank_kept"]
    assert 1 < kept < 12
    assert float(tails[kept]) < 1.2 * noise and float(tails[kept - 1]) > 0.8 * noise


def test_equal_singular_values_are_warned_of(tmp_path: Path, base: Path) -> None:
    factors = {"x": (torch.eye(4, K), torch.eye(N, 4))}
    write_adapter(tmp_path / "a", factors, rank=4, alpha=4, targets=["x"])
    report = merge(base, [(tmp_path / "a", 1.0)], tmp_path / "out", rank=2)
    assert "equal" in report["overall"]["warnings"][0]
    assert merge(base, [(tmp_path / "a", 1.0)], tmp_path / "all", rank=4)["overall"]["warnings"] == []


def test_principal_angles(tmp_path: Path, base: Path) -> None:
    """Two adapters that share one of three output directions and read from spaces 60° apart in one."""
    e = torch.eye(N)[:, :5], torch.eye(K)[:5]
    first = e[1][:3], e[0][:, :3]
    second = torch.stack([0.5 * e[1][0] + math.sqrt(0.75) * e[1][3], e[1][4]]), e[0][:, [2, 4]]
    write_adapter(tmp_path / "a", {"x": first}, rank=3, alpha=3, targets=["x"])
    write_adapter(tmp_path / "b", {"x": second}, rank=2, alpha=2, targets=["x"])
    report = merge(base, [(tmp_path / "a", 1.0), (tmp_path / "b", 1.0)], tmp_path / "out")
    angles = report["tensors"]["x.weight"]["principal_angles"]["a · b"]
    assert angles["output"] == pytest.approx([1, 0], abs=1e-12)
    assert angles["input"] == pytest.approx([0.5, 0], abs=1e-7)
    _, same = compare({"a": (e[0].double(), e[1].double()), "b": (3 * e[0].double(), e[1].double())})
    assert same["a · b"]["output"] == pytest.approx([1] * 5)


def test_weights_of_single_modules(tmp_path: Path) -> None:
    base = save(transformers_model("qwen2"), tmp_path / "base")
    torch.manual_seed(4)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    for name in ("a", "b"):
        write_adapter(tmp_path / name, {n: (torch.randn(4, 64), torch.randn(64, 4)) for n in names}, rank=4, alpha=4,
                      targets=["q_proj"])
    adapters = [(tmp_path / "a", 1.0), (tmp_path / "b", 1.0)]
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"a": {names[0]: 0.25, names[1]: 0}, "b": -2}))
    merge(base, adapters, tmp_path / "out", method="exact", weights=path, verify=True)
    was, now = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    for name, weight in zip(names, (0.25, 0.0), strict=True):
        a, b = (read_adapter(folder).factors[name] for folder, _ in adapters)
        wanted = was[f"{name}.weight"].double() + weight * b_a(a) - 2 * b_a(b)
        close(now[f"{name}.weight"].double(), wanted)
    for text, match in (
        ('{"c": 1}', "no adapter 'c'"), ('{"a": {"model.x": 1}}', "no module model.x"),
        ('{"a": "1"}', "must be a number smaller"), ('{"a": {"model.x": NaN}}', "must be a number smaller"),
        (f'{{"a": 1{"0" * 400}}}', "must be a number smaller"), ("[1]", "wanted an object"), ("{", "not valid JSON"),
        ('{"a": 0}', "other than 0"),
    ):
        path.write_text(text)
        with pytest.raises(MergeError, match=match):
            merge(base, adapters, tmp_path / "no", weights=path)
        assert not (tmp_path / "no").exists()


def b_a(factors: Any) -> torch.Tensor:
    return factors.scale * factors.b.double() @ factors.a.double()


@pytest.mark.parametrize(("settings", "match"), [
    ({"method": "exact", "energy": 0.9}, "energy goes with"), ({"energy": 1.5}, "energy goes with"),
    ({"method": "exact", "noise": True}, "rank auto goes with"), ({"rank": 2, "energy": 0.5}, "exclude each other"),
    ({"density": 0.5}, "density goes with"), ({"method": "ties", "density": 0.0}, "density goes with"),
    ({"method": "slerp"}, "method must be"),
])
def test_refuses_settings_that_do_not_go_together(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(MergeError, match=match):
        Options(**settings)


def test_refuses_what_a_method_cannot_do(tmp_path: Path, base: Path, three: list[tuple[Path, float]]) -> None:
    other = tmp_path / "other"
    write_adapter(other, {"x": (torch.ones(2, K), torch.ones(N, 2))}, rank=2, alpha=2, targets=["x"])
    with pytest.raises(MergeError, match="must have one rank, got 2, 4"):
        merge(base, [three[0], (other, 1.0)], tmp_path / "out", method="linear")
    with pytest.raises(MergeError, match="not of low rank"):
        merge(base, three, tmp_path / "out", method="ties", as_="adapter")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["linear", "peft-ties", "knots", "core"])
def test_factored_methods_make_adapters(
    tmp_path: Path, base: Path, three: list[tuple[Path, float]], method: str
) -> None:
    wanted = result(base, three, tmp_path / "model", method=method)
    merge(base, three, tmp_path / "out", method=method, as_="adapter", verify=True)
    torch.testing.assert_close(b_a(read_adapter(tmp_path / "out").factors["x"]), wanted, rtol=1e-5, atol=1e-5)
