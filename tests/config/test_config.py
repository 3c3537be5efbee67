from __future__ import annotations

import pytest

from dreamlib.config.load import differences, dump_config, identity, idle, load_config, save_config
from dreamlib.config.schema import span_steps
from dreamlib.utils.errors import ConfigError


def test_round_trip(tmp_path):
    config = load_config("faces16", ["train.lr=3e-4", "loss.start=2 epochs"])
    assert config.train.lr == 3e-4
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert "0.0003" in dump_config(config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.bacth=3", ["faces16.yaml", "train.bacth", "did you mean batch", "lr_schedule"]),
        ("trian.batch=3", ["trian", "train"]),
        ("train.batch=many", ["train.batch", "'many'", "integer"]),
        ("train.batch=true", ["train.batch", "integer"]),
        ("train.batch=0", ["train.batch", "0", "greater than or equal to 1"]),
        ("train.lr=-1.0", ["train.lr", "-1.0", "greater than 0"]),
        ("loss.name=dream", ["loss.name", "'conservative'"]),
        ("loss.start=soon", ["loss.start", "epochs", "10 %"]),
        ("sample.steps=2000", ["sample.steps", "1000"]),
        ("net.widths=[]", ["net.widths"]),
        ("evaluate.n=[1, 500]", ["evaluate.n", "greater than or equal to 2"]),
        ("loss.start=1.2.3 %", ["loss.start"]),
        ("batch=3", ["section.field=value"]),
        ("train.batch", ["section.field=value"]),
        ("data.size=[", ["not valid YAML"]),
        ("train.lr=.inf", ["train.lr", "finite"]),
        ("train.lr=.nan", ["train.lr"]),
        ("train.hours=1e400", ["train.hours", "finite"]),
        ("train.batch=0x_", ["train.batch", "'0x_'", "integer"]),
        ("train.batch=010", ["train.batch", "'010'", "integer"]),
        ("train.length=1:30", ["train.length", "'1:30'", "epochs"]),
        ("train.length=2026-13-45", ["train.length", "'2026-13-45'", "epochs"]),
        ("train.length=!!int x", ["--set train.length", "not valid YAML"]),
        ("train.seed=" + "9" * 5000, ["--set train.seed", "not valid YAML"]),
        ("train={batch: 1, batch: 2}", ["section.field=value"]),
        ("sample.labels={class: a, class: b}", ["'class' is there twice"]),
        ("net.widths=[&w 8, *w]", ["aliases", "write the value out"]),
    ],
)
def test_bad_overrides_name_field_value_and_what_is_allowed(override, words):
    with pytest.raises(ConfigError) as error:
        load_config("faces16", [override])
    for word in words:
        assert word in str(error.value)


def test_messages_are_bounded():
    with pytest.raises(ConfigError) as error:
        load_config("faces16", [f"train.batch=[{'1, ' * 5000}]"])
    assert len(str(error.value)) < 400


def test_a_name_may_look_like_a_number(tmp_path):
    """Class folders are called 1, no or 1e3; what is saved is read as it was meant."""
    overrides = ["sample.labels={class: 1, no: on, x: 1e3, y: '1e3'}", "data.path=2026"]
    config = load_config("fashion-cpu-classes", overrides)
    assert config.sample.labels == {"class": "1", "no": "on", "x": "1000.0", "y": "1e3"}
    assert config.data.path == "2026"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config("faces16", ["data.flip=yes", "train.wandb=off"]).data.flip is True


@pytest.mark.parametrize(
    ("preset", "setting", "message"),
    [
        ("fashion-cpu", "sample.guidance=2.0", "with net.conditional true"),
        ("fashion-cpu", "sample.labels={class: shirt}", "with net.conditional true"),
        ("digits16", "data.train=100", "for faces only"),
        ("cats64", "data.first=100", "data.first is for data.name celeba only"),
        ("celeba64", "data.fit=pad", "for data.name folder only"),
        ("fashion-cpu", "data.held_out=0.2", "for data.name folder only"),
        ("faces16", "data.shift=16", "must be below data.size"),
        ("mnist28", "data.flip=true", "a mirrored digit is no digit"),
    ],
)
def test_settings_that_exclude_each_other(preset, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_config(preset, [setting])


def test_unknown_preset_suggests_one():
    with pytest.raises(ConfigError, match="did you mean faces16"):
        load_config("face16")


def test_missing_and_broken_files(tmp_path):
    path = tmp_path / "some.yaml"
    with pytest.raises(ConfigError, match=r"no config file .*some\.yaml"):
        load_config(path)
    for text, message in (
        ("- 1\n- 2\n", "must hold sections"),
        ("data: {name: faces, size: 16}\n", "net is missing"),
        (f"# {'x' * 300_000}", "letters: settings take 200,000 at most"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(path)


def test_spans():
    spans = {2000: 2000, "3 epochs": 1172, "10 %": 50, "40 steps": 40}
    assert {span: span_steps(span, epoch=390.625, total=500) for span in spans} == spans
    with pytest.raises(ConfigError, match="share of itself"):
        span_steps("10 %", epoch=1)


def test_only_what_may_change_is_left_out_of_the_identity():
    base = load_config("faces16")
    free = ["train.hours=1.0", "train.micro=4", "train.log_every=7", "sample.steps=9"]
    assert identity(load_config("faces16", free)) == identity(base)
    fixed = load_config("faces16", ["train.lr=5e-4", "train.seed=3"])
    assert differences(identity(base), identity(fixed)) == [
        "train.lr: 0.005 -> 0.0005",
        "train.seed: 0 -> 3",
    ]


def test_a_reach_decides_something_for_two_losses():
    for name in ("mixflow", "reflex"):
        assert idle(load_config("smoke", [f"loss.name={name}", "loss.reach=0.2"])) == {}
    found = idle(load_config("smoke", ["loss.name=standard", "loss.reach=0.2"]))
    assert found["loss.reach"] == "loss.name mixflow or reflex"
