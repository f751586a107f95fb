"""Training runs as processes: what is read from their logs, and how they fail."""

import json

import pytest

from kd_detr_mmdet.utils.runs import Job, curve, progress, wait


def log(work_dir, *rows):
    path = work_dir / "20260101_000000" / "vis_data"
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
    assert curve(tmp_path) == [
        dict(iteration=30, seconds=10.0, bbox_mAP=0.1),  # 10 * 0.5 + 20 * 0.25
        dict(iteration=40, seconds=20.0, bbox_mAP=0.0),
    ]


def test_progress_tells_the_last_evaluation(tmp_path):
    assert progress("student alone", tmp_path) == ""
    log(tmp_path, {"coco/bbox_mAP": 0.1, "step": 1}, {"coco/bbox_mAP": 0.234, "step": 2})
    assert progress("student alone", tmp_path) == "student alone: epoch 2, AP 23.4"


def test_a_failed_job_ends_the_others_and_tells_its_log(tmp_path):
    bad = Job("teacher", ["-c", "raise SystemExit('no luck')"], tmp_path / "bad.log")
    slow = Job("alone", ["-c", "import time; time.sleep(600)"], tmp_path / "slow.log")
    with pytest.raises(SystemExit, match="no luck\nerror: teacher failed; .* log is .*bad.log"):
        wait([bad, slow])
    assert slow.process.poll() is not None
