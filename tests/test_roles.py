"""Which engine runs which model, what of it decides a reply, and who may judge whom."""

from collections.abc import Mapping
from typing import Any

import pytest
from role_fakes import BUILT, FAR, NEAR, Judging, Local, Remote, Targeting, config, node

from evorefuse.compose import Composer, ConfigError
from evorefuse.lm.cached import Cached
from evorefuse.lm.rehearsal import Rehearsal, Scatter
from evorefuse.ports import LM, Embedder, Scorer, Tracker
from evorefuse.store import Store, config_hash


@pytest.fixture(autouse=True)
def _forget():
    BUILT.clear()


def run(*, target: LM, safety: Scorer) -> None: ...


def judged(*, safety: Scorer) -> None: ...


def searched(*, mutator: Scorer, refusal: Scorer, safety: Scorer) -> None: ...


def doctor(*, models: Mapping[str, LM], store: Store, tracker: Tracker) -> None: ...


def test_each_model_is_run_by_the_first_that_takes_it():
    made = Composer(config()).arguments("stage", run)
    assert isinstance(made["target"], Local)
    assert isinstance(made["safety"].judge, Cached)
    assert isinstance(made["safety"].judge.lm, Remote)
    assert made["safety"].judge.lm.model.id == "far-2"
    assert made["safety"].judge.lm.deadline == 5.0
    swapped = Composer(config(target=FAR, judge_model=NEAR)).arguments("stage", run)
    assert (type(swapped["target"]), type(swapped["safety"].judge)) == (Cached, Local)


def test_a_served_model_is_wrapped_where_it_is_written_out_too():
    inside = node("Judging", judge=node("Remote", model=FAR))
    made = Composer(config(safety=inside, target=FAR, self_judging=True)).arguments("stage", run)
    assert isinstance(made["safety"].judge, Cached)
    record = node("Judging", judge=FAR)
    assert Composer(config(safety=record)).arguments("stage", judged)["safety"].judge.lm.model.id == "far-1"
    assert BUILT.count("remote far") == 3


def test_equal_models_are_built_once_and_share_one_cache(tmp_path):
    composer = Composer(config(tmp_path, target=FAR, self_judging=True))
    made = composer.arguments("stage", searched)
    assert made["mutator"].writer is made["refusal"].target
    assert made["safety"].judge is not made["refusal"].target
    assert (tmp_path / "lm.sqlite").exists()
    composer.close()


