"""What --minutes is in crops: timed in turns, by the median, and kept."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from idmm_fast.beton import write_beton
from idmm_fast.compare.rates import FIRST_STEPS, LEAST_STEPS, Rates, Timing, first_steps
from idmm_fast.compare.runner import Runner
from idmm_fast.compare.runs import SweepAxes, make_runs
from idmm_fast.compare.spec import SweepConfig
from idmm_fast.compare.subsets import DatasetFiles
from idmm_fast.config import ConfigError
from idmm_fast.datasets import Split

HERE = {"jobs": 2, "machine": "a processor, 1 core a pretraining"}


@pytest.fixture
def runner(sweep_dir):
    files = DatasetFiles(sweep_dir / "data", sweep_dir / "subsets")
    return Runner(SweepConfig(sweep_dir / "compare.yaml"), files, sweep_dir, 1)


def runs_of(sweep_dir, *methods, images=(0,), seeds=(0, 1)):
    axes = SweepAxes(["tiny"], methods, images=images, seeds=seeds, finetune_budget=["128"], minutes=0.5)
    return make_runs(axes, SweepConfig(sweep_dir / "compare.yaml"), sweep_dir / "data")


class Clock:
    """Times what it is asked for: `speeds` of each method, and a machine that slows down with every round."""

    def __init__(self, **speeds):
        self.speeds, self.asked = speeds, []

    def __call__(self, queue):
        self.asked.append([run.method for run in queue])
        slow = len(self.asked) ** 2
        known = [(run, self.speeds[run.method] / slow) for run in queue if run.method in self.speeds]
        return known, [f"{run.method} failed" for run in queue if run.method not in self.speeds]


def test_methods_are_timed_in_turns_and_their_minutes_are_crops(sweep_dir, runner):
    runs = runs_of(sweep_dir, "random", "idmm", "simclr")
    rates, clock = Rates(sweep_dir, runner, HERE), Clock(idmm=3600.0, simclr=360.0)
    assert rates.measure(rates.missing(runs), clock) == []
    assert clock.asked == [["idmm", "simclr"], ["simclr", "idmm"], ["idmm", "simclr"]]
    budgets = {(run.method, run.seed): run.budget for run in rates.with_budgets(runs)}
    # the median of three rounds, of which the second is four times as slow as the first: 900 and 90 a second
    for seed in (0, 1):
        assert [budgets[method, seed] for method in ("random", "idmm", "simclr")] == [0, 30 * 900, 30 * 90]
    assert all(run.minutes == 0.5 * (run.method != "random") for run in rates.with_budgets(runs))
    again = Rates(sweep_dir, runner, HERE)
    assert again.missing(runs) == []
    assert again.with_budgets(runs) == rates.with_budgets(runs)


def test_a_method_that_comes_later_is_scaled_to_the_hour_of_the_others(sweep_dir, runner):
    """The machine is half as fast by then: the new method makes twice as many crops as the one beside it."""
    rates = Rates(sweep_dir, runner, HERE)
    first = runs_of(sweep_dir, "idmm")
    rates.measure(rates.missing(first), Clock(idmm=3600.0))
    both = runs_of(sweep_dir, "idmm", "simclr")
    clock = Clock(idmm=1800.0, simclr=3600.0)
    rates.measure(rates.missing(both), clock)
    assert clock.asked[0] == ["simclr", "idmm"]
    budgets = {run.method: run.budget for run in rates.with_budgets(both)}
    assert budgets == {"idmm": 30 * 900, "simclr": 30 * 1800}
    assert [(r["method"], r["scale"]) for r in rates.records] == [("idmm", 1.0), ("simclr", 2.0)]


@pytest.mark.parametrize("there", [{"jobs": 1}, {"machine": "another"}], ids=str)
def test_runs_go_on_anywhere_but_what_is_new_is_timed_where_the_others_were(sweep_dir, runner, there):
    rates, runs = Rates(sweep_dir, runner, HERE), runs_of(sweep_dir, "idmm")
    rates.measure(rates.missing(runs), Clock(idmm=3600.0))
    elsewhere = Rates(sweep_dir, runner, HERE | there)
    assert elsewhere.missing(runs) == []
    assert elsewhere.with_budgets(runs) == rates.with_budgets(runs)
    assert elsewhere.timed_on == HERE["machine"]
    with pytest.raises(
        ConfigError, match=r"rates\.json has no rate of simclr on tiny yet, and .* or give another --out"
    ):
        elsewhere.missing(runs_of(sweep_dir, "idmm", "simclr"))


def test_a_rate_holds_for_one_configuration_and_one_number_of_images(sweep_dir, runner):
    rates, runs = Rates(sweep_dir, runner, HERE), runs_of(sweep_dir, "idmm")
    rates.measure(rates.missing(runs), Clock(idmm=3600.0))
    fewer = runs_of(sweep_dir, "idmm", images=(0, 24))
    assert [run.images for run in rates.missing(fewer)] == [24]
    runner.config.tree["pretrain"]["model"]["image_size"] = 16
    assert len(rates.missing(runs)) == 1


def test_rates_of_what_is_no_longer_there_do_no_harm(sweep_dir, runner):
    """Of another folder's dataset, of a method that was renamed; an old rate of the same method is replaced."""
    rates, runs = Rates(sweep_dir, runner, HERE | {"machine": "another"}), runs_of(sweep_dir, "idmm")
    rates.measure(rates.missing(runs), Clock(idmm=3600.0))
    runner.config.tree["pretrain"]["model"]["image_size"] = 16
    rates = Rates(sweep_dir, runner, HERE)
    rates.measure(rates.missing(runs), Clock(idmm=7200.0))
    (rate,) = rates.records
    assert (rate["machine"], rate["crops_per_s"]) == (HERE["machine"], 1800.0)
    rates.records += [rate | {"dataset": "elsewhere"}, rate | {"method": "renamed"}]
    timed = [run.method for run in rates.missing(runs_of(sweep_dir, "simclr"))]
    assert timed == ["simclr", "idmm"]


