"""Who may be republished, and a push that is one commit of the very files, or none."""

from types import SimpleNamespace

import pytest
import yaml
from fakes import UNSAFE, MarkJudge
from published import CANARY, candidate, card, texts, work

from evorefuse.compose import ConfigError, check
from evorefuse.licence import objections
from evorefuse.stages import publish


@pytest.mark.parametrize(
    ("source", "licences", "licence", "objects"),
    [
        ("builtin:seeds", {}, "MIT", ""),
        ("mine.csv", {}, "MIT", "'unknown'"),
        ("mine.csv", {"mine.csv": "CC-BY-4.0"}, "Apache-2.0", ""),
        ("mine.csv", {"mine.csv": "cc-by-4.0"}, "Apache-2.0", ""),
        ("mine.csv", {"mine.csv": "CC-BY-NC-4.0"}, "Apache-2.0", "forbids"),
        ("mine.csv", {"mine.csv": "CC-BY-ND-4.0"}, "Apache-2.0", "forbids"),
        ("mine.csv", {"mine.csv": "CC-BY-SA-4.0"}, "Apache-2.0", "asks for that licence"),
        ("mine.csv", {"mine.csv": "CC-BY-SA-4.0"}, "CC-BY-SA-4.0", ""),
        ("mine.csv", {"mine.csv": "CC-BY-NC-4.0"}, "CC-BY-NC-4.0", "forbids"),
        *(
            ("mine.csv", {"mine.csv": stated}, "Apache-2.0", "asks for that licence")
            for stated in (
                "GFDL-1.3-or-later",
                "CDLA-Sharing-1.0",
                "OSL-3.0",
                "MPL-2.0",
                "ODbL-1.0",
                "BSD-Protection",
                "GPL-2.0-only WITH Classpath-exception-2.0",
                "MIT AND GPL-3.0-only",
                "MIT AND (OSL-3.0 OR GPL-3.0-only)",
                "MIT AND LicenseRef-x",
            )
        ),
        ("mine.csv", {"mine.csv": "MIT AND CC-BY-NC-4.0"}, "Apache-2.0", "forbids"),
        ("mine.csv", {"mine.csv": "GPL-3.0-only"}, "GPL-3.0-only", ""),
        ("mine.csv", {"mine.csv": "MIT AND GPL-3.0-only"}, "GPL-3.0-only", ""),
        *(
            ("mine.csv", {"mine.csv": stated}, "Apache-2.0", "")
            for stated in (
                "CC0-1.0",
                "CC-BY-3.0-US",
                "MIT",
                "BSD-3-Clause",
                "ISC",
                "CDLA-Permissive-2.0",
                "PDDL-1.0",
                "ODC-By-1.0",
                "Unlicense",
                "0BSD",
                "Apache-2.0 WITH LLVM-exception",
                "MIT OR GPL-3.0-only",
                "(GPL-3.0-only AND OSL-3.0 OR MIT) AND CC-BY-4.0",
            )
        ),
        ("mine.csv", {"mine.csv": "my own"}, "MIT", "'my own'"),
        ("mine.csv", {"mine.csv": "LicenseRef-x"}, "MIT", "LicenseRef"),
        ("", {}, "MIT", "unnamed"),
    ],
)
def test_a_licence_that_does_not_allow_it_is_an_objection(source, licences, licence, objects):
    found = objections([source, "builtin:controls", source], licence=licence, licences=licences)
    assert len(found) == bool(objects)
    assert objects in "".join(found)


class Hub:
    """The hub's API, watched."""

    def __init__(self, *, token: str) -> None:
        self.token = token

    def create_repo(self, name: str, **options) -> None:
        CALLS.append((name, options))

    def create_commit(self, name: str, *, operations, **options) -> SimpleNamespace:
        CALLS.append((name, {op.path_in_repo: op.path_or_fileobj for op in operations}))
        return SimpleNamespace(oid="abc123")


CALLS: list = []


@pytest.fixture
def hub(monkeypatch):
    CALLS.clear()
    monkeypatch.setattr(publish, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    return CALLS


def test_a_push_is_one_commit_of_the_very_files_and_the_token_is_written_nowhere(tmp_path, hub):
    summary = work(tmp_path, [candidate("a"), candidate(f"b {UNSAFE}")], push_to="me/set", has_manifest=True)
    (repo, options), (_, pushed) = hub
    assert (repo, options["private"], options["repo_type"]) == ("me/set", True, "dataset")
    assert pushed == {name: (tmp_path / "publish" / name).read_bytes() for name in ("dataset.jsonl", "README.md")}
    assert "pushed to me/set at abc123" in summary.notes
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


def test_a_set_without_provenance_is_not_pushed(tmp_path, hub):
    """A dry run has no manifest: what it makes must never be published."""
    summary = work(tmp_path, [candidate("a")], push_to="me/set")
    assert hub == []
    assert "not pushed to me/set: this run has no manifest" in summary.notes


def test_without_push_to_nothing_leaves_this_machine(tmp_path, hub):
    work(tmp_path, [candidate("a")])
    assert hub == []


def test_a_push_that_cannot_succeed_is_refused_before_anything_is_judged(tmp_path, hub, monkeypatch):
    asked: list = []
    monkeypatch.setattr(MarkJudge, "score", lambda self, exchanges: asked.append(exchanges))
    with pytest.raises(ValueError, match=r"my\.csv is 'unknown'.*publish\.licences"):
        work(tmp_path, [candidate("a", source="my.csv")], push_to="me/set")
    assert (asked, hub) == ([], [])


def test_seeds_of_unknown_licence_can_be_used_here_and_the_card_is_marked(tmp_path):
    summary = work(tmp_path, [candidate("a", source="my.csv")])
    assert texts(tmp_path) == ["a"]
    assert "Not to be republished" in card(tmp_path)
    assert yaml.safe_load(card(tmp_path).split("---")[1])["license"] == "unknown"
    assert any("not to be republished" in note for note in summary.notes)


def test_an_empty_set_is_a_result_but_is_not_pushed(tmp_path, hub):
    summary = work(tmp_path, [candidate(f"a {UNSAFE}")])
    assert texts(tmp_path) == []
    assert summary.metrics["kept"].value == 0
    assert card(tmp_path)
    with pytest.raises(ValueError, match="nothing is left"):
        work(tmp_path, [candidate(f"a {UNSAFE}")], push_to="me/set")
    assert hub == []


def test_settings_are_refused_when_they_are_composed(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    good = {"licence": "Apache-2.0", "instructions": "x.jsonl"}
    assert check(publish.Settings, good, key="publish")
    for changes, words in (
        ({"licence": "free"}, "SPDX"),
        ({"push_to": "me/set"}, "HF_TOKEN"),
        ({"push_to": "a/b/c"}, "a/b/c"),
        ({"limits": {"cosine": 0}}, "cosine"),
        ({"limits": {"cosin": 0.5}}, "cosin"),
    ):
        with pytest.raises(ConfigError, match=words):
            check(publish.Settings, {**good, **changes}, key="publish")
