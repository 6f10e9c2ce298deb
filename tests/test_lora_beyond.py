"""What adapters bring beside linears' A and B: embeddings, the head, biases, whole modules; with PEFT."""

from __future__ import annotations

import pytest
import torch
from models import save, transformers_model
from safetensors.torch import load_file, save_file
from test_lora_kinds import close, shake, tokens

from numllm.adapter import read_adapter
from numllm.config import TARGETS, LoRAConfig
from numllm.errors import AdapterError
from numllm.lora import attach, load_adapters
from numllm.merge import merge
from numllm.model import load_model

pytestmark = [  # PEFT warns of tied weights, stored heads and shapes of lora_bias
    pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning"),
]

KINDS = {
    "embedding": ("qwen2", {"targets": ("embed_tokens", "q_proj")}),
    "head": ("qwen2", {"targets": ("lm_head", "v_proj"), "ranks": {"lm_head": 2}}),
    "head and embedding": ("qwen2", {"targets": ("lm_head", "embed_tokens"), "rslora": True}),
    "embedding, tied": ("qwen2-tied", {"targets": ("embed_tokens", "q_proj")}),
    "head, tied": ("qwen2-tied", {"targets": ("lm_head", "q_proj")}),
    "biases": ("qwen2", {"targets": ("q_proj", "down_proj"), "bias": "lora_only"}),
    "all biases": ("llama3.1", {"targets": ("q_proj",), "bias": "all"}),
    "biases, dora": ("qwen2", {"targets": ("q_proj",), "bias": "all", "dora": True}),
    "whole": ("qwen2", {"targets": ("q_proj",), "modules_to_save": ("lm_head", "model.norm")}),
    "whole embedding, tied": ("qwen2-tied", {"targets": ("q_proj",), "modules_to_save": ("embed_tokens",)}),
    "whole beside biases": ("qwen2", {"targets": ("q_proj",), "bias": "all", "modules_to_save": ("k_proj",)}),
    "whole in a block": ("qwen2", {
        "targets": ("q_proj", "up_proj"),
        "modules_to_save": ("input_layernorm", "post_attention_layernorm", "down_proj", "k_proj"),
    }),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("beyond")
    return {name: save(transformers_model(name), place / name) for name in ("qwen2", "qwen2-tied", "llama3.1")}


def peft_model(family, settings):
    """PEFT's adapter of the same settings, every weight of visible size."""
    import peft

    torch.manual_seed(2)
    theirs = peft.get_peft_model(transformers_model(family), peft.LoraConfig(
        r=4, lora_alpha=6, task_type="CAUSAL_LM",
        target_modules=list(settings.get("targets", TARGETS)), rank_pattern=settings.get("ranks", {}),
        use_rslora=settings.get("rslora", False), use_dora=settings.get("dora", False),
        bias=settings.get("bias", "none"), modules_to_save=list(settings.get("modules_to_save", ())) or None,
    )).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_through_peft(folders, tmp_path, kind):
    """Fresh ones change nothing; ours load in PEFT, in a running model and back into training with the same logits."""
    from peft import PeftModel

    family, settings = KINDS[kind]
    config = LoRAConfig(rank=4, alpha=6.0, **settings)
    model, x = load_model(folders[family]), tokens()
    with torch.no_grad():
        before = model(x)
    adapters = attach(model, {"a": config})
    with torch.no_grad(), adapters.use("a"):
        assert close(model(x), before, 1e-5)
    shake(adapters)
    adapters.save("a", tmp_path / "a", base_model=str(folders[family]))
    theirs = PeftModel.from_pretrained(transformers_model(family), str(tmp_path / "a")).eval()
    again = load_adapters(load_model(folders[family]), {"a": (tmp_path / "a", 1.0)})
    resumed = attach(load_model(folders[family]), {"a": config})
    resumed.load("a", tmp_path / "a")
    pairs = zip(resumed.parameters("a"), adapters.parameters("a"), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)
    with torch.no_grad(), adapters.use("a"), again.use("a"):
        ours = model(x)
        assert close(ours, theirs(x).logits) and not close(ours, before, 1e-3) and close(again._model(x), ours)
    adapters.remove("a")
    with torch.no_grad():
        assert torch.equal(model(x), before) and not adapters.modules and not adapters.whole


def test_a_bias_that_stands_twice_must_be_one(folders, tmp_path):
    family, settings = KINDS["whole beside biases"]
    peft_model(family, settings).save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (again, *_) = [key for key in tensors if key.endswith(".modules_to_save.bias")]
    save_file({**tensors, again: tensors[again] + 1}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="modules_to_save.bias' is not .*k_proj.bias', which it should be a copy of"):
        load_adapters(load_model(folders[family]), {"a": (tmp_path, 1.0)})


@pytest.mark.parametrize("kind", KINDS)
def test_pefts_adapters_run_with_its_logits_and_gradients(folders, tmp_path, kind):
    family, settings = KINDS[kind]
    theirs, x = peft_model(family, settings), tokens()
    theirs.save_pretrained(str(tmp_path / "a"))
    adapters = attach(model := load_model(folders[family]), {"a": LoRAConfig(rank=4, alpha=6.0, **settings)})
    resumed = load_adapters(load_model(folders[family]), {"a": (tmp_path / "a", 1.0)})
    with torch.no_grad(), resumed.use("all"):
        assert close(resumed._model(x), theirs(x).logits)
    resumed.configs["a"] = adapters.configs["a"]
    resumed.save("a", tmp_path / "ours")
    adapters.load("a", tmp_path / "ours")
    theirs(x).logits.square().sum().backward()
    with adapters.use("a"):
        model(x).square().sum().backward()
    found = {}
    for path, module in (*adapters.modules.items(), *adapters.whole.items()):
        for key, (_, parts) in module.stored("a").items():
            owner = parts[0] if parts[0].is_leaf else parts[0]._base
            found[f"{path}.{key}"] = owner.grad if parts[0].is_leaf else owner.grad.T
    wanted = {}
    for name, weight in theirs.named_parameters():
        if weight.requires_grad:
            name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            wanted[name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")] = weight.grad
    if "modules_to_save" in settings:  # PEFT takes "norm" as the end of any name
        wanted = {name: value for name, value in wanted.items() if name in found or "lora_" in name}
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0 and close(found[name], gradient, 1e-4), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "tied" not in kind])
def test_a_merge_is_the_running_model(folders, tmp_path, kind):
    family, settings = KINDS[kind]
    model, x = load_model(folders[family]), tokens()
    adapters = attach(model, {"a": LoRAConfig(rank=4, alpha=6.0, **settings)})
    shake(adapters)
    adapters.save("a", tmp_path / "a")
    merge(str(folders[family]), [(tmp_path / "a", 1.0)], tmp_path / "merged", method="exact")
    with torch.no_grad(), adapters.use("a"):
        assert close(load_model(tmp_path / "merged")(x), model(x), 1e-4)


