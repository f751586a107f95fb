"""tools/study.py: what it refuses, in which order it trains, how it resumes, and one real study."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TEACHER, dino_config
from mmdet.registry import MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config, DictAction

from kd_detr_mmdet.datasets import generate_shapes
from kd_detr_mmdet.utils import study as study_module
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.study import (
    collect,
    make_data,
    make_tasks,
    measure,
    option,
    read_study,
    select,
    train_all,
)
from kd_detr_mmdet.utils.study_report import write_report

ROOT = Path(__file__).parents[2]

# Trains in no time. The config file says what to do; a line in calls.txt tells what was asked for.
STUB = """
import json, pathlib, shutil, sys, time
config, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])
root = pathlib.Path(__file__).parent
def tell(what):
    with open(root / "calls.txt", "a") as file:
        file.write(f"{what} {folder.parent.name} {folder.name} {' '.join(sys.argv[4:])}\\n")
tell("begin")
does = config.read_text()
if "fail" in does:
    sys.exit("no luck today")
time.sleep(1.5 if "slow" in does else 600 if "hang" in does else 0)
log = folder / "20260101_000000" / "vis_data" / "scalars.json"
log.parent.mkdir(parents=True, exist_ok=True)
rows = [dict(loss=1.0, time=0.5, iter=20)]
rows += [{"coco/bbox_mAP": a, "coco/bbox_mAP_50": 2 * a, "step": s} for s, a in ((1, 0.3), (2, 0.25))]
log.write_text("".join(json.dumps(row) + "\\n" for row in rows))
shutil.copy(root / "epoch_2.pth", folder / "epoch_2.pth")
(folder / "last_checkpoint").write_text(str(folder / "epoch_2.pth"))
tell("end")
"""  # noqa: E501


VALIDATES = "val_dataloader = dict()"


@pytest.fixture
def write(tmp_path):
    """Writes a study file, and configs for the stub by what they make it do."""

    def study(**content):
        for name in ("quick", "slow", "fail", "hang"):
            (tmp_path / f"{name}.py").write_text(f"{VALIDATES}  # {name}")
        content = {
            "seeds": [0],
            "runs": {"alone": dict(config=str(tmp_path / "quick.py"))},
        } | content
        path = tmp_path / "points.py"
        path.write_text("".join(f"{key} = {value!r}\n" for key, value in content.items()))
        return str(path)

    return study


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Runs the tool with a stub for training: (exit code, stderr, stdout)."""
    (tmp_path / "stub.py").write_text(STUB)
    torch.save(dict(state_dict={}, meta=dict(epoch=2, iter=20)), tmp_path / "epoch_2.pth")
    monkeypatch.setattr(study_module, "TRAIN", str(tmp_path / "stub.py"))
    monkeypatch.setattr(study_module, "POLL_SECONDS", 0.02)

    def tool(*arguments):
        work_dir = ["--work-dir", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments), *work_dir])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "tools" / "study.py"), run_name="__main__")
        out, err = capfd.readouterr()
        return stopped.value.code, err.strip(), out

    before = signal.getsignal(signal.SIGTERM)
    yield tool
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def calls(tmp_path):
    """What the stub was asked for so far: 'begin alone seed-0 --cfg-options ...', 'end ...'."""
    path = tmp_path / "calls.txt"
    return lambda: path.read_text().splitlines() if path.exists() else []


