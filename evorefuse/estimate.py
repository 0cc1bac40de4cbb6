"""The dry run: what a run would ask of which model, and what it would cost at most, before anything is spent.

Stages that ask models are run with stand-ins for all of them, in a folder that is thrown away; so are those whose
files they read. The figures are on the high side: answers of full length, every candidate kept, nothing cached.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.table import Table
from rich.text import Text

from evorefuse.compose import PORTS, Composer, parameters, services
from evorefuse.ledger import Budget, Entry, Ledger
from evorefuse.progress import Progress
from evorefuse.roles import is_model, models_in
from evorefuse.store import Store
from evorefuse.tracker.files import Files

DATA = (".jsonl", ".csv")


def estimate(
    config: Mapping[str, Any], modules: Mapping[str, ModuleType], *, budget: Budget, progress: Progress
) -> list[Entry]:
    """What each stage would ask of each model, printed as a table with the total and the budget.

    ``config["run_dir"]`` must be a folder to throw away.

    Raises:
        ConfigError: where the configuration does not fit.
    """
    ledger = Ledger()
    runs = {name: module.run for name, module in modules.items()}
    composer = Composer(config, stages=runs, ledger=ledger, rehearse=True)
    nodes = {name: composer.needs(name, run) for name, run in runs.items()}
    skipped: dict[str, str] = {}
    for name in runs:
        if cause := _cause_to_skip(name, runs, nodes=nodes, run_dir=config["run_dir"]):
            skipped[name] = cause
            continue
        ledger.begin(name)
        store = Store(Path(config["run_dir"]) / name)
        offered = services(runs[name], store=store, tracker=Files(), progress=Progress(quiet=True))
        try:
            store.write_json("summary.json", runs[name](**composer.arguments(name, runs[name]), **offered))
        except (ValueError, OSError, RuntimeError) as error:
            skipped[name] = f"stopped: {error}"
        finally:
            store.close()
    progress.console.print(_table(ledger.entries, remote=_served(nodes), budget=budget))
    for name, cause in skipped.items():
        progress.say(f"{name}: {cause}", style="dim")
    progress.say("Nothing was asked and nothing was kept. To run it, leave dry_run out.", style="dim")
    return ledger.entries


def _cause_to_skip(name: str, runs: Mapping[str, Any], *, nodes: Mapping[str, Any], run_dir: str) -> str:
    """Why a stage is not rehearsed, or the empty string."""
    if "models" in parameters(runs[name]):
        return "skipped: it asks what a server does, which only the server can say"
    kinds = [one.annotation for one in parameters(runs[name]).values()]
    if own := next((kind for kind in kinds if is_model(kind) and kind not in PORTS), None):
        return f"skipped: it works on {own.__name__} itself, for which nothing can stand in"
    later = list(nodes)[list(nodes).index(name) :]
    asking = [own for own in later if "models" not in parameters(runs[own]) and models_in(nodes[own])]
    if name in asking or any(_reads(nodes[own], f"{run_dir}/{name}/") for own in asking):
        return ""
    return "skipped: it asks no model"


def _reads(node: Any, folder: str) -> bool:
    """Whether a node names a data file in ``folder``."""
    if isinstance(node, Mapping):
        return any(_reads(value, folder) for value in node.values())
    if isinstance(node, list | tuple):
        return any(_reads(value, folder) for value in node)
    return isinstance(node, str) and node.startswith(folder) and node.endswith(DATA)


def _served(nodes: Mapping[str, Any]) -> set[str]:
    """The names of the models that are behind servers."""
    models = [node.get("model") for own in nodes.values() for node in models_in(own).values()]
    return {str(m.get("name")) for m in models if isinstance(m, Mapping) and m.get("source") == "served"}


def _table(entries: Sequence[Entry], *, remote: set[str], budget: Budget) -> Table:
    table = Table(title="dry run: at most, tokens read and written", title_justify="left")
    for column in ("stage", "model", "requests", "read", "written", "dollars"):
        table.add_column(column, justify="left" if column in ("stage", "model") else "right", overflow="fold")
    for entry in entries:
        dollars = _dollars(entry.usd) if entry.model in remote else "local"
        figures = [f"{n:,}" for n in (entry.requests, entry.read, entry.written)]
        table.add_row(Text(entry.stage), Text(entry.model), *figures, dollars)
    paid = [entry for entry in entries if entry.model in remote]
    sums = [sum(entry.requests for entry in paid), sum(e.read for e in paid), sum(e.written for e in paid)]
    table.add_section()
    table.add_row("all served", "", *(f"{n:,}" for n in sums), _dollars(sum(entry.usd for entry in paid)))
    tokens = "no limit" if budget.tokens is None else f"{budget.tokens:,} in all"
    table.add_row("budget", "", "", tokens, "", "no limit" if budget.usd is None else _dollars(budget.usd))
    return table


def _dollars(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.4f}"
