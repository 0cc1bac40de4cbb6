"""Tracker on Weights & Biases: one run a job, offline where no account is set up. Our own files stay the truth."""

import math
import netrc
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from rich.console import Console

from evorefuse.records import Metric, Summary

Mode = Literal["auto", "online", "offline", "disabled"]
_SECRET = re.compile(
    r"(^|[_\-.])(api_?key|key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE
)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


class Wandb:
    """Mirrors a run on W&B. What fails after the start is counted and shown, never raised: a run outlives W&B."""

    def __init__(
        self,
        *,
        project: str = "evorefuse",
        entity: str | None = None,
        mode: Mode = "auto",
        tags: Sequence[str] = (),
    ) -> None:
        """Nothing is opened yet.

        Args:
            project: the W&B project.
            entity: the user or team; None: the account's default.
            mode: ``auto`` is $WANDB_MODE where set, else online with an account (API key or netrc), else offline.
            tags: the run's tags.

        Raises:
            ValueError: for an unknown mode.
        """
        if mode not in ("auto", "online", "offline", "disabled"):
            raise ValueError(f"tracker.mode is {mode!r}; expected auto, online, offline or disabled")
        self._project, self._entity, self._tags = project, entity, list(tags)
        self._mode: Literal["online", "offline", "disabled"] = _choose_mode() if mode == "auto" else mode
        self._console = Console(stderr=True)
        self._run: Any = None
        self._defined: set[str] = set()
        self.n_failed = 0

    @property
    def mode(self) -> str:
        """``online``, ``offline`` or ``disabled``, as decided."""
        return self._mode

    def start(self, *, name: str, config: Mapping[str, Any], folder: str) -> None:
        """Open one run for this job; its files go to `wandb/` in ``folder``. Secrets in ``config`` are left out.

        Raises:
            ConnectionError: where W&B cannot start, with how to go on without it.
        """
        self.finish()
        # Weave would trace every request to an API, and advertises itself where it is not installed.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, disable_job_creation=True
        )
        try:
            self._run = wandb.init(
                project=self._project, entity=self._entity, name=name, group=name.partition("/")[0], tags=self._tags,
                config=clean(config), dir=folder, mode=self._mode, settings=settings,
            )  # fmt: skip
        except Exception as error:
            raise ConnectionError(
                f"W&B could not start in mode {self._mode}: {str(error).rstrip('.')}. Log in by `wandb login`, or go "
                "on without it by tracker.mode=offline or tracker=files."
            ) from error

    def log(self, namespace: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Log ``values`` under ``namespace/``, against ``namespace/step`` where ``step`` is given."""
        row = {f"{namespace}/{key}": value for key, value in values.items() if math.isfinite(value)}
        if step is not None:
            self._define(namespace)
            row[f"{namespace}/step"] = step
        if row:
            self._try("log", lambda run: run.log(row))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table; a column may hold mixed types."""
        data: list[Any] = [[_scalar(value) for value in row] for row in rows]
        self._try(
            "table", lambda run: run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})
        )

    def summary(self, summary: Summary) -> None:
        """Set the stage's metrics, each with its interval and n, in the run's summary."""
        flat = {key: value for name, m in summary.metrics.items() for key, value in _flat(summary.stage, name, m)}
        self._try("summary", lambda run: run.summary.update(flat))

    def artifact(self, name: str, kind: str, paths: Sequence[str]) -> None:
        """Log files and folders as one artefact; a single HTML page is shown on the run's page too."""

        def send(run: Any) -> None:
            artefact = wandb.Artifact(re.sub(r"[^\w\-.]", "-", f"{run.id}-{name}"), type=kind)
            for path in map(Path, paths):
                (artefact.add_dir if path.is_dir() else artefact.add_file)(str(path))
            run.log_artifact(artefact)
            if len(paths) == 1 and paths[0].endswith(".html"):
                run.log({name: wandb.Html(Path(paths[0]), inject=False)})

        self._try("artifact", send)

    def finish(self) -> None:
        """Close the run and say how many calls failed; safe to call twice."""
        if self._run is None:
            return
        self._try("finish", lambda run: run.finish())
        self._run = None
        self._defined.clear()
        if self.n_failed:
            self._console.print(f"W&B: {self.n_failed} calls failed and are missing there", style="yellow")

    def _define(self, namespace: str) -> None:
        if namespace not in self._defined:
            self._defined.add(namespace)
            self._try("define_metric", lambda run: run.define_metric(f"{namespace}/step", hidden=True))
            self._try("define_metric", lambda run: run.define_metric(f"{namespace}/*", step_metric=f"{namespace}/step"))

    def _try(self, what: str, call: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # whatever W&B raises, the run goes on
            self.n_failed += 1
            if self.n_failed <= 3:
                self._console.print(f"W&B: {what} failed: {error}", style="yellow", markup=False)


def clean(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without secrets: texts under a secret's name, and logins inside URLs."""
    return {str(key): _clean(str(key), value) for key, value in config.items()}


def _clean(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return clean(value)
    if isinstance(value, (list, tuple)):
        return [_clean(key, item) for item in value]
    if isinstance(value, str):
        return "<hidden>" if value and _SECRET.search(key) else _LOGIN_IN_URL.sub("<hidden>@", value)
    return value


def _choose_mode() -> Literal["online", "offline", "disabled"]:
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("online", "offline", "disabled"):
        return asked
    return "online" if _has_account() else "offline"


def _has_account() -> bool:
    """Whether W&B would find an account without asking: a key in the environment, or its host in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = os.environ.get("NETRC")
    candidates = [Path(path)] if path else [Path.home() / ".netrc", Path.home() / "_netrc"]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        return False
    try:
        hosts = netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urlsplit(os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)).hostname in hosts


def _flat(stage: str, name: str, metric: Metric) -> list[tuple[str, float | int]]:
    parts = {
        "": metric.value, "/low": metric.low, "/high": metric.high, "/n": metric.n, "/n_unscored": metric.n_unscored,
    }  # fmt: skip
    return [(f"{stage}/{name}{part}", value) for part, value in parts.items()
            if value is not None and math.isfinite(value)]  # fmt: skip


def _scalar(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