CONFIG = "configs/demo/dino_alone.py"
GOOD = dict(config=CONFIG)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (dict(seeds=[]), "seeds must be a list of at least one integer"),
        (dict(seeds=[1, 2, 1]), "seed 1 is given more than once"),
        (dict(seeds=[True]), "a seed is an integer"),
        (dict(sedes=[1]), "unknown key 'sedes'"),
        (dict(runs={}), "'runs' is empty"),
        (dict(runs=dict(a=dict(GOOD, optoins={}))), "runs.a: unknown key 'optoins'"),
        (dict(runs=dict(a={})), "runs.a: 'config' is missing"),
        (dict(runs={"a b": GOOD}), "bad name 'a b'"),
        (dict(runs={1: GOOD}), "bad name 1"),
        (dict(runs=dict(a=dict(config="no/such.py"))), "runs.a: no config file 'no/such.py'"),
        (dict(runs=dict(a=dict(GOOD, teacher="t"))), "runs.a: unknown teacher 't'; known: none"),
        (dict(runs=dict(a=dict(GOOD, baseline="b"))), "runs.a: unknown baseline 'b'"),
        (dict(runs=dict(a=dict(GOOD, baseline="a"))), "runs.a: unknown baseline 'a'"),
        (dict(runs=dict(a=GOOD, b=dict(GOOD, same_time=["a"]))), "'same_time' needs a 'baseline'"),
        (
            dict(runs=dict(a=GOOD, b=dict(GOOD, baseline="a", same_time=["c"]))),
            "runs.b: unknown same_time 'c'; other runs: 'a'",
        ),
        (dict(runs=dict(a=dict(GOOD, teacher=["t"]))), "runs.a.teacher must be a name, got ['t']"),
        (
            dict(runs=dict(a=GOOD, b=dict(GOOD, baseline="a", same_time=[None]))),
            "runs.b.same_time must be a name, got None",
        ),
        (dict(runs=dict(a=dict(GOOD, options={"randomness.seed": 1}))), "the study sets it"),
        (dict(options={"train_cfg": dict(max_epochs=1)}), "cannot be set"),
        (dict(teachers=dict(alone=GOOD)), "a teacher has that name too"),
        (dict(teachers=dict(t=dict(GOOD, seed=-1))), "teachers.t.seed: a seed is an integer"),
        (dict(data=dict(train=1)), "data: 'val' is missing"),
    ],
)
def test_bad_studies(write, content, told):
    with pytest.raises(ConfigError) as caught:
        read_study(write(**content))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_study_of_the_docs(tmp_path):
    """configs/studies/README.md, "A study of your own"."""
    text = (ROOT / "configs/studies/README.md").read_text()
    (tmp_path / "study.py").write_text(re.search(r"```python\n(.*?)```", text, re.S)[1])
    study = read_study(str(tmp_path / "study.py"))
    assert list(study.runs) == ["alone", "longer", "distilled", "hungarian"]
    for run in study.runs.values():
        cfg = Config.fromfile(run.config)
        if run.teacher:
            cfg.merge_from_dict({**run.options, "model.teacher.checkpoint": None})
        MODELS.build(cfg.model)


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(ConfigError, match="no study file"):
        read_study(str(tmp_path / "none.py"))
    (tmp_path / "broken.py").write_text("seeds = [")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_study(str(tmp_path / "broken.py"))


def test_bad_data_is_told_in_one_line(write, tmp_path):
    study = read_study(write(data=dict(train=0, val=1, size=(64, 48), root=str(tmp_path / "d"))))
    with pytest.raises(ConfigError, match="data: "):
        make_data(study)


