"""A study's report: figures worked by hand from made-up learning curves."""

import json
import math
from dataclasses import replace

import pytest
from conftest import ROOT

from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.study import Run, Study
from kd_detr_mmdet.utils.study_report import (
    ahead_of,
    best_within,
    compare,
    interval,
    mean_curve,
    summarize,
    write_report,
)

STUDIES = ROOT / "docs" / "studies"


def result(*points, commit="abc1234"):
    """Content of result.json from (iteration, seconds, AP in percent)."""
    curve = [
        dict(iteration=i, seconds=s, bbox_mAP=a / 100, bbox_mAP_50=a / 50) for i, s, a in points
    ]
    return dict(
        commit=commit,
        iterations=points[-1][0],
        seconds=points[-1][1],
        curve=curve,
        bbox_mAP=curve[-1]["bbox_mAP"],
        best_bbox_mAP=max(point["bbox_mAP"] for point in curve),
    )


def run(name, **keys):
    return Run(name=name, config="c.py", options={}, seeds=(0, 1), **{"title": name, **keys})


BOTH = run(
    "both",
    title="general + specific",
    teacher="dino",
    baseline="alone",
    same_time=("alone", "longer"),
)
STUDY = Study(
    title="Which points?",
    path="studies/points.py",
    seeds=(0, 1),
    teachers={"dino": run("dino", title="teacher dino")},
    runs={"alone": run("alone"), "longer": run("longer"), "both": BOTH},
)
# A step of distillation takes twice as long: 200 iterations are 20 s alone, 40 s distilled.
RESULTS = {
    "dino": {0: result((100, 15, 30), (200, 30, 50))},
    "alone": {0: result((100, 10, 22), (200, 20, 20)), 1: result((100, 10, 10), (200, 20, 18))},
    "longer": {
        0: result((200, 20, 15), (400, 41, 32), (500, 60, 40)),
        1: result((200, 20, 25), (400, 41, 24), (500, 60, 30)),
    },
    "both": {0: result((100, 20, 24), (200, 40, 28)), 1: result((100, 20, 16), (200, 40, 17))},
}


def test_interval_is_students():
    told = interval({0: 1.0, 1: 2.0, 2: 6.0})
    # Mean 3, standard deviation sqrt(7), t(0.975, 2) = 4.30265.
    half = 4.30265 * math.sqrt(7 / 3)
    assert told["mean"] == 3
    assert (told["low"], told["high"]) == pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert interval({5: 2.0})["low"] is None
    assert interval({})["mean"] is None


def test_gains_are_paired():
    told = compare(BOTH, RESULTS)
    # 28 - 20 and 17 - 18.
    assert told["equal_iterations"]["per_seed"] == pytest.approx({0: 8, 1: -1})
    assert told["equal_iterations"]["mean"] == pytest.approx(3.5)
    # Within 40 s (and 3 %, so 41.2 s) the others reached 32 and 25; not the 40 and 30 of 60 s.
    assert told["equal_time"]["per_seed"] == pytest.approx({0: -4, 1: -8})
    # Best of all: 28 against 40, 17 against 30.
    assert told["plateau"]["per_seed"] == pytest.approx({0: -12, 1: -13})


def test_equal_time_allows_three_percent_and_no_more():
    results = {**RESULTS, "longer": {0: result((200, 20, 15), (400, 41.3, 32))}}
    # 41.3 s are too long now: 15 after 20 s and 32 then are 15 + 17 * 20 / 21.3 after these 40 s.
    expected = {0: 28 - (15 + 17 * 20 / 21.3)}
    assert compare(BOTH, results)["equal_time"]["per_seed"] == pytest.approx(expected)


def test_between_two_evaluations_a_curve_is_a_straight_line():
    curve = result((100, 10, 20), (200, 30, 40), (300, 50, 10))["curve"]
    assert best_within(25, curve) == pytest.approx(0.35)
    assert best_within(30, curve) == pytest.approx(0.40)
    assert best_within(40, curve) == pytest.approx(0.40)  # on its way down to 25
    assert best_within(60, curve) == pytest.approx(0.40)
    # Nothing is known from before the first evaluation, but for the 3 %.
    assert best_within(9, curve) is None
    assert best_within(9.8, curve) == pytest.approx(0.20)


def test_rare_evaluations_do_not_favour_the_distilled():
    alone = [(100, 10, 10), (200, 20, 20), (300, 30, 30), (400, 40, 40), (500, 50, 50)]
    often, rarely = (
        {"alone": {0: result(*points)}, "both": {0: result((200, 37, 39))}}
        for points in (alone, alone[::4])
    )
    both = run("both", baseline="alone", same_time=("alone",))
    for results in (often, rarely):
        assert compare(both, results)["equal_time"]["per_seed"] == pytest.approx({0: 39 - 37})


def test_a_run_without_others_to_compare_with_has_no_gain_at_equal_time():
    told = compare(run("both", baseline="alone"), RESULTS)
    assert told["equal_iterations"]["seeds"] == 2
    assert told["equal_time"]["seeds"] == told["plateau"]["seeds"] == 0