def test_what_can_not_be_timed_is_told_and_left_out(sweep_dir, runner):
    rates, runs = Rates(sweep_dir, runner, HERE), runs_of(sweep_dir, "random", "idmm", "simclr", seeds=(0,))
    assert rates.measure(rates.missing(runs), Clock(idmm=3600.0)) == ["simclr failed"]
    assert [run.method for run in rates.with_budgets(runs)] == ["random", "idmm"]
    rates = Rates(sweep_dir / "none", runner, HERE)
    (sweep_dir / "none").mkdir()
    assert len(rates.measure(rates.missing(runs), Clock())) == 2
    assert [run.method for run in rates.with_budgets(runs)] == ["random"]
    assert rates.timed_on == HERE["machine"]


def test_what_fails_is_timed_once(sweep_dir, runner):
    rates, clock = Rates(sweep_dir, runner, HERE), Clock(idmm=3600.0)
    rates.measure(rates.missing(runs_of(sweep_dir, "idmm", "simclr")), clock)
    assert clock.asked == [["idmm", "simclr"], ["idmm"], ["idmm"]]
    run = rates.missing(runs_of(sweep_dir, "simclr", images=(24,)))[0]
    assert Timing(runner).name(run) == "timing simclr on 24 balanced of tiny"


def test_a_method_whose_crops_change_their_size_has_no_rate(sweep_dir, runner):
    """Not the one of its first size, whether it has been timed or not."""
    runner.config._methods["grow"] = {"base": "idmm", "crops.schedule": [{"from": 0.5, "size": 32}]}
    rates, runs = Rates(sweep_dir, runner, HERE), runs_of(sweep_dir, "idmm", "grow")
    with pytest.raises(ConfigError, match=r"grow has crops\.schedule, .* with --minutes"):
        rates.missing(runs)
    assert len(rates.missing(runs_of(sweep_dir, "idmm"))) == 1


