"""Every shipped config: it reads, it says only what differs, and it builds."""

import re
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config

from kd_detr_mmdet import KDDETR

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(path.relative_to(CONFIGS) for path in CONFIGS.glob("*/*.py"))
EXPERIMENTS = [path for path in ALL if path.parts[0] != "_base_"]
DISTILLED = [path for path in EXPERIMENTS if path.name.startswith("kd-detr_")]


def lines(path):
    return len((CONFIGS / path).read_text().splitlines())


def test_the_shipped_experiments_are_found():
    assert len(DISTILLED) == 7
    assert len(EXPERIMENTS) == 18


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_it_is_a_whole_experiment(path):
    cfg = Config.fromfile(CONFIGS / path)
    for key in ("model", "train_dataloader", "val_evaluator", "optim_wrapper", "param_scheduler"):
        assert key in cfg
    assert (cfg.model.type == "KDDETR") == (path in DISTILLED)
    # A learning rate that never drops, or drops after the end, is a schedule gone wrong.
    drops = [s for s in cfg.param_scheduler if s.type == "MultiStepLR"]
    assert drops and all(m < cfg.train_cfg.max_epochs for s in drops for m in s.milestones)


@pytest.mark.parametrize("path", DISTILLED, ids=str)
def test_a_distilled_config_is_short(path):
    base = (CONFIGS / path).read_text().split("_base_ = ")[1].splitlines()[0]
    assert lines(path) <= (8 if "kd-detr_" in base else 25)


@pytest.mark.parametrize("path", DISTILLED, ids=str)
def test_it_differs_from_the_student_alone_in_the_model_only(path):
    cfg = Config.fromfile(CONFIGS / path)
    student = "dino_alone.py"
    if "-to-" in path.name:  # kd-detr_<detector>_<teacher>-to-<student>_<schedule>
        student = re.sub(r"kd-detr_(.*)_[^_]*-to-", r"\1_", path.name)
    alone = Config.fromfile(CONFIGS / path.parent / student)
    assert cfg.model.student == alone.model
    for key in alone:
        if key != "model":
            assert cfg[key] == alone[key], key


@pytest.mark.parametrize("path", [p for p in DISTILLED if "swin" not in p.name], ids=str)
def test_it_builds_at_full_size(path):
    cfg = Config.fromfile(CONFIGS / path)
    assert cfg.model.teacher.checkpoint
    cfg.model.teacher.checkpoint = None
    model = MODELS.build(cfg.model)
    assert isinstance(model, KDDETR)
    assert model.teacher_family.num_class_scores == model.student.bbox_head.num_classes


@pytest.mark.parametrize("folder", ["demo", "custom"])
def test_the_teachers_checkpoint_is_what_its_config_writes(folder):
    distilled = Config.fromfile(CONFIGS / folder / "kd-detr_dino.py").model.teacher
    teacher = Config.fromfile(CONFIGS / folder / "dino_teacher.py")
    assert Path(distilled.config) == CONFIGS / folder / "dino_teacher.py"
    assert Path(distilled.checkpoint).name == f"epoch_{teacher.train_cfg.max_epochs}.pth"


@pytest.mark.parametrize("folder", ["dino", "dab_detr"])
def test_a_folders_readme_lists_every_config(folder):
    text = (CONFIGS / folder / "README.md").read_text()
    for path in (CONFIGS / folder).glob("*.py"):
        assert f"({path.name})" in text


def test_the_project_readme_shows_the_config_as_it_is():
    readme = (CONFIGS.parent / "README.md").read_text()
    shown = readme.split("```python\n")[1].split("```")[0]
    shown = "".join(re.sub(r"\s+# \d$", "", line) + "\n" for line in shown.splitlines())
    real = (CONFIGS / "dino" / "kd-detr_dino-4scale_r50-to-r18_8xb2-12e_coco.py").read_text()
    shorten = lambda text: re.sub(r"/mmdetection/v3.0/dino/[^/]+/", "/.../", text)  # noqa: E731
    assert shown == shorten(re.sub(r"  # noqa.*", "", real))
