"""Training runs as processes: what is read from their logs, and how they fail."""

import json
import math

import pytest

from kd_detr_mmdet.utils.runs import (
    Job,
    curve,
    progress,
    scalars,
    series,
    training_clock,
    wait,
)


def log(work_dir, *rows, start="20260101_000000"):
    path = work_dir / start / "vis_data"
    path.mkdir(parents=True)
    (path / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"cut')


def test_the_curve_counts_iterations_and_seconds(tmp_path):
    log(
        tmp_path,
        dict(loss=9.0, time=0.5, iter=10),
        dict(loss=8.0, time=0.25, iter=30),
        {"coco/bbox_mAP": 0.1, "step": 1},
        dict(loss=7.0, time=1.0, iter=40),
        {"coco/bbox_mAP": -1.0, "step": 2},
    )
    assert curve(tmp_path) == [  # half a second is the median
        dict(iteration=30, seconds=15.0, bbox_mAP=0.1),
        dict(iteration=40, seconds=20.0, bbox_mAP=0.0),
    ]


def test_a_step_may_cost_more_in_one_part_of_a_run_than_in_another():
    times = 6 * [1.0] + 6 * [0.5]
    times[2] = times[9] = 100.0  # interruptions
    rows = [dict(loss=1.0, time=t, iter=10 * n) for n, t in enumerate(times, 1)]
    rows.insert(6, {"coco/bbox_mAP": 0.1, "step": 1, "time": 9.0})
    clock = training_clock(rows)
    # 60 steps of a second, 60 of half a second, and more at the last pace.
    assert [clock(n) for n in (0, 5, 60, 65, 120, 130)] == [0, 5, 60, 62.5, 90, 95]
    of_the_processor = training_clock([dict(row, cpu_time=0.25) for row in rows if "loss" in row])
    assert of_the_processor(120) == 30
    assert math.isnan(training_clock(rows[6:7])(10))


def test_what_a_resumed_run_did_twice_counts_once(tmp_path):
    """Two iterations an epoch; the checkpoint of epoch 2 was lost, and that of epoch 3 was not."""

    def epochs(first, last, loss):
        for epoch in range(first, last + 1):
            yield dict(loss=loss, time=1.0, iter=2 * epoch)
            yield {"coco/bbox_mAP": loss / 10, "step": epoch, "time": 99.0}

    log(tmp_path, *epochs(1, 2, 1.0))
    log(tmp_path, *epochs(2, 4, 2.0), start="20260102_000000")
    log(tmp_path, *epochs(4, 5, 3.0), start="20260103_000000")
    log(tmp_path, start="20260104_000000")  # it has not come to its first line
    rows = scalars(tmp_path)
    assert series(rows) == {
        "loss": [(2, 1.0), (4, 2.0), (6, 2.0), (8, 3.0), (10, 3.0)],
        "time": [(2, 1.0), (4, 1.0), (6, 1.0), (8, 1.0), (10, 1.0)],
        "coco/bbox_mAP": [(2, 0.1), (4, 0.2), (6, 0.2), (8, 0.3), (10, 0.3)],
    }
    assert [point["seconds"] for point in curve(tmp_path)] == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_progress_tells_the_last_evaluation(tmp_path):
    assert progress("student alone", tmp_path) == ""
    log(tmp_path, {"coco/bbox_mAP": 0.1, "step": 1}, {"coco/bbox_mAP": 0.234, "step": 2})
    assert progress("student alone", tmp_path) == "student alone: epoch 2, AP 23.4"


def test_a_job_has_one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    job = Job("alone", ["-c", "import torch; print(torch.get_num_threads())"], tmp_path / "log")
    assert job.process.wait() == 0
    assert (tmp_path / "log").read_text().strip() == "1"


def test_a_failed_job_ends_the_others_and_tells_its_log(tmp_path):
    bad = Job("teacher", ["-c", "raise SystemExit('no luck')"], tmp_path / "bad.log")
    slow = Job("alone", ["-c", "import time; time.sleep(600)"], tmp_path / "slow.log")
    with pytest.raises(SystemExit, match="no luck\nerror: teacher failed; .* log is .*bad.log"):
        wait([bad, slow])
    assert slow.process.poll() is not None