def test_images_are_generated_as_asked_for(write, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(study_module, "generate_shapes", lambda **given: asked.append(given))
    data = dict(train=6, val=2, size=(64, 48), seed=5, root=str(tmp_path))
    make_data(read_study(write(data=data)))
    splits = dict(train=6, val=2)
    assert asked == [dict(root=tmp_path, splits=splits, image_size=(64, 48), seed=5)]


def test_a_good_study(write):
    study = read_study(
        write(
            _scratch=1,
            title="T",
            seeds=[3, 1],
            options={"train_cfg.val_interval": 2, "a.b": 1},
            teachers=dict(t=dict(GOOD, seed=4)),
            runs=dict(
                z=dict(GOOD, options={"a.b": 2, "param_scheduler.1.milestones": [32]}),
                b=dict(GOOD, title="B|C", teacher="t", baseline="z"),
            ),
        )
    )
    assert list(study.runs) == ["z", "b"]
    assert study.runs["z"].options == {
        "train_cfg.val_interval": 2,
        "a.b": 2,
        "param_scheduler.1.milestones": [32],
    }
    assert study.runs["b"].same_time == ("z",)
    assert study.runs["b"].title == "B/C"
    assert study.teachers["t"].seeds == (4,)
    order = [str(task) for task in make_tasks(study, Path("/nowhere"))]
    assert order == ["t, seed 4", "z, seed 3", "b, seed 3", "z, seed 1", "b, seed 1"]
    assert read_study(study.path, seeds=[7]).runs["z"].seeds == (7,)


def test_select_adds_the_teachers(write):
    study = read_study(write(teachers=dict(t=GOOD), runs=dict(a=GOOD, b=dict(GOOD, teacher="t"))))
    tasks = make_tasks(study, Path("/nowhere"))
    assert [task.run.name for task in select(tasks, ["b"])] == ["t", "b"]
    assert [task.run.name for task in select(tasks, ["a"])] == ["a"]
    with pytest.raises(ConfigError, match="--runs: unknown run 'c'"):
        select(tasks, ["c"])


@pytest.mark.parametrize(
    "value", [3, 0.1, 1e-5, True, None, "uniform", "data/x.json", [32], [6, 7], [], (1, (2, 3))]
)
def test_options_arrive_as_given(value):
    assert option("a.1.b", value).startswith("a.1.b=")


@pytest.mark.parametrize("value", ["1", "a b", "a,b", "None", {"a": 1}, (1, "2")])
def test_options_that_would_arrive_changed(value):
    with pytest.raises(ConfigError, match="'a.b' cannot be set to"):
        option("a.b", value)


def test_lists_reach_the_config():
    parser = study_module.argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    cfg = Config.fromfile(ROOT / CONFIG)
    arguments = ["--cfg-options", option("param_scheduler.1.milestones", [32])]
    cfg.merge_from_dict(parser.parse_args(arguments).cfg_options)
    assert cfg.param_scheduler[1].milestones == [32]
    assert cfg.param_scheduler[0].type == "LinearLR"


def test_measure(tmp_path):
    first = tmp_path / "20260101_000000" / "vis_data"
    second = tmp_path / "20260102_000000" / "vis_data"

    def evaluated(step, ap):
        return {"coco/bbox_mAP": ap, "coco/bbox_mAP_50": 2 * ap, "step": step}

    rows = {
        first: [
            dict(loss=1, time=0.5, iter=20),
            evaluated(1, 0.1),
            dict(loss=1, time=9.0, iter=46),  # a busy moment
            evaluated(2, 0.9),  # its checkpoint was lost, so this comes again
        ],
        second: [dict(loss=1, time=0.5, iter=46), evaluated(2, 0.2), evaluated(3, -1.0)]
        + [dict(loss=1, time=0.5, iter=98), evaluated(4, 0.9)],  # beyond the checkpoint
    }
    for folder, lines in rows.items():
        folder.mkdir(parents=True)
        (folder / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.save(dict(state_dict={}, meta=dict(epoch=3, iter=78)), tmp_path / "epoch_3.pth")
    # 26 iterations an epoch, of which the last 6 are not logged; half a second each.
    points = [(26, 13.0, 0.1), (52, 26.0, 0.2), (78, 39.0, 0.0)]
    assert measure(tmp_path, tmp_path / "epoch_3.pth") == dict(
        iterations=78,
        seconds=39.0,
        curve=[dict(iteration=i, seconds=s, bbox_mAP=a, bbox_mAP_50=2 * a) for i, s, a in points],
    )


def test_an_evaluation_that_found_nothing_has_ap_0(tmp_path, monkeypatch):
    """mmdet's CocoMetric reports no AP at all then."""
    rows = [
        dict(loss=1, time=0.5, iter=20),
        {"coco/bbox_mAP": 0.2, "coco/bbox_mAP_50": 0.4, "step": 1},
        dict(loss=1, time=0.5, iter=40),
        dict(time=0.1, step=2),
    ]
    rows.insert(1, dict(time=0.5, iter=10, step=10))  # of training, all of its steps left out
    monkeypatch.setattr(study_module, "scalars", lambda folder: rows)
    checkpoint = tmp_path / "epoch_2.pth"
    torch.save(dict(meta=dict(iter=40, epoch=2), state_dict={}), checkpoint)
    curve = measure(tmp_path, checkpoint)["curve"]
    assert [(point["iteration"], point["bbox_mAP"]) for point in curve] == [(20, 0.2), (40, 0.0)]


def test_processor_time_counts_where_it_is_logged(tmp_path, monkeypatch):
    rows = [
        dict(loss=1, time=9.0, cpu_time=0.25, iter=20),
        {"coco/bbox_mAP": 0.2, "coco/bbox_mAP_50": 0.4, "step": 1},
    ]
    monkeypatch.setattr(study_module, "scalars", lambda folder: rows)
    checkpoint = tmp_path / "epoch_1.pth"
    torch.save(dict(meta=dict(iter=20, epoch=1), state_dict={}), checkpoint)
    assert measure(tmp_path, checkpoint)["seconds"] == 5.0


def test_trains_in_order_and_only_once(write, run, calls, tmp_path):
    configs = {name: str(tmp_path / f"{name}.py") for name in ("quick", "slow")}
    path = write(
        seeds=[0, 1],
        teachers=dict(t=dict(config=configs["slow"], options={"a.b": [1, 2]})),
        runs=dict(
            kd=dict(config=configs["quick"], teacher="t", baseline="alone"),
            alone=dict(config=configs["quick"]),
        ),
    )
    code, err, out = run(path)
    assert (code, err) == (0, "")
    work = tmp_path / "work"
    told = [" ".join(line.split()[:3]) for line in calls()]
    # The undistilled runs begin beside the teacher, the distilled ones after it.
    for seed in (0, 1):
        assert told.index("end t seed-0") < told.index(f"begin kd seed-{seed}")
    assert told.index("begin alone seed-0") < told.index("end t seed-0")
    for name in ("kd", "alone"):  # what the study says: processes may come up in another order
        assert out.index(f"{name}, seed 0: starts") < out.index(f"{name}, seed 1: starts")
    options = {" ".join(line.split()[:3]): line.split()[3:] for line in calls()}
    assert options["begin t seed-0"] == ["--cfg-options", "a.b=[1,2]", "randomness.seed=0"]
    assert options["begin kd seed-1"] == [
        "--cfg-options",
        "randomness.seed=1",
        f"model.teacher.checkpoint={work}/t/seed-0/epoch_2.pth",
    ]
    lines = out.strip().splitlines()
    assert len(lines) == 2 * 5
    assert "t, seed 0: starts" in lines
    assert "kd, seed 1: AP 25.0, 10 s of training" in lines

    result = json.loads((work / "kd/seed-1/result.json").read_text())
    digest = study_module.sha256(tmp_path / "epoch_2.pth")
    assert result["teacher"] == dict(name="t", sha256=digest)
    assert (result["seed"], result["config"], result["options"]) == (1, configs["quick"], {})
    assert (result["iterations"], result["seconds"], result["bbox_mAP"]) == (20, 10.0, 0.25)
    assert result["best_bbox_mAP"] == 0.3  # after the first epoch
    assert result["commit"] == study_module.commit()
    assert result["machine"] == study_module.machine()
    report = (work / "report.md").read_text()
    assert "| kd | 25.0 | 0.0 | 25.0 25.0 | 30.0 | 20 | 10 | 0 1 |" in report

    before = calls(), (work / "kd/seed-1/result.json").stat().st_mtime_ns
    code, err, out = run(path, "--out", tmp_path / "report")
    assert (code, err, out) == (0, "", "")
    assert before == (calls(), (work / "kd/seed-1/result.json").stat().st_mtime_ns)
    assert (tmp_path / "report" / "report.png").exists()
    # Teachers may be cleared away when all are finished; their students are theirs all the same.
    (work / "t/seed-0/epoch_2.pth").unlink()
    assert run(path, "--report-only")[0] == 0
    assert calls() == before[0]


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_jobs_at_a_time(write, run, calls, tmp_path, jobs):
    runs = {name: dict(config=str(tmp_path / "slow.py")) for name in "abc"}
    assert run(write(runs=runs), "--jobs", jobs)[0] == 0
    order = (["begin"] * jobs + ["end"] * jobs) * (3 // jobs)
    assert [line.split()[0] for line in calls()] == order


@pytest.mark.parametrize("jobs", ["0", "-1", "1.5", "all"])
def test_bad_numbers_of_jobs(write, run, calls, jobs):
    code, err, _ = run(write(), f"--jobs={jobs}")
    assert (code, calls()) == (2, [])
    assert f"--jobs: must be an integer of at least 1, got '{jobs}'" in err


@pytest.mark.parametrize("name", ["result.json", "started.json"])
def test_other_settings_are_refused(write, run, calls, tmp_path, name):
    config = str(tmp_path / "quick.py")
    assert run(write(runs=dict(alone=dict(config=config, options={"a.b": (1, 2)}))))[0] == 0
    folder = tmp_path / "work/alone/seed-0"
    if name == "started.json":
        (folder / "result.json").unlink()
    code, err, _ = run(write(runs=dict(alone=dict(config=config, options={"a.b": (1, 3)}))))
    assert code == 2
    assert len(err.splitlines()) == 1
    for told in (folder, "another options", "[1, 2]", "[1, 3]", "--work-dir", "delete the folder"):
        assert str(told) in err
    assert len(calls()) == 2


def test_a_config_of_other_content_is_refused(write, run, tmp_path):
    """Its name is the same, and what it inherits counts; a comment does not."""
    base, config = tmp_path / "quick.py", tmp_path / "heir.py"
    config.write_text(f'_base_ = "{base.name}"\n')
    path = write(runs=dict(alone=dict(config=str(config))))
    assert run(path)[0] == 0
    text = base.read_text()
    base.write_text(f"# a comment\n{text}")
    assert run(path)[0] == 0
    base.write_text(f"{text}\nvalue = 3\n")
    code, err, _ = run(path)
    assert code == 2 and "another config_sha256" in err
    noted = tmp_path / "work/alone/seed-0/result.json"  # as before it was noted
    noted.write_text(noted.read_text().replace("config_sha256", "before"))
    (noted.parent / "started.json").unlink()
    assert run(path)[0] == 0


@pytest.mark.usefixtures("run")  # the stub
def test_a_config_that_changes_while_others_train_is_refused(write, calls, tmp_path):
    config = tmp_path / "quick.py"
    path = write(seeds=[0, 1], runs=dict(alone=dict(config=str(config))))
    tasks = make_tasks(read_study(path), tmp_path / "work")

    def edit():
        config.write_text(f"{VALIDATES}\nvalue = 3\n")

    (failure,) = train_all(tasks, 1, edit)
    assert "alone, seed 1: " in failure and "has changed since this study was started" in failure
    assert sum("begin" in line for line in calls()) == 1
    config.write_text("value = (")  # in the middle of an edit
    with pytest.raises(ConfigError, match="cannot be read: SyntaxError"):
        tasks[1].start()
    config.write_text(VALIDATES)
    assert train_all(tasks, 1, lambda: None) == []


@pytest.mark.usefixtures("run")  # the stub
def test_images_that_change_while_others_train_are_refused(write, tmp_path):
    data = dict(train=2, val=1, size=(64, 48), root=str(tmp_path / "images"))
    study = read_study(write(data=data))
    make_data(study)
    (task,) = make_tasks(study, tmp_path / "work")
    generate_shapes(tmp_path / "images", dict(train=3, val=1), (64, 48))
    told = "alone, seed 0: other images were generated in .*root"
    with pytest.raises(ConfigError, match=told):
        task.start()

    def change():
        generate_shapes(tmp_path / "images", dict(train=3, val=1), (64, 48))

    make_data(study)
    (failure,) = train_all([task], 1, lambda: None, change)
    assert re.match(f"error: {told}", failure)
    make_data(study)
    assert task.start() == "starts"  # from the beginning
    task.job.process.wait()
    task.finish()


def test_another_checkpoint_of_a_given_teacher_is_refused(write, run, tmp_path):
    """Of a teacher that is none of the study's: named in a config, or by an option."""
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    model = f"model = dict(teacher=dict(checkpoint={str(weights)!r}))"
    (tmp_path / "kd.py").write_text(f"{VALIDATES}\n{model}\n")
    (tmp_path / "other.py").write_text(f"{VALIDATES}\nmodel = dict(teacher=dict(checkpoint=None))")
    path = write(
        runs=dict(
            kd=dict(config=str(tmp_path / "kd.py")),
            other=dict(
                config=str(tmp_path / "other.py"),
                options={"model.teacher.checkpoint": str(weights)},
            ),
        )
    )
    assert run(path)[0] == 0
    for name in ("kd", "other"):
        folder = tmp_path / "work" / name / "seed-0"
        found = json.loads((folder / "result.json").read_text())["teacher"]
        assert found == dict(name=str(weights), sha256=study_module.sha256(weights))
    assert run(path)[0] == 0
    weights.write_bytes(b"two")
    code, err, _ = run(path, "--runs", "kd")
    assert code == 2 and "another teacher" in err
    tasks = make_tasks(read_study(path), tmp_path / "elsewhere")
    weights.write_bytes(b"three")  # while others train
    with pytest.raises(ConfigError, match="kd, seed 0: .*weights.pth has changed since"):
        tasks[0].start()
    weights.unlink()  # cleared away: what is finished is finished
    assert run(path, "--report-only")[0] == 0
    weights.write_bytes(b"two")
    for noted in (tmp_path / "work").glob("*/seed-0/*.json"):  # as before it was noted
        content = json.loads(noted.read_text())
        noted.write_text(json.dumps({**content, "teacher": None}))
    assert run(path, "--report-only")[0] == 0


def test_a_config_without_validation_is_told_before_training(write, run, calls, tmp_path):
    (tmp_path / "blind.py").write_text("val_dataloader = None")
    code, err, _ = run(write(runs=dict(alone=dict(config=str(tmp_path / "blind.py")))))
    assert code == 2
    assert "alone: " in err and "has no 'val_dataloader', so there is no AP" in err
    assert calls() == []


def test_two_processes_write_one_file(tmp_path):
    def write():
        for _ in range(300):
            study_module.write_atomically(tmp_path / "report.json", "{}")

    if child := os.fork():
        write()
        assert os.waitpid(child, 0)[1] == 0
    else:
        code = 1
        try:
            write()
            code = 0
        finally:  # whatever happens, it is no second test run
            os._exit(code)


@pytest.fixture
def taught(write, run, tmp_path):
    """A study of one pair that is finished, and the folder of its teacher."""
    config = str(tmp_path / "quick.py")
    path = write(
        teachers=dict(t=dict(config=config)), runs=dict(kd=dict(config=config, teacher="t"))
    )
    assert run(path)[0] == 0
    return path, tmp_path / "work/t/seed-0"


def test_another_teacher_is_refused(taught, run):
    path, teacher = taught
    torch.save(dict(state_dict={}, meta=dict(epoch=2, iter=20), other=1), teacher / "epoch_2.pth")
    code, err, _ = run(path)
    assert code == 2
    assert "another teacher" in err


@pytest.mark.parametrize("runs", [[], ["--runs", "t"]])
def test_a_teacher_is_not_trained_anew_beside_what_it_has_taught(
    taught, run, calls, tmp_path, runs
):
    path, teacher = taught
    before = calls()
    shutil.rmtree(teacher)
    code, err, _ = run(path, "--seeds", 0, 1, *runs)
    assert code == 2
    assert f"{tmp_path / 'work/kd/seed-0'} was taught by a checkpoint (" in err
    assert len(err.splitlines()) == 1
    assert calls() == before
    # What is there can be reported, and once it is gone as well, all is trained anew.
    assert run(path, "--report-only")[0] == 0
    shutil.rmtree(tmp_path / "work/kd/seed-0")
    assert run(path, "--seeds", 0, 1, *runs)[0] == 0


@pytest.mark.parametrize("left", ["last_checkpoint", "epoch_2.pth", None])
def test_without_a_teachers_checkpoint_there_is_a_report_and_no_training(taught, run, left):
    path, teacher = taught
    for name in {"last_checkpoint", "epoch_2.pth"} - {left}:
        (teacher / name).unlink()
    assert run(path, "--report-only")[0] == 0
    code, err, _ = run(path, "--seeds", 0, 1)
    assert code == 1
    assert err.startswith("error: kd, seed 1: the checkpoint of teacher 't' is gone: bring it back")


def test_an_interrupted_run_is_resumed(write, run, calls, tmp_path):
    path = write()
    assert run(path)[0] == 0
    folder = tmp_path / "work/alone/seed-0"
    (folder / "result.json").unlink()
    (folder / "epoch_1.pth").write_text("earlier")
    (folder / "last_checkpoint").write_text("/where/it/was/epoch_2.pth")  # moved since
    started = folder / "started.json"
    noted = json.loads(started.read_text())
    started.write_text(json.dumps({**noted, "commits": ["abc1234"], "machines": ["another one"]}))
    code, _, out = run(path)
    assert code == 0
    assert out.startswith("alone, seed 0: resumes\n")
    resume = f"--resume {folder / 'epoch_2.pth'}"
    assert calls()[2] == f"begin alone seed-0 {resume} --cfg-options randomness.seed=0"
    result = json.loads((folder / "result.json").read_text())
    # Without git there is no commit of now.
    assert result["commit"] == ", ".join(filter(None, ["abc1234", study_module.commit()]))
    assert result["machine"] == f"another one; {study_module.machine()}"
    assert [path.name for path in folder.glob("*.pth")] == ["epoch_2.pth"]


def test_a_machine_is_named_by_its_gpu(monkeypatch):
    for available, told in ((False, False), (True, True)):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
        assert study_module.machine().endswith(", Some GPU") is told
        assert f"torch {torch.__version__}" in study_module.machine()


def test_two_studies_do_not_train_one_run(write, run, tmp_path):
    path = write(runs={"alone": dict(config=str(tmp_path / "hang.py"))})
    tasks = [make_tasks(read_study(path), tmp_path / "work")[0] for _ in range(2)]
    tasks[0].start()
    tasks[0].lock.close()  # as if the study were killed: what it has started goes on
    try:
        with pytest.raises(ConfigError, match="alone, seed 0: another process trains in .*: wait"):
            tasks[1].start()
    finally:
        for task in tasks:
            if task.job:
                task.job.process.kill()
                task.job.process.wait()
    (tmp_path / "hang.py").write_text(f"{VALIDATES}  # quick")
    assert run(path)[0] == 0


def test_what_another_study_has_finished_meanwhile_is_not_trained(write, run, calls, tmp_path):
    runs = {name: dict(config=str(tmp_path / "slow.py")) for name in ("first", "second")}
    path = write(runs=runs)
    assert run(path)[0] == 0
    first, second = (tmp_path / "work" / name / "seed-0/result.json" for name in runs)
    done = second.read_text()
    for result in (first, second):
        result.unlink()
    before = calls()
    tasks = make_tasks(read_study(path), tmp_path / "work")
    assert train_all(tasks, 1, lambda: None, lambda: second.write_text(done)) == []
    assert [line.split()[1] for line in calls()[len(before) :]] == ["first"] * 2


def test_a_failed_run_is_told_and_the_other_one_ends_well(write, run, calls, tmp_path):
    runs = {
        name: dict(config=str(tmp_path / f"{does}.py"))
        for name, does in dict(bad="fail", other="slow", next="quick").items()
    }
    code, err, out = run(write(runs=runs))
    work = tmp_path / "work"
    assert code == 1
    assert "no luck today" in err
    assert err.endswith(f"bad, seed 0 failed; the whole log is {work}/bad/seed-0/train.log")
    assert "other, seed 0: AP 25.0" in out
    assert (work / "other/seed-0/result.json").exists()
    assert not (work / "bad/seed-0/result.json").exists()
    assert not any("next" in line for line in calls())


@pytest.fixture
def elsewhere(write, run, tmp_path):
    """A study of one pair, whose seed 0 was trained elsewhere: (study, that one's report.json)."""
    config = str(tmp_path / "quick.py")
    path = write(
        teachers=dict(t=dict(config=config)),
        runs=dict(alone=dict(config=config), kd=dict(config=config, teacher="t", baseline="alone")),
    )
    assert run(path)[0] == 0
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    report = tmp_path / "elsewhere/report.json"
    content = json.loads(report.read_text())
    content["machine"] = "a faster one"
    content["rows"]["t"]["ap"] = 44.4
    report.write_text(json.dumps(content))
    return path, report


def test_seeds_trained_elsewhere_are_added(elsewhere, run, calls, tmp_path):
    path, report = elsewhere
    # The teacher trained here is another one.
    torch.save(dict(state_dict={}, meta=dict(epoch=2, iter=20), other=1), tmp_path / "epoch_2.pth")
    assert run(path, "--seeds", 1, 2, "--add", report)[0] == 0
    assert sum("begin kd seed-0" in line for line in calls()) == 1  # only elsewhere
    told = (tmp_path / "work/report.md").read_text()
    assert "| kd | 25.0 | 0.0 | 25.0 25.0 25.0 | 30.0 | 20 | 10 | 0 1 2 |" in told
    assert "| kd | alone | +0.0 [+0.0, +0.0] (3) |" in told
    assert "| teacher t | 25.0 | - | 25.0 |" in told
    place = "Seeds 0 were trained elsewhere: a faster one; teacher t 44.4 AP; `--add "
    assert f"{place}{os.path.relpath(report, ROOT)}`" in told

    # Added to a third one, the report still says where each seed comes from.
    (tmp_path / "work").rename(tmp_path / "third")
    assert run(path, "--seeds", 3, "--add", tmp_path / "third/report.json")[0] == 0
    told = (tmp_path / "work/report.md").read_text()
    assert place in told
    assert "Seeds 1 2 were trained elsewhere" in told
    assert "| kd | alone | +0.0 [+0.0, +0.0] (4) |" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda report: report["rows"].update(other=report["rows"]["kd"]), "the run 'other'"),
        (
            lambda report: report["rows"]["kd"]["results"]["0"].update(options={"a": 1}),
            'kd, seed 0 in {path} is a run of another options ({"a": 1} instead of {})',
        ),
        (
            lambda report: report["rows"]["kd"]["results"]["0"]["teacher"].update(name="u"),
            'is a run of another teacher ("u" instead of "t")',
        ),
        (
            lambda report: report["rows"]["t"].update(results={"5": {}}),
            "the teacher 't' of {path} was trained with seed 5, here it is 0",
        ),
        (lambda report: report.pop("rows"), "is no report of tools/study.py"),
    ],
)
def test_a_report_that_does_not_fit_is_told_before_training(elsewhere, run, calls, change, told):
    path, report = elsewhere
    content = json.loads(report.read_text())
    change(content)
    report.write_text(json.dumps(content))
    before = calls()
    code, err, _ = run(path, "--seeds", 1, "--add", report)
    assert code == 2
    assert told.replace("{path}", str(report)) in err
    assert len(err.splitlines()) == 1
    assert calls() == before