@pytest.mark.parametrize("kind", ["embedding", "head", "biases", "whole", "whole in a block"])
def test_by_row_and_weighted(folders, tmp_path, kind):
    """Each row its adapter's; adapters of other kinds beside it; half the weight is half the change of the weights."""
    family, settings = KINDS[kind]
    model, x = load_model(folders[family]), tokens(4)
    adapters = attach(model, {"a": LoRAConfig(rank=4, **settings), "b": LoRAConfig(rank=2, targets=("v_proj",))})
    shake(adapters)
    with torch.no_grad():
        alone = {}
        for index, which in ((-1, "none"), (0, "a"), (1, "b")):
            with adapters.use(which):
                alone[index] = model(x)
        picked = torch.tensor([1, 20, 40, 60])
        with adapters.use(torch.tensor([1, -1, 0, 0]), picked=picked // 17):
            mixed, some = model(x), model(x, select=picked)
        for row, index in enumerate([1, -1, 0, 0]):
            assert torch.allclose(mixed[row], alone[index][row], atol=1e-5)
        assert torch.allclose(some, mixed.flatten(0, 1)[picked], atol=1e-5)
        adapters.save("a", tmp_path / "a")
        half = load_adapters(load_model(folders[family]), {"a": (tmp_path / "a", 0.5)})
        merge(str(folders[family]), [(tmp_path / "a", 0.5)], tmp_path / "merged", method="exact")
        with half.use("all"):
            assert close(half._model(x), load_model(tmp_path / "merged")(x), 1e-4)


@pytest.mark.parametrize("kind", ["head and embedding", "all biases", "whole", "whole embedding, tied"])
def test_on_a_model_of_transformers(folders, tmp_path, kind):
    family, settings = KINDS[kind]
    theirs, x = transformers_model(family), tokens()
    adapters = attach(theirs, {"a": LoRAConfig(rank=4, alpha=6.0, **settings)})
    shake(adapters)
    adapters.save("a", tmp_path / "a")
    ours = load_adapters(load_model(folders[family]), {"a": (tmp_path / "a", 1.0)})
    with torch.no_grad(), adapters.use("a"), ours.use("a"):
        assert close(theirs(x).logits, ours._model(x))
    with adapters.use("a"):
        theirs(input_ids=x, labels=x).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.parameters("a"))