def test_a_gain_at_equal_time_needs_another_that_trained_for_as_long():
    told = compare(run("both", baseline="alone", same_time=("alone",)), RESULTS)
    # Alone, training ended after 20 of these 40 s.
    assert told["equal_iterations"]["seeds"] == 2
    assert told["equal_time"]["seeds"] == told["plateau"]["seeds"] == 0
    # 20 s and 3 % are just enough for 20.6 s; of what takes 20.7 s nothing is known.
    results = {**RESULTS, "both": {0: result((200, 20.6, 28)), 1: result((200, 20.7, 17))}}
    told = compare(run("both", baseline="alone", same_time=("alone",)), results)
    assert told["equal_time"]["per_seed"] == pytest.approx({0: 28 - 22})
    assert told["plateau"]["per_seed"] == pytest.approx({0: 28 - 22})
    # One that trained for as long, and was not evaluated so early, says nothing of that time.
    results = {**RESULTS, "longer": {0: result((600, 60, 40))}}
    told = compare(BOTH, results)
    assert told["equal_time"]["seeds"] == 0
    assert told["plateau"]["per_seed"] == pytest.approx({0: 28 - 40})


def test_time_to_the_baselines_best():
    told = compare(BOTH, RESULTS)["time_to_baseline"]
    # Seed 0: 22 after 10 s alone, 24 after 20 s distilled. Seed 1: 18 is never reached.
    assert told == dict(median=None, per_seed={0: 2.0, 1: None}, reached=1, seeds=2)
    results = {
        "alone": {n: result((100, 10, 10), (200, 20, 18)) for n in range(3)},
        "both": {
            0: result((100, 5, 18)),
            1: result((100, 12, 9), (200, 15, 19)),
            2: result((100, 9, 1)),
        },
    }
    told = compare(run("both", baseline="alone", same_time=("alone",)), results)
    # 5 / 20, 15 / 20 and never.
    assert told["time_to_baseline"]["median"] == 0.75
    assert told["time_to_baseline"]["reached"] == 2


def test_time_to_the_best_and_not_to_the_last():
    results = {
        "alone": {0: result((100, 10, 22), (200, 20, 20))},
        "both": {0: result((100, 5, 21), (200, 15, 22))},
    }
    told = compare(run("both", baseline="alone", same_time=("alone",)), results)
    assert told["time_to_baseline"]["per_seed"] == {0: 1.5}  # 15 of 10 s to 22


def test_of_a_baseline_that_found_nothing_no_time_is_told():
    results = {"alone": {0: result((100, 10, 0))}, "both": {0: result((100, 20, 5))}}
    told = compare(run("both", baseline="alone", same_time=("alone",)), results)
    assert told["time_to_baseline"] == dict(median=None, per_seed={}, reached=0, seeds=0)
    assert told["equal_iterations"]["per_seed"] == pytest.approx({0: 5})


def test_only_seeds_that_are_complete_count():
    results = {**RESULTS, "longer": {0: RESULTS["longer"][0]}}
    told = compare(BOTH, results)
    assert told["equal_iterations"]["seeds"] == 2
    assert told["equal_time"]["seeds"] == told["plateau"]["seeds"] == 1
    assert compare(BOTH, {"both": RESULTS["both"]})["equal_iterations"]["mean"] is None


def test_no_gain_at_equal_iterations_from_unequal_ones():
    other = run("both", baseline="longer", same_time=("longer",))
    assert compare(other, RESULTS)["equal_iterations"]["mean"] is None


def test_any_two_runs_are_compared_in_pairs():
    results = {
        **RESULTS,
        "other": {n: result((200, 30, ap)) for n, ap in ((5, 50), (1, 21), (0, 26))},
    }
    study = replace(STUDY, runs={**STUDY.runs, "other": run("other")})
    teacher = dict(name="dino", sha256="0" * 64)
    results["both"] = {seed: dict(own, teacher=teacher) for seed, own in results["both"].items()}
    report = json.loads(json.dumps(summarize(study, results)))  # as read from a file
    told = ahead_of(report, "both")
    # 26 - 28 and 21 - 17; seed 5 has no partner, and "longer" trained for other iterations.
    assert told["other"]["per_seed"] == pytest.approx({0: -2, 1: 4})
    assert list(told["other"]["per_seed"]) == [0, 1]
    assert told["other"]["mean"] == pytest.approx(1)
    # t(0.975, 1) = 12.7062; the standard error of -2 and 4 is 3.
    assert told["other"]["low"] == pytest.approx(1 - 12.7062 * 3, abs=1e-3)
    assert told["alone"]["per_seed"] == pytest.approx({0: -8, 1: 1})
    assert set(told) == {"other", "alone"}  # and not the teacher
    assert ahead_of(report, "alone")["both"]["per_seed"] == pytest.approx({0: 8, 1: -1})
    with pytest.raises(ConfigError, match="no other run has a seed and the iterations of 'longer'"):
        ahead_of(report, "longer")
    with pytest.raises(ConfigError, match="no run 'bth' in this report; it has 'alone'"):
        ahead_of(report, "bth")


