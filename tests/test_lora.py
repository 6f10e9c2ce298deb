"""Adapters on a model: against PEFT, several at once, chosen by row, saved and read back."""

from __future__ import annotations

import pytest
import torch
from models import save, transformers_model

from numllm.config import TARGETS, LoRAConfig
from numllm.errors import AdapterError
from numllm.lora import LoRALinear, attach, load_adapters
from numllm.model import load_model

CONFIGS = {
    "domain": LoRAConfig(rank=8, alpha=16.0),
    "numeric": LoRAConfig(rank=4, alpha=4.0, targets=("q_proj", "down_proj")),
}


@pytest.fixture()
def folder(tmp_path):
    return save(transformers_model("qwen2"), tmp_path / "base")


def shake(adapters, seed=0):
    """Gives B visible values, so that adapters change the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in adapters.names:
            for _, b in adapters.factors(name):
                b.copy_(torch.randn(b.shape, generator=generator) * 0.2)


def tokens(rows=3, count=17):
    return torch.randint(0, 160, (rows, count), generator=torch.Generator().manual_seed(5))


def test_fresh_adapters_change_nothing(folder):
    model, x = load_model(folder), tokens()
    with torch.no_grad():
        before = model(x)
        adapters = attach(model, CONFIGS)
        with adapters.use("all"):
            assert torch.equal(model(x), before)


def test_peft_loads_ours_with_the_same_logits(folder, tmp_path):
    from peft import PeftModel

    model, x = load_model(folder), tokens()
    adapters = attach(model, CONFIGS)
    shake(adapters)
    for name in CONFIGS:
        adapters.save(name, tmp_path / name, base_model=str(folder))
        theirs = PeftModel.from_pretrained(transformers_model("qwen2"), str(tmp_path / name)).eval()
        with torch.no_grad(), adapters.use(name):
            ours, expected = model(x), theirs(x).logits
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("settings", [
    {}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    {"target_modules": ["o_proj", "up_proj"]},
])
def test_we_load_pefts_with_the_same_logits(folder, tmp_path, settings):
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(transformers_model("qwen2"), LoraConfig(**{
        "r": 4, "lora_alpha": 6, "target_modules": list(TARGETS), "init_lora_weights": False, **settings,
    })).eval()
    theirs.save_pretrained(str(tmp_path / "peft"))
    model, x = load_model(folder), tokens()
    adapters = load_adapters(model, {"theirs": (tmp_path / "peft", 1.0)})
    with torch.no_grad(), adapters.use("all"):
        expected = theirs(x).logits
        assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_each_row_goes_through_its_own_adapter(folder):
    model, x = load_model(folder), tokens(4)
    adapters = attach(model, CONFIGS)
    shake(adapters)
    with torch.no_grad():
        alone = {}
        for index, which in ((-1, "none"), (0, "domain"), (1, "numeric")):
            with adapters.use(which):
                alone[index] = model(x)
        with adapters.use(torch.tensor([1, -1, 0, 1])):
            mixed = model(x)
    for row, index in enumerate([1, -1, 0, 1]):
        assert torch.allclose(mixed[row], alone[index][row], atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_rows_give_the_gradients_of_separate_runs(folder):
    model, x = load_model(folder, dtype=torch.float64), tokens(4)
    adapters = attach(model, CONFIGS)
    shake(adapters)

    def gradients(which, rows):
        with adapters.use(which):
            model(x[rows]).square().sum().backward()
        found = {n: [p.grad for p in adapters.parameters(n)] for n in adapters.names}
        for name in adapters.names:
            for parameter in adapters.parameters(name):
                parameter.grad = None
        return found

    for module in model.modules():  # fp64 factors, to compare to 1e-10
        if isinstance(module, LoRALinear):
            module.double()
    joint = gradients(torch.tensor([0, 1, 1, 0]), [0, 1, 2, 3])
    for name, rows in (("domain", [0, 3]), ("numeric", [1, 2])):
        apart = gradients(name, rows)
        for ours, expected in zip(joint[name], apart[name], strict=True):
            assert (ours - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_only_factors_receive_gradients(folder):
    model = load_model(folder)
    adapters = attach(model, CONFIGS)
    shake(adapters)
    with adapters.use("all"):
        model(tokens()).sum().backward()
    trained = {id(p) for name in adapters.names for p in adapters.parameters(name)}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


def test_the_start_of_an_adapter_does_not_depend_on_the_others(folder):
    both, alone = attach(load_model(folder), CONFIGS), attach(load_model(folder), {"numeric": CONFIGS["numeric"]})
    other = attach(load_model(folder), CONFIGS, seed=1)
    pairs = zip(both.parameters("numeric"), alone.parameters("numeric"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(both.parameters("numeric")[0], other.parameters("numeric")[0])


def test_works_on_any_module(tmp_path):
    theirs, x = transformers_model("qwen3"), tokens()
    adapters = attach(theirs, {"a": LoRAConfig(rank=2, alpha=2.0)})
    shake(adapters)
    with torch.no_grad():
        with adapters.use("none"):
            before = theirs(x).logits
        with adapters.use("a"):
            assert not torch.allclose(theirs(x).logits, before)


def test_selection_is_restored_after_an_error(folder):
    model = load_model(folder)
    adapters = attach(model, CONFIGS)
    shake(adapters)
    with torch.no_grad():
        before = model(tokens())
        with pytest.raises(RuntimeError), adapters.use("all"):
            raise RuntimeError
        assert torch.equal(model(tokens()), before)


def test_bad_choices_are_refused(folder, tmp_path):
    model = load_model(folder)
    with pytest.raises(AdapterError, match="no linear named qq_proj; it has: down_proj"):
        attach(model, {"a": LoRAConfig(targets=("qq_proj",))})
    with pytest.raises(AdapterError, match="'all'"):
        attach(model, {"all": LoRAConfig()})
    adapters = attach(model, CONFIGS)
    for which in ("nobody", torch.tensor([2]), torch.tensor([[0]])):
        with pytest.raises(ValueError), adapters.use(which):
            pass
    adapters.save("domain", tmp_path / "domain")
    other = load_model(save(transformers_model("qwen2", hidden_size=32), tmp_path / "other"))
    with pytest.raises(AdapterError):
        load_adapters(other, {"domain": (tmp_path / "domain", 1.0)})
