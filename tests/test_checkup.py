"""What the doctor says of models that run here (templates, batches that change a reply), and how it reads texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEMPLATE, engine, save_model

from evorefuse.checkup.check import Check, Effort, Patient
from evorefuse.checkup.served import context_of, fits
from evorefuse.lm import decode, hf
from evorefuse.records import Reply
from evorefuse.stages import doctor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "llama_gqa")


def looked_at(model: Any) -> dict[str, Check]:
    patient = Patient(lm=model, name="tiny", roles=("target",), needs=doctor.NEEDS, seed=1, effort=Effort())
    doctor.examine(patient)
    return {check.name: check for check in patient.checks}


def test_a_sound_local_model(folder):
    found = looked_at(engine(folder))
    assert [name for name, check in found.items() if check.missing] == []
    assert found["bos"].state == found["generation_prompt"].state == found["batch"].state == "ok"
    assert "<system> the cat" in found["prompt"].got
    assert "the cat" in found["system_prompt"].got
    assert found["context"].got.startswith("96 tokens")
    assert found["logprobs"].state == found["seed"].state == found["max_tokens"].state == "ok"


BARE = TEMPLATE.replace("{% if add_generation_prompt %}<assistant>{% endif %}", "")
CLOSED = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['content'] + ']' if m['role'] == 'user' else m['content'] }}"
    "{% endfor %}"
)
DEAF = (
    "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}> {{ m['content'] }} "
    "{% endfor %}<assistant>"
)


@pytest.mark.parametrize(
    ("template", "check", "state", "words"),
    [
        (BARE, "generation_prompt", "failed", "<assistant>"),
        (CLOSED, "generation_prompt", "ok", "the template itself"),
        (TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"), "bos", "ok", "the template writes 2"),
        (CLOSED, "system_prompt", "ok", "none"),
    ],
)
def test_templates(folder, template, check, state, words):
    found = looked_at(engine(folder, chat_template=template))[check]
    assert (found.state, words in found.got) == (state, True), found


def test_two_bos_tokens_that_go_into_the_model(folder, monkeypatch):
    plain = lambda tokenizer, text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    monkeypatch.setattr(hf, "encode", plain)
    doubled = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
    found = looked_at(engine(folder, chat_template=doubled))["bos"]
    assert found.missing
    assert found.got.startswith("2 at the start")
    assert found.cure.startswith("target.chat_template=")


def test_a_system_prompt_that_the_template_drops(folder):
    assert looked_at(engine(folder, chat_template=DEAF, system="help i cannot"))["system_prompt"].state == "ignored"
    assert looked_at(engine(folder, system="help i cannot"))["system_prompt"].state == "ok"


def test_a_batch_that_is_padded_on_the_wrong_side_is_found(folder, monkeypatch):
    real = decode.left_pad

    def right_pad(prompts: Any, *, device: Any) -> Any:
        ids, mask = real(prompts, device=device)
        order = torch.argsort(1 - mask, dim=1, stable=True)
        return ids.gather(1, order), mask.gather(1, order)

    assert looked_at(engine(folder))["batch"].state == "ok"
    monkeypatch.setattr(decode, "left_pad", right_pad)
    found = looked_at(engine(folder))["batch"]
    assert found.missing
    assert "engine.batch_tokens=1" in found.cure


@pytest.mark.parametrize(
    ("text", "schema", "loose"),
    [
        ('{"answer": "zinc"}', True, True),
        ('{"answer": "Paris"}', False, True),
        ('{"answer": "zinc", "more": 1}', False, True),
        ('Sure: {"answer": "zinc"}', False, False),
        ('["zinc"]', False, False),
        ("zinc", False, False),
        ('{"answer": {}}', False, True),
        ("[" * 100_000, False, False),
    ],
)
def test_what_counts_as_held_to_a_schema(text, schema, loose):
    reply = Reply(text=text, finish="stop")
    assert (fits(reply, "schema"), fits(reply, "object")) == (schema, loose)


@pytest.mark.parametrize(
    ("listed", "size"),
    [
        ({"data": [{"id": "b"}, {"id": "a", "max_model_len": 8192}]}, 8192),
        ({"data": [{"id": "a", "meta": {"n_ctx_train": 2048}}]}, 2048),
        ({"data": [{"id": "b", "max_model_len": 1}]}, None),
        ({"data": None}, None),
        ({"data": ["a", {"id": "a", "context_length": "many"}]}, None),
        ([], None),
    ],
)
def test_the_context_in_a_list_of_models(listed, size):
    assert context_of(listed, "a") == size