def test_without_a_served_model_no_cache_is_opened(tmp_path):
    Composer(config(tmp_path, judge_model=NEAR, self_judging=True)).arguments("stage", run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"engine": node("Remote")},
            r"target: nothing runs .*source='path': engine \(Remote\) takes served; .*engine=hf",
        ),
        ({"api": node("Local")}, r"judge_model: nothing runs .*'served'.*target@judge_model=served judge_model\.id="),
        ({"target": {"name": "x", "source": "hubb"}}, r"nothing runs a model with source='hubb'.*takes path, hub"),
        ({"target": "gpt4o"}, r"target must be a model .*got 'gpt4o'"),
        ({"target": None}, "target must be a model"),
        ({"engine": node("Judging")}, "Judging runs no models"),
        ({"engine": {"device": "cpu"}}, "engine must name its class"),
        ({"target": {**FAR, "sytem": "x"}}, r"unknown key target\.model\.sytem; did you mean 'system'"),
        ({"target": {**FAR, "id": "far-9", "price": {"red": 1}}}, r"unknown key target\.model\.price\.red; did you"),
        ({"target": {**FAR, "id": "far-9", "key_variable": "UNSET"}}, r"^target\.model: model needs a key in UNSET$"),
        ({"api": node("Remote", deadline="soon")}, r"judge_model\.deadline: .*'soon'"),
        ({"self_judging": "perhaps"}, "self_judging: .*'perhaps'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(changes, match):
    with pytest.raises(ConfigError, match=match):
        Composer(config(**changes)).needs("stage", run)
    assert BUILT == []


def test_a_role_that_nothing_uses_is_not_looked_at():
    needs = Composer(config(writer={**FAR, "key_variable": "UNSET"}, api=node("Remote"))).needs("stage", run)
    assert set(needs) == {"target", "safety", "judge_model"}


def test_transport_is_checked_but_decides_nothing():
    def needs(**changes: Any) -> dict[str, Any]:
        far = {**FAR, **changes.pop("model", {})}
        inside = node("Jury", judges={"one": node("Judging", judge=node("Remote", model=far, **changes))})
        return Composer(config(target=far, api=node("Remote", **changes), safety=inside, self_judging=True)).needs(
            "s", run
        )

    plain = needs()
    assert "deadline" not in str(plain)
    moved = {"base_url": "http://b", "key_variable": "K", "price": {"read": 1.0}}
    assert config_hash(needs(model=moved, deadline=9.0)) == config_hash(plain)
    for other in ({"model": {"id": "far-3"}}, {"model": {"system": ""}}, {"style": "grand"}):
        assert config_hash(needs(**other)) != config_hash(plain)


def test_ports_by_name_within_a_node_are_checked_and_built():
    jury = node("Jury", judges={"a": node("Judging", floor=0.1), "b": node("Targeting")}, models={"x": FAR, "y": NEAR},
                weights={"a": 2.0})  # fmt: skip
    composer = Composer(config(safety=jury, self_judging=True))
    assert set(composer.needs("stage", judged)) == {"safety", "judge_model", "target"}
    made = composer.arguments("stage", judged)["safety"]
    assert [type(judge) for judge in made.judges.values()] == [Judging, Targeting]
    assert made.judges["a"].judge.lm.model.name == "referee"
    assert made.judges["b"].target is made.models["y"]
    assert made.models["x"].lm.model.name == "far"
    assert made.weights == {"a": 2.0}


@pytest.mark.parametrize(
    ("jury", "match"),
    [
        ({"judges": {"a": node("Judging", flor=1)}}, r"unknown key safety\.judges\.a\.flor"),
        ({"judges": {"a": {"floor": 1}}}, r"safety\.judges\.a must name its class.*~safety\.judges\.a"),
        ({"judges": {"a": None}}, r"safety\.judges\.a must name its class"),
        ({"judges": [1]}, r"safety\.judges"),
        ({"judges": {}, "models": {"x": {**FAR, "source": "nowhere"}}}, r"safety\.models\.x: nothing runs"),
        ({"judges": {}, "weights": {"a": "much"}}, r"safety\.weights\.a: .*'much'"),
    ],
)
def test_a_port_by_name_that_does_not_fit_is_named(jury, match):
    with pytest.raises(ConfigError, match=match):
        Composer(config(safety=node("Jury", **jury))).needs("stage", judged)


@pytest.mark.parametrize(
    ("changes", "stage", "match"),
    [
        ({"judge_model": {**FAR, "name": "other name", "price": {"read": 1.0}}}, searched, "judge_model and writer"),
        ({"judge_model": FAR, "target": FAR, "mutator": node("Judging")}, searched, "judge_model and target"),
        ({"judge_model": NEAR}, searched, "judge_model and target"),
        ({"judge_model": {**FAR, "system": "You are strict."}}, searched, "judge_model and writer"),
        (
            {"safety": node("Jury", judges={"a": node("Judging", judge=FAR)})},
            searched,
            r"safety\.judges\.a\.judge and writer",
        ),
    ],
)  # fmt: skip
def test_a_judge_of_its_own_work_is_refused(changes, stage, match):
    with pytest.raises(ConfigError, match=rf"stage: {match} are the same model .*self_judging=true"):
        Composer(config(**changes)).needs("stage", stage)
    Composer(config(**changes, self_judging=True)).needs("stage", stage)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"judge_model": {**FAR, "base_url": "http://elsewhere"}}, searched),  # another server's model of that name
        ({"judge_model": FAR}, judged),  # no writer in this stage
        ({"writer": NEAR}, searched),  # writer and target may be one
    ],
)
def test_other_models_may_judge(changes, stage):
    Composer(config(**changes)).needs("stage", stage)


def test_the_doctor_receives_every_model_of_the_run_by_role():
    stages = {"doctor": doctor, "generate": searched, "benchmark": run}
    inside = {
        "safety": node("Jury", judges={"a": node("Judging"), "b": node("Judging", judge=node("Local", model=NEAR))})
    }
    composer = Composer(config(generate=inside, self_judging=True), stages=stages)
    assert set(composer.needs("doctor", doctor)) == {
        "writer",
        "target",
        "judge_model",
        "generate.safety.judges.b.judge",
    }
    assert "deadline" not in str(composer.needs("doctor", doctor))
    models = composer.arguments("doctor", doctor)["models"]
    assert set(models) == {"writer", "target", "judge", "generate.safety.judges.b.judge"}
    assert models["target"] is models["generate.safety.judges.b.judge"]
    assert composer.arguments("generate", searched)["mutator"].writer is models["writer"]


def test_in_a_dry_run_nothing_is_built_and_no_key_is_asked_for():
    def embedded(*, target: LM, safety: Scorer, embedder: Embedder) -> None: ...

    far = {**FAR, "id": "far-9", "key_variable": "UNSET", "price": {"read": 2.0, "written": 4.0}}
    given = config(target=far, judge_model=NEAR, embedder=node("Points"))
    made = Composer(given, rehearse=True).arguments("stage", embedded)
    assert BUILT == []
    assert isinstance(made["target"], Rehearsal)
    assert made["target"].price == (2.0, 4.0)
    assert made["safety"].judge.price == (0.0, 0.0)
    assert isinstance(made["embedder"], Scatter)
