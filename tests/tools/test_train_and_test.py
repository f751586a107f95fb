"""tools/train.py and tools/test.py as their users run them: a whole distillation, and bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DINO_MILLIONS, ROOT, TEACHER, build, dino_config, random_checkpoint

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes


def assert_refused(result, *told):
    """One line, exit code 2, and every part of what was to be told."""
    code, line, _ = result
    assert code == 2
    assert line.startswith("error: ")
    for part in told:
        assert str(part) in line


def test_distils_tests_and_resumes(write_config, run, tmp_path):
    config = write_config()
    code, _, out = run("train.py", config)
    assert code == 0
    # The summary, and the last layer's terms of the loss; the others are for the back-ends.
    assert re.search(rf"student  DINO, {DINO_MILLIONS} M parameters, .* GFLOPs at 64x48", out)
    assert re.search(r"teacher\.pth \(sha256 [0-9a-f]{8}\)", out)
    assert "16 specific (the teacher's queries) + 10 general (uniform) per image" in out
    for term in ("kd_loss_specific_cls: ", "kd_loss_general_giou: ", "kd_share: "):
        assert term in out
    assert "d0.kd_" not in out
    scalars = next((tmp_path / "work").glob("*/vis_data/scalars.json")).read_text()
    for term in ("d0.kd_loss_general_giou", "d0.kd_raw_specific_cls", "kd_foreground_general"):
        assert f'"{term}"' in scalars
    # Versions, hooks and initial weights go to the file.
    log = next((tmp_path / "work").glob("*/*.log")).read_text()
    for told in ("System environment:", "Hooks will be executed", "Initialized by user-defined"):
        assert told in log
        assert told not in out

    checkpoint = tmp_path / "work" / "epoch_1.pth"
    assert set(torch.load(checkpoint, weights_only=False)["state_dict"]) == set(
        build(dino_config()).state_dict()
    )
    metrics = []
    for name in (config, write_config(distilled=False)):
        out_file = tmp_path / f"{Path(name).stem}.json"
        assert run("test.py", name, checkpoint, "--out", out_file)[0] == 0
        metrics.append(json.loads(out_file.read_text()))
    assert metrics[0] == metrics[1]
    assert "coco/bbox_mAP" in metrics[0]

    # Once more it may begin, but no other run may write over it; and a test leaves it as it was.
    other_seed = run("train.py", config, "--cfg-options", "randomness.seed=7", "optim_wrapper.lr=1")
    assert_refused(
        other_seed, "work holds epoch_1.pth of another run", "(optim_wrapper.lr, randomness.seed; 2"
    )
    assert run("train.py", config)[0] == 0
    code, _, out = run("train.py", config, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    assert code == 0
    assert re.search(r"Epoch\(train\) +\[2\]", out)
    assert not re.search(r"Epoch\(train\) +\[1\]", out)
    assert (tmp_path / "work" / "epoch_2.pth").exists()
    assert_refused(run("train.py", config), "epoch_2.pth", "(train_cfg.max_epochs; 1 in all)")


@pytest.mark.slow
def test_two_processes_distil_on_a_cpu(write_config, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--standalone", str(ROOT / "tools/train.py"), write_config()]
    options = ["--launcher", "pytorch", "--cfg-options", "train_dataloader.batch_size=4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *options], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kd_loss_general_cls: " in done.stdout
    assert "[2/2]" in done.stdout  # 16 images, 2 ranks, 4 each: 2 steps
    saved = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=False)
    assert set(saved["state_dict"]) == set(build(dino_config()).state_dict())


def test_testing_needs_no_teacher(write_config, run, tmp_path):
    checkpoint = random_checkpoint(tmp_path / "student.pth", dino_config())
    config = write_config(**{"model.teacher.checkpoint": "missing.pth"})
    assert run("test.py", config, checkpoint)[0] == 0


def test_a_checkpoint_of_classes_in_another_order(write_config, run, tmp_path):
    """Its AP would be that of other labels, without a word."""
    config = write_config(distilled=False)
    path = tmp_path / "student.pth"
    one_before, one_behind = ("ball", *SHAPE_CLASSES[:3]), (*SHAPE_CLASSES[1:], "ball")
    for classes in (SHAPE_CLASSES[::-1], one_before, one_behind):
        random_checkpoint(path, dino_config(), classes=classes)
        for tool in ("test.py", "compare.py"):
            result = run(tool, *(["--out", tmp_path] if tool == "compare.py" else []), config, path)
            assert_refused(result, f"trained on classes ({classes[0]}", "test_dataloader.dataset")
    # Another name at the same place may be the same class.
    random_checkpoint(path, dino_config(), classes=("ball", *SHAPE_CLASSES[1:]))
    code, _, out = run("test.py", config, path)
    assert code == 0
    assert "(ball, " in out
    assert "their labels are taken for the same" in out


def test_gradients_that_add_up_are_no_smaller_batch(write_config, run):
    """MMEngine scales the learning rate as if there were none."""
    config = write_config(**{"optim_wrapper.accumulative_counts": 4})
    assert_refused(run("train.py", config, "--auto-scale-lr"), "accumulative_counts=4")


def test_amp_without_a_gpu(write_config, run):
    assert_refused(run("train.py", write_config(), "--amp"), "--amp needs a GPU", "--amp bfloat16")


def test_amp_in_bfloat16_on_a_cpu(write_config, run, tmp_path):
    config = write_config(**{"train_cfg.val_interval": 2})
    assert run("train.py", config, "--amp", "bfloat16")[0] == 0
    assert "BFloat16OptimWrapper" in (tmp_path / "work" / "distilled.py").read_text()
    saved = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=False)
    assert {v.dtype for v in saved["state_dict"].values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_bad_teacher_checkpoint(write_config, run, tmp_path, teacher_checkpoint, damage):
    path = tmp_path / "damaged.pth"
    if damage == "truncated":
        path.write_bytes(Path(teacher_checkpoint).read_bytes()[:20_000])
    elif damage == "other":
        random_checkpoint(path, dino_config(width=64))
    result = run("train.py", write_config(**{"model.teacher.checkpoint": str(path)}))
    told = {"missing": "no file", "truncated": "cannot be read", "other": "of another shape"}
    assert_refused(result, "teacher.checkpoint", path, told[damage])


def test_failed_start_keeps_earlier_files(write_config, run, tmp_path, shapes):
    work = tmp_path / "work"
    work.mkdir()
    (work / "epoch_1.pth").write_bytes(b"precious")
    (work / "distilled.py").write_text("# earlier")
    config = write_config(**{"train_dataloader.dataset.ann_file": "missing.json"})
    assert_refused(run("train.py", config), "no annotation file", shapes / "missing.json")
    assert {p.name for p in work.iterdir()} == {"epoch_1.pth", "distilled.py"}
    assert (work / "epoch_1.pth").read_bytes() == b"precious"


def test_other_class_names_than_the_teachers(write_config, run, tmp_path):
    path = random_checkpoint(
        tmp_path / "t.pth", dino_config(**TEACHER), classes=SHAPE_CLASSES[::-1]
    )
    result = run("train.py", write_config(**{"model.teacher.checkpoint": path}))
    assert_refused(result, "teacher was trained on classes (ring, triangle, square, disc")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model.teacher.config": "no/such.py"}, "no config file 'no/such.py'"),
        ({"model.student.type": "NoSuchDETR"}, "NoSuchDETR"),
        ({"model.points": dict(num_general=0, specific=False)}, "nothing to distil"),
        ({"model.student.bbox_head.num_classes": 5}, "num_classes is 5, but train_dataloader"),
        ({"model.distill_loss": dict(layer="last")}, "layer"),
        ({"model.pionts": dict(num_general=1)}, "'points' is meant? KDDETR takes blank_content"),
        ({"model.student.num_querys": 3}, "'num_queries' is meant? DINO takes as_two_stage, "),
        ({"model.student.checkpoint": "x.pth"}, "student=dict(config=..., checkpoint=PATH)"),
        (
            {"optim_wrapper.constructor": "LearningRateDecayOptimizerConstructor"},
            "leave it out, and set learning rates by paramwise_cfg.custom_keys",
        ),
        ({"activation_checkpointing": ["student.neck", "backbone"]}, "'student.backbone'"),
        ({"efficient_conv_bn_eval": "backbone"}, "'student.backbone'"),
    ],
)
def test_bad_options(write_config, run, options, told):
    assert_refused(run("train.py", write_config(**options)), told)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("optim_wraper.optimizer.lr=1", "no 'optim_wraper': 'optim_wrapper' is meant?"),
        ("quark=1", "the config has no 'quark'"),
        ("model", "--cfg-options takes key=value, got ['model']"),
        ("model.type.x=1", "--cfg-options cannot set 'model.type.x'"),
        ("param_scheduler.9.end=1", "--cfg-options cannot set 'param_scheduler.9.end'"),
        ("default_hooks.checkpont.interval=5", "no type, as one whose name is misspelt"),
        ("train_cfg.max_epochs=two", "invalid literal for int() with base 10: 'two'"),
        ("model.backbone.depth=19", "cannot be built from the config: "),
        ("val_evaluator.metric=bbx", "metric should be one of 'bbox'"),
        ("custom_hooks=[{'type':'KDWarmup','off':10}]", "custom_hooks is a list of dicts"),
        ("train_dataloader.batch_size=0", "a data loader of the config: batch_size should be"),
    ],
)
def test_options_that_lead_nowhere(write_config, run, option, told):
    code, line, _ = run("train.py", write_config(distilled=False), "--cfg-options", option)
    assert code == 2
    assert "error: " in line
    assert told in line


def test_the_options_of_another_class_are_not_told(write_config, run):
    """Whose keyword it is that the loop's own constructor got wrong, its signature cannot say."""
    config = write_config(distilled=False)
    _, line, _ = run("train.py", config, "--cfg-options", "train_dataloader.batchsize=2")
    assert line.rstrip().endswith(
        "DataLoader.__init__() got an unexpected keyword argument 'batchsize'"
    )


