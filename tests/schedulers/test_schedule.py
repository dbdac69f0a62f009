"""Learning rates step by step against closed forms, and resumed at every kind of moment."""

import io
import math
import timeit
import warnings

import pytest
import torch
from schedule_cases import CLOSED, CONF, EPOCH, LR, OPTIONS, OWN, RUN, option, series, sgd, update

from launcher.core.errors import ConfigError
from launcher.schedulers.schedule import build_schedule, depends_on_length, parse_warmup

PARSED = {None: 0, 0: 0, 7: 7, 99: 99, 0.1: 10, 0.005: 0, "2epochs": 20, "1 epoch": 10, "0.5epochs": 5, "12steps": 12}
REFUSED = [100, "100steps", "10epochs", 1.0, -1, -0.1, True, "soon", "5", "1.5steps", [1]]


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(("warmup", "w"), [(0, 0), (5, 5), (0.2, 6), ("2epochs", 8), ("1steps", 1)])
@pytest.mark.parametrize("name", sorted(CLOSED))
def test_rates_are_the_closed_form(name, warmup, w, interval):
    period = 1 if interval == "step" else EPOCH
    length = math.ceil((RUN - w) / period)
    peak = CLOSED[name](0, length)
    expected = [peak * (t + 1) / (w + 1) for t in range(w)]
    expected += [CLOSED[name]((t - w) // period, length) for t in range(w, RUN)]
    taken = series(option(name, interval=interval, warmup=warmup))
    assert taken == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if w:
        assert taken[w] == peak


def test_groups_keep_their_ratio():
    for name in sorted(CLOSED):  # `series` compares the groups at each update
        assert series(option(name, warmup=3), lrs=(LR, LR / 10)) == pytest.approx(series(option(name, warmup=3)))


def test_plateau_cuts_after_patience_and_not_in_warmup():
    # Evaluations after updates 4, 8, 12, ...; the best is the first that follows warmup (6 updates).
    metrics = [0.1, 1.0, 1.0, 1.0, 0.5, 0.5, float("nan")]
    taken = series(option("plateau", warmup=6, patience=1, factor=0.5), metrics=metrics)
    # Update 8 sets the best; 12 is borne, 16 cuts; 20 improves; 24 is borne, 28 (nan is no improvement) cuts.
    expected = [LR * (t + 1) / 7 for t in range(6)] + [LR] * 10 + [LR / 2] * 12 + [LR / 4] * 2
    assert taken == pytest.approx(expected)


def test_plateau_observes_its_metric():
    schedule = build_schedule(option("plateau", metric="eval/accuracy", mode="max"), sgd(), RUN, EPOCH)
    assert schedule.metric == "eval/accuracy"
    assert build_schedule(option("cosine"), sgd(), RUN, EPOCH).metric is None
    taken = series(option("plateau", metric="eval/accuracy", mode="max", patience=0), metrics=[1, 2, 3, 4, 4, 5, 6])
    assert taken == pytest.approx([LR] * 20 + [LR / 10] * 10)


RESUMED = [
    *[option(name, warmup=6) for name in OPTIONS],
    *[option(name, warmup=0) for name in OPTIONS],
    *[option(name, warmup=6, interval="epoch") for name in ("cosine", "linear", "constant", "one_cycle")],
    option("one_cycle", warmup=6, cycle_momentum=True),
    option("cosine", warmup=6, T_max=7),
    option("plateau", warmup=6, patience=0, cooldown=1),
    OWN,
]


@pytest.mark.parametrize("settings", RESUMED, ids=lambda s: f"{s['_target_'].rpartition('.')[2]}")
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_resumed_series_has_the_same_bits(settings, optimizer_first):
    """Cut before the first update, in warmup, at its end, just after it, on and off epoch ends."""
    metrics = [0.9, 0.8, 0.8, 0.85, 0.7, 0.75, 0.71]

    def go(optimizer, schedule, start, stop):
        rates = []
        for t in range(start, stop):
            rates.append([(g["lr"], g["momentum"]) for g in optimizer.param_groups])
            update(optimizer)
            schedule.step()
            if schedule.metric is not None and (t + 1) % EPOCH == 0:
                schedule.observe(metrics[t // EPOCH])
        return rates

    def fresh():
        optimizer = sgd((LR, LR / 3))
        return optimizer, build_schedule(settings, optimizer, RUN, EPOCH)

    whole = go(*fresh(), 0, RUN)
    for cut in (0, 2, 5, 6, 7, 8, 13, 29):
        optimizer, schedule = fresh()
        go(optimizer, schedule, 0, cut)
        file = io.BytesIO()
        torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        optimizer, schedule = fresh()
        restores = [lambda: optimizer.load_state_dict(saved["optimizer"])]  # noqa: B023
        restores.insert(0 if not optimizer_first else 1, lambda: schedule.load_state_dict(saved["schedule"]))  # noqa: B023
        for restore in restores:
            restore()
        assert schedule.updates == cut
        assert go(optimizer, schedule, cut, RUN) == whole[cut:], f"cut at {cut}"


def test_restored_rates_do_not_need_the_optimizers_state():
    settings = option("cosine", warmup=3)
    schedule = build_schedule(settings, sgd(), RUN, EPOCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer step here
        for _ in range(9):
            schedule.step()
    other = build_schedule(settings, sgd(), RUN, EPOCH)
    other.load_state_dict(schedule.state_dict())
    assert other.lr == schedule.lr == pytest.approx(CLOSED["cosine"](6, RUN - 3))
    with pytest.raises(ConfigError, match="1 parameter groups, this optimizer has 2"):
        build_schedule(settings, sgd((LR, LR)), RUN, EPOCH).load_state_dict(schedule.state_dict())


def test_built_after_the_optimizer_was_restored_it_goes_on():
    settings, optimizer = option("cosine", warmup=6), sgd()
    schedule = build_schedule(settings, optimizer, RUN, EPOCH)
    for _ in range(3):
        update(optimizer)
        schedule.step()
    late = sgd()
    late.load_state_dict(optimizer.state_dict())
    resumed = build_schedule(settings, late, RUN, EPOCH)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(3, RUN):
        assert resumed.lr == schedule.lr
        for one, its in ((optimizer, schedule), (late, resumed)):
            update(one)
            its.step()


def test_no_warning_in_a_normal_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in sorted(CLOSED):
            series(option(name, warmup=2))


def test_a_run_may_be_shorter_than_anything():
    for name in sorted(CLOSED):
        for interval in ("step", "epoch"):
            for run in (1, 2, 3):
                assert all(math.isfinite(rate) for rate in series(option(name, interval=interval), run=run))


def test_a_step_costs_little_beside_torch():
    """0.2 us beside torch's own 2.2 us, measured; the bound leaves room for a busy machine."""
    schedule = build_schedule(option("cosine"), sgd(), 10**6, 1000)
    plain = torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), 10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (min(timeit.repeat(one.step, number=500, repeat=9)) / 500 for one in (schedule, plain))
    assert ours - theirs < 5e-6


def test_given_arguments_are_used():
    t = range(RUN)
    swing = [0.1 + 0.3 * (1 + math.cos(math.pi * k / 10)) / 2 for k in t]  # back up after T_max, and down again
    assert series(option("cosine", T_max=10, eta_min=0.1)) == pytest.approx(swing, rel=1e-9)
    ramp = [LR * (0.25 + 0.75 * min(k, 6) / 6) for k in t]
    assert series(option("linear", total_iters=6.0, start_factor=0.25, end_factor=1.0)) == pytest.approx(ramp)
    assert series(option("step", interval="step", step_size=7, gamma=0.5)) == [LR * 0.5 ** (k // 7) for k in t]
    assert series(option("constant", factor=0.5, total_iters=3)) == [LR / 2 if k < 3 else LR for k in t]
    assert max(series(option("one_cycle", max_lr=2.0, pct_start=0.5, total_steps=40))) == pytest.approx(2.0)


def test_one_cycle_moves_momentum_only_where_asked():
    for cycle in (False, True):
        optimizer = sgd(momentum=0.8)
        schedule = build_schedule(option("one_cycle", cycle_momentum=cycle), optimizer, RUN, EPOCH)
        momenta = []
        for _ in range(RUN):
            momenta.append(optimizer.param_groups[0]["momentum"])
            update(optimizer)
            schedule.step()
        if cycle:
            assert momenta[0] == pytest.approx(0.95) and min(momenta) == pytest.approx(0.85)
            assert momenta[-1] == pytest.approx(0.95)
        else:
            assert momenta == [0.8] * RUN


def test_own_scheduler_by_target():
    expected = [LR * (t + 1) / 5 for t in range(4)] + [LR * 0.5 ** (k // 3) for k in range(RUN - 4)]
    assert series(OWN) == pytest.approx(expected)
    schedule = build_schedule(OWN, sgd(), RUN, EPOCH)
    assert schedule.main.total_steps == RUN - 4
    own = {"_target_": "torch.optim.lr_scheduler.MultiStepLR", "milestones": [2, 4], "interval": "epoch"}
    assert series(own) == pytest.approx([LR * 0.1 ** ((t >= 8) + (t >= 16)) for t in range(RUN)])


def test_depends_on_length_is_what_a_longer_run_shows():
    settings = [option(name) for name in sorted(CLOSED)]
    settings += [option(name, warmup=0.1) for name in ("constant", "step")]
    settings += [option("cosine", T_max=99), option("step", step_size=2), option("constant", warmup="2epochs")]
    settings += [option("linear", total_iters=50), option("one_cycle", total_steps=99)]
    for one in settings:
        differs = series(one, run=30) != series(one, run=60)[:30]
        assert depends_on_length(one) == differs, dict(one)
    # These were told the run's length, and would go another way after it.
    assert depends_on_length(OWN) and depends_on_length(option("constant", factor=0.5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (option("cosine", T_max=0), ["scheduler.T_max", "0", "> 0"]),
        (option("cosine", T_max=-3), ["scheduler.T_max", "-3"]),
        (option("cosine", T_max=2.5), ["scheduler.T_max", "2.5", "whole"]),
        (option("step", step_size=0), ["scheduler.step_size", "epochs > 0"]),
        (option("linear", total_iters="long"), ["scheduler.total_iters", "long"]),
        (option("linear", start_factor=0.0), ["tarting multiplicative factor"]),
        (option("one_cycle", total_steps=29), ["scheduler.total_steps", "29", "30"]),
        (option("one_cycle", pct_start=1.0), ["scheduler.pct_start", "1.0"]),
        (option("one_cycle", pct_start=1.5), ["pct_start", "1.5"]),
        (option("one_cycle", total_steps=50, pct_start=0.02), ["scheduler", "ZeroDivision"]),
        (option("cosine", warmup=30), ["scheduler.warmup", "30", "shorter"]),
        (option("cosine", interval="batch"), ["scheduler.interval", "batch", "step or epoch"]),
        (option("plateau", interval="step"), ["scheduler.interval", "epoch"]),
        (option("plateau", metric=None), ["scheduler.metric", "eval/loss"]),
        (option("plateau", mode="max"), ["scheduler.mode", "eval/loss", "min"]),
        (option("plateau", metric="eval/accuracy"), ["scheduler.mode=max", "eval/accuracy"]),
        (option("plateau", factor=1.0), ["actor"]),
        (option("plateau", mode="low"), ["low"]),
        (option("cosine", period=3), ["scheduler.period", "T_max"]),
        ({"_target_": "torch.optim.lr_scheduler.Cosine", "interval": "step"}, ["lr_scheduler.Cosine"]),
        ({"_target_": "builtins.id", "interval": "step"}, ["scheduler"]),
        ({"interval": "step"}, ["scheduler._target_"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ConfigError) as raised:
        build_schedule(settings, sgd(), RUN, EPOCH)
    for word in words:
        assert word in str(raised.value)


def test_momentum_cycle_needs_a_momentum():
    optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ConfigError, match="momentum"):
        build_schedule(option("one_cycle", cycle_momentum=True), optimizer, RUN, EPOCH)
    build_schedule(option("one_cycle"), optimizer, RUN, EPOCH)


def test_every_option_opens_with_its_command():
    assert OPTIONS == ["constant", "cosine", "linear", "one_cycle", "plateau", "step"]
    for name in OPTIONS:
        first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# ") and first.endswith(f"scheduler={name}")


@pytest.mark.parametrize(("text", "steps"), [*PARSED.items(), *((text, None) for text in REFUSED)])
def test_warmup_is_parsed(text, steps):
    if steps is None:
        with pytest.raises(ConfigError, match=r"scheduler\.warmup is "):
            parse_warmup(text, 100, 10)
    else:
        assert parse_warmup(text, 100, 10) == steps
