"""Kinds of adapters beyond the plain one: DoRA, rsLoRA, own ranks, dropout, other starts; added, removed, resumed."""

from __future__ import annotations

import pytest
import torch
from models import save, transformers_model

from numllm.adapter import read_adapter
from numllm.config import TARGETS, LoRAConfig
from numllm.errors import AdapterError, ConfigError
from numllm.lora import LoRALinear, attach, load_adapters
from numllm.lora.low_rank import Selection
from numllm.lora.starts import begin
from numllm.model import load_model

KINDS = {
    "rslora": LoRAConfig(rank=4, alpha=6.0, rslora=True),
    "ranks": LoRAConfig(rank=4, alpha=6.0, ranks={"q_proj": 2, "layers.1.mlp.up_proj": 6}, alphas={"v_proj": 3.5}),
    "exclude": LoRAConfig(rank=4, alpha=6.0, exclude=("k_proj", "model.layers.0.mlp.up_proj")),
    "dora": LoRAConfig(rank=4, alpha=6.0, dora=True),
    "dora, ranks": LoRAConfig(rank=4, alpha=6.0, dora=True, rslora=True, ranks={"o_proj": 2}),
    "gaussian": LoRAConfig(rank=4, alpha=6.0, start="gaussian"),
    "orthogonal": LoRAConfig(rank=4, alpha=6.0, start="orthogonal"),
    "pissa": LoRAConfig(rank=4, alpha=6.0, start="pissa"),
    "olora": LoRAConfig(rank=4, alpha=6.0, start="olora", rslora=True, ranks={"q_proj": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(transformers_model("qwen2"), tmp_path_factory.mktemp("kinds") / "base")


def tokens(rows=3, count=17):
    return torch.randint(0, 160, (rows, count), generator=torch.Generator().manual_seed(5))


def shake(adapters):
    """Moves every trained value, as training does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in adapters.names:
            for value in adapters.parameters(name):
                value += torch.randn(value.shape, generator=generator) * 0.1 * value.std().clamp_min(0.1)


def close(found, expected, relative=2e-5):
    return (found - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_ones_change_nothing_and_trained_ones_load_in_peft(folder, tmp_path, kind):
    from peft import PeftModel

    model, x = load_model(folder), tokens()
    with torch.no_grad():
        before = model(x)
        adapters = attach(model, {"a": KINDS[kind]})
        with adapters.use("a"):
            assert close(model(x), before, 1e-4)
    shake(adapters)
    adapters.save("a", tmp_path / "a", base_model=str(folder))
    theirs = PeftModel.from_pretrained(transformers_model("qwen2"), str(tmp_path / "a")).eval()
    again = load_adapters(load_model(folder), {"a": (tmp_path / "a", 1.0)})
    with torch.no_grad(), adapters.use("a"), again.use("a"):
        ours, expected = model(x), theirs(x).logits
        assert close(ours, expected) and not close(ours, before, 1e-3)
        assert close(again._model(x), ours)


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_back_to_the_bit(folder, tmp_path, kind):
    first = attach(load_model(folder), {"a": KINDS[kind]})
    shake(first)
    first.save("a", tmp_path / "a")
    second = attach(load_model(folder), {"a": KINDS[kind]})
    second.load("a", tmp_path / "a")
    assert all(torch.equal(*pair) for pair in zip(first.parameters("a"), second.parameters("a"), strict=True))
    with pytest.raises(AdapterError, match="holds no lora_A.weight of .* for this adapter"):
        attach(load_model(folder), {"a": LoRAConfig(rank=3)}).load("a", tmp_path / "a")


@pytest.mark.parametrize("kind", ["plain", "rslora", "dora"])
def test_a_step_of_a_transformers_model_has_pefts_gradients(folder, kind):
    import peft

    settings = {"plain": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}[kind]
    theirs = peft.get_peft_model(transformers_model("qwen2"), peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=list(TARGETS), init_lora_weights=False, use_rslora=kind == "rslora",
        use_dora=kind == "dora",
    ))
    ours = transformers_model("qwen2")
    adapters = attach(ours, {"a": LoRAConfig(rank=4, alpha=6.0, **settings)})
    held = {}
    for path, module in adapters.modules.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        pairs = [(module.a["a"], layer.lora_A["default"].weight), (module.b["a"], layer.lora_B["default"].weight)]
        if kind == "dora":
            pairs.append((module.magnitude["a"], layer.lora_magnitude_vector["default"].weight))
        for mine, its in pairs:
            mine.data.copy_(its.data)
        held[path] = pairs
    x = tokens()
    theirs(input_ids=x, labels=x).loss.backward()
    with adapters.use("a"):
        ours(input_ids=x, labels=x).loss.backward()
    for path, pairs in held.items():
        for mine, its in pairs:
            assert its.grad.abs().max() > 0 and close(mine.grad, its.grad, 1e-4), path


def test_dora_by_row(folder):
    model, x = load_model(folder), tokens(4)
    adapters = attach(model, {"d": KINDS["dora"], "p": LoRAConfig(rank=2)})
    shake(adapters)
    with torch.no_grad():
        alone = {}
        for index, which in ((-1, "none"), (0, "d"), (1, "p")):
            with adapters.use(which):
                alone[index] = model(x)
        with adapters.use(torch.tensor([1, -1, 0, 0])):
            mixed = model(x)
        for row, index in enumerate([1, -1, 0, 0]):
            assert torch.allclose(mixed[row], alone[index][row], atol=1e-5)
        with pytest.raises(AdapterError, match="'d' is DoRA, whose change does not add up"), adapters.use("all"):
            model(x)


def test_norms_are_those_of_the_dense_weight():
    linear = torch.nn.Linear(24, 16)
    layer = LoRALinear(linear, Selection())
    layer.add("a", torch.randn(3, 24), torch.randn(16, 3), 0.7, trainable=False)
    dense = linear.weight + 0.7 * layer.b["a"] @ layer.a["a"]
    assert torch.allclose(layer.norms("a"), dense.norm(dim=1), rtol=1e-5)
    assert torch.allclose(layer.norms(), linear.weight.norm(dim=1))


def test_dropout_is_of_the_seed_and_of_training_alone(folder):
    model, x = load_model(folder), tokens(2)
    adapters = attach(model, {"a": LoRAConfig(rank=4, dropout=0.5), "b": LoRAConfig(rank=2)})
    shake(adapters)

    def run(which, seed=None):
        with torch.no_grad(), adapters.use(which, seed=seed):
            return model(x)

    whole = run("a")
    assert torch.equal(run("a", seed=1), whole)  # not training
    model.train()
    assert torch.equal(run("a", seed=1), run("a", seed=1)) and not torch.equal(run("a", seed=1), run("a", seed=2))
    assert not torch.equal(run("a", seed=1), whole)
    torch.manual_seed(3)
    drawn = run("a")
    assert not torch.equal(run("a"), drawn)
    torch.manual_seed(3)
    assert torch.equal(run("a"), drawn)
    plain = run("b")
    mixed = run(torch.tensor([0, 1]), seed=1)
    assert torch.allclose(mixed[1], plain[1], atol=1e-5)  # b's rows are left alone
    with pytest.raises(AdapterError, match="different dropout"):
        run("all")


def test_dropout_survives_checkpointing(folder):
    from torch.utils.checkpoint import checkpoint

    model, x = load_model(folder), tokens(2)
    adapters = attach(model, {"a": LoRAConfig(rank=4, dropout=0.3)})
    shake(adapters)
    model.train()

    def gradients(through):
        with adapters.use("a", seed=4):
            through(lambda: model(x)).square().sum().backward()
        found = [p.grad.clone() for p in adapters.parameters("a")]
        for p in adapters.parameters("a"):
            p.grad = None
        return found

    plain = gradients(lambda call: call())
    again = gradients(lambda call: checkpoint(call, use_reentrant=False))
    assert all(map(torch.equal, plain, again))


@pytest.mark.parametrize("kind", ["plain", "dropout", "dora", "pissa"])
def test_a_compiler_takes_the_layer_whole(kind):
    settings = {"plain": {}, "dropout": {"dropout": 0.3}, "dora": {"dora": True}, "pissa": {"start": "pissa"}}[kind]
    model = torch.nn.Sequential()
    model.add_module("up", torch.nn.Linear(16, 24))
    adapters = attach(model, {"a": LoRAConfig(rank=2, targets=("up",), **settings), "b": LoRAConfig(targets=("up",))})
    shake(adapters)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    for which in ("a", torch.tensor([0, 1, -1])):
        with adapters.use(which, seed=3):
            assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_adapters_are_added_switched_and_removed(folder, tmp_path):
    model, x = load_model(folder), tokens()
    linear = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        before = model(x)
        adapters = attach(model, {"a": LoRAConfig(rank=4)})
        adapters.add("b", LoRAConfig(rank=2, targets=("q_proj",)), seed=3)
        shake(adapters)
        adapters.save("a", tmp_path / "a")
        adapters.read("c", tmp_path / "a")
        with adapters.use("a"):
            a = model(x)
        with adapters.use("c"):
            assert close(model(x), a)
        adapters.remove("a")
        assert adapters.names == ("b", "c") and adapters.parameters("a") == []
        adapters.remove("c")
        assert model.model.layers[0].mlp.up_proj is linear and len(adapters.modules) == 2
        adapters.remove("b")
        assert torch.equal(model(x), before) and not adapters.modules
    for wrong, message in ((lambda: adapters.remove("a"), "there is no adapter 'a'; there are: none"),
                           (lambda: adapters.save("a", tmp_path / "x"), "there is no adapter 'a'")):
        with pytest.raises(AdapterError, match=message):
            wrong()
    adapters.add("a", LoRAConfig(rank=1))
    with pytest.raises(AdapterError, match="'a' already"):
        adapters.add("a", LoRAConfig(rank=1))


def test_starts_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(12, 20, generator=generator)
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    (a, b), first = begin("pissa", w, 3, -0.5, generator)
    assert torch.allclose(-0.5 * b @ a, u[:, :3] * s[:3] @ vt[:3], atol=1e-5) and torch.equal(first[0], a)
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), atol=1e-4)
    (a, b), _ = begin("olora", w, 3, 1.0, generator)
    assert torch.allclose(b.T @ b, torch.eye(3), atol=1e-5)
    assert torch.allclose((b @ a)[:, :3], w[:, :3], atol=1e-5)
    (a, b), first = begin("orthogonal", w, 4, 1.0, generator)
    assert (b @ a).abs().max() < 1e-6 and b.abs().max() > 0 and first is None
    with pytest.raises(ValueError, match="at most rank 12"):
        begin("pissa", w, 13, 1.0, generator)


def test_an_adapter_begun_by_pissa_merges_on_the_base_as_it_is(folder, tmp_path):
    model, x = load_model(folder), tokens()
    adapters = attach(model, {"a": KINDS["pissa"]})
    shake(adapters)
    adapters.save("a", tmp_path / "a")
    file = read_adapter(tmp_path / "a")
    assert file.rank == 8 and not file.moves_base and file.plain
    from numllm.merge import merge

    merge(str(folder), [(tmp_path / "a", 1.0)], tmp_path / "merged", method="exact")
    with torch.no_grad(), adapters.use("a"):
        assert close(load_model(tmp_path / "merged")(x), model(x), 1e-4)


@pytest.mark.parametrize(("settings", "message"), [
    ({"dropout": 1.0}, "dropout must be a share"), ({"start": "magic"}, "start must be default, gaussian"),
    ({"start": "orthogonal", "rank": 3}, "even ranks"), ({"dora": True, "start": "pissa"}, "dora does not go with"),
    ({"ranks": {"q_proj": 0}}, "rank must be"), ({"alphas": {"q_proj": 0.0}}, "alpha must be"),
])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)


@pytest.mark.parametrize(("settings", "message"), [
    ({"exclude": ("z_proj",)}, "exclude: no targeted linear is named z_proj"),
    ({"ranks": {"z_proj": 2}}, "ranks: no targeted linear is named z_proj"),
    ({"targets": ("q_proj",), "exclude": ("q_proj",)}, "leaves no linear to adapt"),
    ({"start": "pissa", "rank": 500}, "at most rank"),
])
def test_settings_that_do_not_fit_the_model(folder, settings, message):
    with pytest.raises(AdapterError, match=message):
        attach(load_model(folder), {"a": LoRAConfig(**settings)})