def test_options_that_the_config_does_not_name(write_config, run):
    """Settings of MMEngine's Runner."""
    config = write_config(distilled=False)
    for option in ("sync_bn=torch", "find_unused_parameters=True"):
        options = ["--cfg-options", option, "train_dataloader.batch_size=0"]
        assert_refused(run("train.py", config, *options), "batch_size")


@pytest.mark.parametrize(
    ("option", "places"),
    [
        ("max_epochs=4", "set train_cfg.max_epochs instead"),
        ("data_root=no/such", "set train_dataloader.dataset.data_root and val_dataloader.dat"),
        ("mine.size=4", "set that instead"),
    ],
)
def test_an_option_on_a_variable_of_the_config_changes_nothing(write_config, run, option, places):
    config = write_config(distilled=False)
    variables = "max_epochs = 3\ndata_root = 'data/mine/'\nmine = dict(size=3)\n"
    Path(config).write_text(Path(config).read_text() + variables)
    result = run("train.py", config, "--cfg-options", option)
    assert_refused(result, "a variable of the config file", places)


def test_a_misspelt_name_in_the_config(write_config, run):
    config = write_config(distilled=False)
    Path(config).write_text(Path(config).read_text() + "optim_wraper = dict(lr=1)\n")
    assert_refused(run("train.py", config), "'optim_wraper'", "'optim_wrapper' is meant?")


