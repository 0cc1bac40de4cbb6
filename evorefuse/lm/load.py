"""Loading a model: where its files are, on which devices and in which number format it runs, its adapter merged.

Only safetensors are read and no code of a repository is run. ``HF_HUB_OFFLINE=1`` keeps to the local cache.
"""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from evorefuse.lm.embedded import embedded_folder
from evorefuse.lm.model import Model

Quantization = Literal["int8", "nf4"]


def pick_device(name: str) -> torch.device:
    """The device of that name, where prompts go; ``auto`` and ``all`` are the first GPU, or the CPU.

    Raises:
        ValueError: where torch does not know it.
    """
    if name in ("auto", "all"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"engine.device={name!r}: expected auto, cpu, cuda, cuda:N or all") from error


def pick_dtype(name: str, *, device: torch.device) -> torch.dtype:
    """The number format of that name; ``auto`` is bfloat16 on GPUs and on CPUs that multiply in it, else float32.

    Measured on two cores with AVX-512-BF16 and AMX: see ``experiments/throughput``. Without such instructions bfloat16
    is emulated and slower than float32.
    """
    if name != "auto":
        return getattr(torch, name)
    can: dict[str, Any] = dict(torch.cpu.get_capabilities())
    native = device.type == "cuda" or can.get("avx512_bf16") or can.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def locate(model: Model) -> dict[str, Any]:
    """What transformers' ``from_pretrained`` needs to find the model's files."""
    if model.source == "embedded":
        return {"pretrained_model_name_or_path": str(embedded_folder())}
    if model.source == "hub":
        return {"pretrained_model_name_or_path": model.id, "revision": model.revision}
    folder = Path(model.id).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"target {model.name!r}: no model in {folder} (config.json not found); set `target.id`")
    return {"pretrained_model_name_or_path": str(folder)}


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with its chat template replaced where the target says so.

    Raises:
        FileNotFoundError: where it is not there, with how to get it.
    """
    where = locate(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except OSError as error:
        raise FileNotFoundError(_advice(model)) from error
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    return tokenizer


def load_model(
    model: Model,
    *,
    adapter: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    spread: bool = False,
) -> Any:
    """The network in evaluation mode, its adapter merged into the weights (unmerged it is five times slower).

    ``spread`` lays the layers over all GPUs, and over the CPU what they cannot hold. Quantised weights keep an adapter
    beside them: merged, it would be rounded away.

    Raises:
        FileNotFoundError: where it is not there, with how to get it.
        ValueError: where the adapter was made for another model, its layers fit on no device, or ``quantization`` lacks
            its library.
    """
    disable_progress_bar()
    merges = adapter is not None and quantization is None
    numbers = torch.float32 if merges else dtype  # an update of some 1e-3 drowns in bfloat16's rounding
    placed = {"device_map": "auto" if spread else {"": str(device)}} if spread or quantization else {}
    packed: dict[str, Any] = {"quantization_config": _quantized(quantization, dtype)} if quantization else {}
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(
            **locate(model), dtype=numbers, use_safetensors=True, **placed, **packed
        )
    except OSError as error:
        raise FileNotFoundError(_advice(model)) from error
    if adapter is not None:
        check_base(model, adapter)
        if any(weight.is_meta for weight in network.parameters()):
            fewer_bits = {None: "set engine.quantization, or ", "int8": "set engine.quantization=nf4, or "}
            raise ValueError(
                f"target {model.name!r}: some layers fit on no device, and those cannot take an adapter; "
                f"{fewer_bits.get(quantization, '')}merge the adapter beforehand and load the result by source=path"
            )
        adapted = PeftModel.from_pretrained(network, str(adapter))
        network = _merged(adapted, dtype=dtype) if merges else adapted.get_base_model()
    return (network if placed else network.to(device)).eval().requires_grad_(False)


def _quantized(kind: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"engine.quantization={kind} needs bitsandbytes: pip install -e '.[quantized]', or set it to null"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every product that casts
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _merged(network: PeftModel, *, dtype: torch.dtype) -> Any:
    """The network with its adapter merged in float32, then in ``dtype``."""
    merged = network.merge_and_unload()
    for weight in merged.parameters():  # not merged.to(dtype): the rotary frequencies must stay float32
        weight.data = weight.data.to(dtype)
    return merged


def check_template(model: Model, adapter: Path | None, template: str) -> None:
    """Compare the ``template`` hash in the adapter's ``base.json``, where there is one, with the model's.

    Raises:
        ValueError: where the adapter was trained under another chat template.
    """
    expected = _base(adapter).get("template", template) if adapter else template
    if expected != template:
        raise ValueError(
            f"the adapter in {adapter} was trained under the chat template with sha256 {expected}, but target "
            f"{model.name!r} has {template}: set `target.chat_template` as it was, or retrain the adapter"
        )


def check_base(model: Model, adapter: Path) -> None:
    """Compare the adapter's ``base.json`` (``id``, ``revision``), where there is one, with the model.

    Raises:
        ValueError: where it was made for another model.
    """
    base = _base(adapter)
    for key in ("id", "revision"):
        if key in base and base[key] != getattr(model, key):
            raise ValueError(
                f"the adapter in {adapter} was made for {key}={base[key]!r}, but target {model.name!r} has "
                f"{getattr(model, key)!r}: choose the adapter of this model, or retrain it"
            )


def _base(adapter: Path) -> dict[str, Any]:
    note = adapter / "base.json"
    return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}


def _advice(model: Model) -> str:
    return (
        f"target {model.name!r}: cannot load {model.id!r} at {model.revision!r} (safetensors only). A gated model "
        "wants its licence accepted and `hf auth login`. Without a network: run `hf download "
        f"{model.id} --revision {model.revision}` where there is one, then set "
        "HF_HUB_OFFLINE=1. Or choose the embedded one, `target=smollm2`."
    )