def test_a_seed_comes_from_one_place(elsewhere, run, calls, tmp_path):
    path, report = elsewhere
    before = calls()
    code, err, _ = run(path, "--add", report)
    assert code == 2
    assert "seed 0 is in" in err
    assert run(path, "--seeds", 1, "--add", report, report)[0] == 2
    code, err, _ = run(path, "--seeds", 1, "--add", tmp_path / "none.json")
    assert (code, "none.json" in err) == (2, True)
    assert calls() == before


def test_report_of_nothing(write, run):
    code, err, _ = run(write(), "--report-only")
    assert code == 2
    assert "no run is finished yet" in err


def test_ended_from_outside_it_ends_its_runs(write, run, calls, tmp_path):
    path = write(runs=dict(a=dict(config=str(tmp_path / "hang.py"))))
    code = (
        "import sys, signal, runpy\n"
        "from kd_detr_mmdet.utils import study\n"
        f"study.TRAIN = {str(tmp_path / 'stub.py')!r}\n"
        f"sys.argv = ['study.py', {path!r}, '--work-dir', {str(tmp_path / 'work')!r}]\n"
        f"runpy.run_path({str(ROOT / 'tools/study.py')!r}, run_name='__main__')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.time() + 300  # a busy machine takes long to import
    while not calls() and time.time() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    child = int(children.read_text().split()[0]) if children.exists() else None
    process.terminate()
    assert b"terminated: run it again to go on" in process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert len(calls()) == 1
    if child is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ended_where_python_drops_what_is_raised(write, run, tmp_path, monkeypatch):
    def report(*_):
        class Thing:
            pass

        thing = Thing()
        finalizer = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        del thing  # the callback runs here
        assert finalizer() is None

    monkeypatch.setattr("kd_detr_mmdet.utils.study_report.write_report", report)
    runs = {name: dict(config=str(tmp_path / f"{name}.py")) for name in ("quick", "slow")}
    code, _, out = run(write(runs=runs), "--jobs", 1)
    assert "slow, seed 0: starts" in out  # so the first exit was dropped
    assert code == "terminated: run it again to go on"


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A study of tiny detectors on a handful of images; one epoch is two iterations."""
    # Laying configs out to be read takes longer than training.
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, False))
    shapes = generate_shapes(tmp_path / "shapes", {"train": 16, "val": 4}, (64, 48))
    base = Config.fromfile(ROOT / CONFIG)
    base.default_hooks.logger.interval = 1
    base.env_cfg.mp_cfg.mp_start_method = "spawn"
    for loader in ("train", "val", "test"):
        dataset = base[f"{loader}_dataloader"].dataset
        dataset.data_root = str(shapes)
        dataset.pipeline[2].scale = (64, 48)
    base.val_evaluator.ann_file = str(shapes / "annotations/instances_val.json")
    base.test_evaluator.ann_file = "none.json"  # a study looks at the validation split
    models = dict(alone=dino_config(), teacher=dino_config(**TEACHER))
    models["kd"] = dict(
        type="KDDETR",
        student=dino_config(),
        teacher=dict(config=dino_config(**TEACHER), checkpoint="none.pth"),
        points=dict(num_general=10),
    )
    configs = {}
    for name, model in models.items():
        base.model = model
        configs[name] = str(tmp_path / f"{name}.py")
        base.dump(configs[name])
    content = dict(
        seeds=[1],
        options={"train_cfg.max_epochs": 1, "param_scheduler.1.milestones": [1]},
        teachers=dict(tiny=dict(config=configs["teacher"])),
        runs=dict(
            alone=dict(config=configs["alone"]),
            kd=dict(config=configs["kd"], teacher="tiny", baseline="alone"),
        ),
    )
    path = tmp_path / "tiny_study.py"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in content.items()))
    return path


class JobHere:
    """Does what a job does in this process: to start another one takes longer than all the rest."""

    def __init__(self, title, arguments, log, work_dir=None, locks=()):
        self.title, self.log = title, log
        sys.argv = list(arguments)
        DetLocalVisualizer._instance_dict.clear()  # MMEngine keeps one for a whole process
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        self.process = SimpleNamespace(poll=lambda: 0, terminate=lambda: 0, wait=lambda: 0)

    def failure(self):
        return None


@pytest.mark.parametrize("jobs", ["here", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_real_study(real, tmp_path, monkeypatch, capfd, jobs):
    if jobs == "here":
        # Asking the compilers for their versions takes longer than training.
        monkeypatch.setattr("mmengine.runner.runner.collect_env", lambda: {"Python": "3"})
        monkeypatch.setattr(study_module, "Job", JobHere)
    monkeypatch.setattr(sys, "argv", ["study.py"])
    tasks = make_tasks(read_study(str(real)), tmp_path / "work")
    assert train_all(tasks, 2, lambda: None) == []
    folder = tmp_path / "work/kd/seed-1"
    first = json.loads((folder / "result.json").read_text())
    assert first["iterations"] == first["curve"][-1]["iteration"] == 2
    assert first["seconds"] > 0
    assert first["options"]["param_scheduler.1.milestones"] == [1]
    trained = Config.fromfile(folder / "kd.py")
    assert trained.param_scheduler[1].milestones == [1]
    assert trained.randomness.seed == 1
    teacher = tmp_path / "work/tiny/seed-0/epoch_1.pth"
    assert trained.model.teacher.checkpoint == str(teacher)
    assert first["teacher"]["sha256"] == study_module.sha256(teacher)
    write_report(tmp_path / "out", read_study(str(real)), collect(tasks))
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["rows"]) == ["tiny", "alone", "kd"]
    assert report["gains"]["kd"]["equal_iterations"]["seeds"] == 1

    # Ended before the last evaluation: nothing is left to train, and the checkpoint is evaluated.
    (folder / "result.json").unlink()
    log = next(folder.glob("*/vis_data/scalars.json"))
    rows = [line for line in log.read_text().splitlines() if "coco/" not in line]
    log.write_text("\n".join(rows) + "\n")
    capfd.readouterr()
    assert train_all(tasks, 2, lambda: None) == []
    assert "kd, seed 1: resumes" in capfd.readouterr().out
    assert json.loads((folder / "result.json").read_text()) == first


def test_a_run_that_was_never_evaluated_says_so(write, run, tmp_path):
    path = write()
    stub = tmp_path / "stub.py"
    stub.write_text(stub.read_text().replace("(2, 0.25)", ""))
    code, err, _ = run(path)
    assert code == 1
    assert "alone, seed 0 has no evaluation of its last iteration" in err