def test_resuming_from_nothing_or_another_model(write_config, run, tmp_path):
    config = write_config(distilled=False)
    options = ["--cfg-options", "train_cfg.val_interval=2"]
    code, _, out = run("train.py", config, "--resume", *options)
    assert code == 0
    assert f"no checkpoint in {str(tmp_path / 'work')!r}: training starts from the" in out
    bigger = ["--cfg-options", "model.num_queries=13", "train_cfg.max_epochs=2"]
    result = run("train.py", config, "--resume", *bigger)
    assert_refused(result, "of another model: 1 weights", "query_embedding.weight", "load_from")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no annotation file"),
        ("{", "not valid JSON"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
        (
            '{"images": [{"id": 1, "file_name": "no.png"}], "categories": []}',
            "knows no class 'disc'",
        ),
    ],
)
def test_bad_annotation_file(write_config, run, tmp_path, content, told):
    path = tmp_path / "annotations.json"
    if content is not None:
        path.write_text(content)
    for name in ("train", "test"):
        loader = f"{name}_dataloader"
        config = write_config(**{f"{loader}.dataset.ann_file": str(path)})
        arguments = [config] if name == "train" else [config, "unused.pth"]
        assert_refused(run(f"{name}.py", *arguments), loader, path, told)


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image(write_config, run, tmp_path, damage, workers):
    root = generate_shapes(tmp_path / "bad", {"train": 8, "val": 2}, (64, 48))
    image = root / "images/train/000003.png"
    image.unlink() if damage == "missing" else image.write_bytes(b"x" * 99 * (damage == "garbage"))
    config = write_config(
        **{
            "train_dataloader.dataset.data_root": str(root),
            "train_dataloader.num_workers": workers,
            "train_dataloader.dataset.ann_file": "annotations/instances_train.json",
        }
    )
    assert_refused(run("train.py", config), image)


def test_bad_checkpoint_to_test(write_config, run, tmp_path):
    path = random_checkpoint(tmp_path / "other.pth", dino_config(width=64))
    assert_refused(run("test.py", write_config(), path), "checkpoint", path, "of another shape")
    assert_refused(run("test.py", write_config(), "none.pth"), "no file 'none.pth'")


def test_non_finite_loss_stops_the_run(write_config, run, tmp_path, teacher_checkpoint):
    checkpoint = torch.load(teacher_checkpoint, weights_only=False)
    checkpoint["state_dict"]["bbox_head.cls_branches.2.bias"][:] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.pth")
    config = write_config(**{"model.teacher.checkpoint": str(tmp_path / "nan.pth")})
    assert_refused(
        run("train.py", config), "kd_loss_specific_cls = nan", "iteration 0", "image ids"
    )
    assert not (tmp_path / "work" / "epoch_1.pth").exists()


def test_a_detector_without_a_teacher_stops_too(write_config, run):
    config = write_config(distilled=False, **{"default_hooks.non_finite.skip": 1})
    rate = "optim_wrapper.optimizer.lr=1e30"
    result = run("train.py", config, "--cfg-options", rate, "train_cfg.max_epochs=3")
    assert_refused(result, "loss_cls = ", "(1 steps had been skipped before)")


def test_bad_config_file(run, tmp_path):
    assert_refused(run("train.py", tmp_path / "none.py"), "no config file", tmp_path / "none.py")
    (tmp_path / "broken.py").write_text("model = dict(")
    assert_refused(run("train.py", tmp_path / "broken.py"), "cannot be read", "broken.py")
    (tmp_path / "empty.py").write_text("a = 1")
    assert_refused(run("train.py", tmp_path / "empty.py"), "holds no 'model'")


def test_an_error_ends_a_real_process(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/train.py"), str(tmp_path / "none.py")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: no config file")
    assert "Traceback" not in done.stderr