@pytest.mark.parametrize("study", sorted(p.parent.name for p in STUDIES.glob("*/report.json")))
def test_the_runs_of_a_stored_report_are_compared(study):
    report = json.loads((STUDIES / study / "report.json").read_text())
    for name in report["gains"]:
        told = ahead_of(report, name)
        assert not any(report["rows"][other]["title"].startswith("teacher ") for other in told)


def test_the_mean_curve_has_what_all_seeds_have():
    results = {0: result((100, 12, 20), (150, 15, 99), (200, 24, 30)), 1: RESULTS["alone"][1]}
    assert mean_curve(results) == [
        dict(iteration=100, seconds=11, mean=15, low=10, high=20),
        dict(iteration=200, seconds=22, mean=24, low=18, high=30),
    ]


def test_tables(tmp_path):
    write_report(tmp_path, STUDY, RESULTS)
    text = (tmp_path / "report.md").read_text()
    assert "| teacher dino | 50.0 | - | 50.0 | 50.0 | 200 | 30 | 0 |" in text
    # Mean of 20 and 18; spread sqrt(2); the curves' best are 22 and 18.
    assert "| alone | 19.0 | 1.4 | 20.0 18.0 | 20.0 | 200 | 20 | 0 1 |" in text
    # t(0.975, 1) = 12.7062; half widths 12.7062 * 4.5, * 2 and * 0.5.
    assert (
        "| general + specific | alone | +3.5 [-53.7, +60.7] (2) | -6.0 [-31.4, +19.4] (2) | "
        "-12.5 [-18.9, -6.1] (2) | never (1 of 2) | alone, longer |" in text
    )
    last = text.strip().splitlines()[-1]
    assert last.startswith("Seeds 0 1; commit abc1234; ")
    assert last.endswith("`python tools/study.py studies/points.py`")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"]["both"]["ap_per_seed"] == pytest.approx({"0": 28, "1": 17})
    assert report["gains"]["both"]["equal_time"]["mean"] == pytest.approx(-6)
    assert report["rows"]["alone"]["results"]["1"]["curve"][0]["seconds"] == 10
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json", "report.png"}


def test_a_report_names_where_it_was_trained_and_not_where_it_is_written(monkeypatch):
    monkeypatch.setattr("kd_detr_mmdet.utils.study_report.machine", lambda: "this one")
    first, second, third = ({"machine": name} for name in ("the first; the second", "third", None))
    alone = {i: {**result((100, 10, 20)), **m} for i, m in enumerate((first, second, third))}
    alone[3] = {**alone[0], "machine": "the first"}  # each is named once
    told = summarize(STUDY, {"alone": alone})["machine"]
    assert told == "the first; the second; third; this one"  # the last has not noted it
    added = [dict(path="r.json", machine="third", seeds=[1, 2, 3], teachers={})]
    assert summarize(STUDY, {"alone": alone}, added)["machine"] == "the first; the second"
    assert summarize(STUDY, {"dino": {0: result((100, 10, 20))}})["machine"] == "this one"


def test_one_seed_has_no_interval(tmp_path):
    results = {name: {0: by_seed[0]} for name, by_seed in RESULTS.items()}
    write_report(tmp_path, STUDY, results)
    text = (tmp_path / "report.md").read_text()
    assert "| +8.0 [-] (1) | -4.0 [-] (1) | -12.0 [-] (1) | 200% (1 of 1) |" in text


def test_what_differs_between_seeds_is_a_mean_and_every_commit_is_named():
    results = {
        "dino": {7: result((100, 15, 30))},
        "alone": {
            0: result((100, 10, 20), commit="aaaaaaa, bbbbbbb"),
            1: result((300, 40, 20), commit="ccccccc"),
        },
    }
    report = summarize(STUDY, results)
    row = report["rows"]["alone"]
    assert (row["iterations"], row["seconds"]) == (200, 25)
    assert report["commits"] == ["aaaaaaa", "abc1234", "bbbbbbb", "ccccccc"]
    assert report["seeds"] == [0, 1]  # of the students, not of the teacher


def test_what_is_not_finished_is_left_out():
    report = summarize(STUDY, {"both": RESULTS["both"]})
    assert list(report["rows"]) == ["both"]
    with pytest.raises(ConfigError, match="no run is finished yet"):
        write_report(None, STUDY, {})


def test_a_picture_of_twelve_runs(tmp_path):
    runs = {f"r{n}": run(f"r{n}", title=f"a run with a long title {n}") for n in range(12)}
    results = {
        name: {s: result((100, 10, n), (200, 20, n + s)) for s in (0, 1)}
        for n, name in enumerate(runs)
    }
    write_report(tmp_path, Study("Twelve", "s.py", (0, 1), {}, runs), results)
    assert (tmp_path / "report.png").stat().st_size > 10_000