def test_a_rate_holds_for_one_way_of_computing(sweep_dir, runner):
    """Whether a network is compiled changes no result, and how fast it comes."""
    runs = runs_of(sweep_dir, "idmm")
    rates = Rates(sweep_dir, runner, HERE)
    rates.measure(rates.missing(runs), Clock(idmm=900.0))
    assert rates.missing(runs) == []
    runner.config.tree["pretrain"]["data"] = {"cache": "memory"}
    assert len(Rates(sweep_dir, runner, HERE).missing(runs)) == 1


def test_whether_a_method_is_compiled_is_known_before_it_is_timed(sweep_dir, runner):
    runner.config._methods["either"] = {"base": "idmm", "training.compile": "auto"}
    with pytest.raises(ConfigError, match=r"either has training\.compile=auto, .* write true or false"):
        Rates(sweep_dir, runner, HERE).missing(runs_of(sweep_dir, "either"))


@pytest.mark.parametrize("text", ['[{"dataset": ', "{}", "[1]"])
def test_a_damaged_file_of_rates_is_named(sweep_dir, runner, text):
    (sweep_dir / "rates.json").write_text(text)
    with pytest.raises(ConfigError, match=r"/rates\.json is damaged"):
        Rates(sweep_dir, runner, HERE)


def test_images_without_labels_are_timed(sweep_dir, runner):
    """Their test images need not be there: what is timed is a pretraining, whatever is fine-tuned on."""
    noise = list(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8))
    path = sweep_dir / "data" / "bare_train.beton"
    write_beton(path, Split(noise, [-1] * 8, ["a"]), dataset="test", name="train", mode="raw", quiet=True)
    axes = SweepAxes(["bare"], ["idmm"], targets=["tiny"], minutes=0.5)
    runs = make_runs(axes, runner.config, sweep_dir / "data")
    rates = Rates(sweep_dir, runner, HERE)
    rates.measure(rates.missing(runs), Clock(idmm=3600.0))
    assert [run.budget for run in rates.with_budgets(runs)] == [30 * 900]


@pytest.mark.parametrize(
    ("size", "spread", "accumulate", "wanted"), [(0, 1, 1, FIRST_STEPS), (9, 1, 1, 50), (9, 1, 7, 8), (9, 6, 1, 300)]
)
def test_the_first_steps_end_where_all_images_are_decoded(size, spread, accumulate, wanted):
    """JPEGs that are kept, or whose crops are, are decoded in the first epochs alone."""
    cfg = SimpleNamespace(crops=SimpleNamespace(spread=spread), training=SimpleNamespace(accumulate=accumulate))
    loader = type("Loader", (), {"cache": SimpleNamespace(size=size), "__len__": lambda self: 50})()
    assert first_steps(SimpleNamespace(cfg=cfg, loader=loader)) == wanted


def test_the_rate_is_that_of_the_steps_after_the_first(sweep_dir, runner, monkeypatch):
    """By a clock that shows 0.5 s more after each step; 48 images are two steps of 32 and 16 images, of six crops."""
    ticks = itertools.count(0.0, 0.5)
    waits = iter([100.0] * FIRST_STEPS + [0.0] * 1000)  # as if the first steps were compiled
    offset = itertools.accumulate(waits)
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) + next(offset))
    monkeypatch.setattr("idmm_fast.compare.rates.time", clock)
    (run,) = runs_of(sweep_dir, "idmm", images=(48,), seeds=(0,))
    runner.files.train(run)
    found = []
    for seconds in (0.0, 100.0):
        Timing(runner, seconds).run([replace(run, budget=1 << 40)], lambda run, rate: found.append(rate), None)
        assert found[-1]["crops_per_s"] == pytest.approx(24 * 6 / 0.5)
    assert next(ticks) / 0.5 == FIRST_STEPS + LEAST_STEPS + FIRST_STEPS + 200
    assert not list(sweep_dir.glob("timing_*"))