def test_lora_bias_of_peft_runs(folders, tmp_path):
    import peft

    theirs = peft.get_peft_model(transformers_model("llama3.1"), peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], lora_bias=True, init_lora_weights=False,
    )).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name and name.endswith("bias"):
                weight.normal_(std=0.1)
    theirs.save_pretrained(str(tmp_path / "a"))
    ours = load_adapters(load_model(folders["llama3.1"]), {"a": (tmp_path / "a", 1.0)})
    with torch.no_grad(), ours.use("all"):
        assert close(ours._model(tokens()), theirs(tokens()).logits)


@pytest.mark.parametrize(("settings", "message"), [
    ({"targets": ("lm_head",), "modules_to_save": ("lm_head",)}, "lm_head is in targets and in modules_to_save"),
    ({"modules_to_save": ("nothing",)}, "modules_to_save: the model has no module named nothing"),
    ({"modules_to_save": ("self_attn",)}, "self_attn is made of several modules"),
    ({"modules_to_save": ("act",)}, "act has no weights"),
    ({"targets": ("embed_tokens",), "dora": True}, "embed_tokens is an embedding, which has no DoRA"),
    ({"targets": ("embed_tokens",), "start": "pissa"}, "no start but the default"),
    ({"targets": ("o_proj",), "bias": "lora_only"}, "none of the linears meant has a bias"),
])
def test_what_cannot_be_is_named(folders, settings, message):
    with pytest.raises(AdapterError, match=message):
        attach(load_model(folders["qwen2"]), {"a": LoRAConfig(**settings)})


def test_a_module_is_whole_or_in_low_rank(folders):
    whole, low = LoRAConfig(rank=2, modules_to_save=("lm_head",)), LoRAConfig(rank=2, targets=("lm_head",))
    for first, second, message in ((whole, low, "is trained whole"), (low, whole, "cannot be trained whole")):
        with pytest.raises(AdapterError, match=message):
            attach(load_model(folders["qwen2"]), {"a": first, "b": second})


def test_another_base_is_told_by_its_copy(folders, tmp_path):
    peft_model("qwen2", {"targets": ("lm_head",)}).save_pretrained(str(tmp_path / "a"))
    assert read_adapter(tmp_path / "a", running=True).base_copies
    other = load_model(save(transformers_model("qwen2", seed=9), tmp_path / "other"))
    with pytest.raises(AdapterError, match=r"a copy of lm_head.weight that is not this base's"):
        load_adapters(other, {"a": (tmp_path / "a", 1.0)})
