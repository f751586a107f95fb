"""Every shipped config: it reads, it says only what differs, and it builds."""

import copy
import functools
import os
import re
from pathlib import Path

import mmdet
import pytest
import yaml
from conftest import needs_dino_widths
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config

from kd_detr_mmdet import KDDETR
from kd_detr_mmdet.utils.study import read_study

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
STOCK = Path(mmdet.__file__).parent / ".mim" / "configs"
ALL = sorted(path.relative_to(CONFIGS) for path in CONFIGS.glob("*/*.py"))
EXPERIMENTS = [path for path in ALL if path.parts[0] not in ("_base_", "studies")]
DISTILLED = [path for path in EXPERIMENTS if path.name.startswith("kd-detr_")]
# How many configs a folder of COCO experiments has, and how many of them distil.
COCO = dict(
    ablation=(14, 14),
    cascade_rcnn=(2, 1),
    conditional_detr=(2, 1),
    cross_family=(3, 3),
    dab_detr=(5, 2),
    ddq=(2, 1),
    deformable_detr=(9, 4),
    detr=(2, 1),
    dino=(6, 3),
    faster_rcnn=(8, 6),
    mask_rcnn=(2, 1),
)
TEACHER_BOXES = Path(
    "faster_rcnn/kd-detr_dino-4scale_r50-to-faster-rcnn_r50_fpn_teacher-boxes_1x_coco.py"
)
BOXES_ONLY = Path(str(TEACHER_BOXES).replace("teacher-boxes", "boxes-only"))
ABLATION = [path for path in DISTILLED if path.parts[0] == "ablation"]
ABLATION_BASE = Path("dab_detr/kd-detr_dab-detr_r50-to-r18_8xb2-50e_coco.py")


@functools.cache
def read(path):
    """A config; not to be changed."""
    return Config.fromfile(CONFIGS / path)


def text(path):
    return (CONFIGS / path).read_text()


def bases(path):
    """The names that a config inherits, as written."""
    return re.findall(r'"([^"]*)"', text(path).split("model = ")[0].split("_base_ = ")[1])


def stock(config):
    """What mmdet's zoo has for 'mmdet::folder/name.py': the weights' address, and their box AP."""
    folder, name = config.removeprefix("mmdet::").removesuffix(".py").split("/")
    models = yaml.safe_load((STOCK / folder / "metafile.yml").read_text())["Models"]
    (found,) = [model for model in models if model["Name"] == name]
    return found["Weights"], found["Results"][0]["Metrics"]["box AP"]


def student_of(path):
    """The config of the student alone.

    Names are kd-detr_<detector>_<teacher>-to-<student>_<schedule>; across families each side names
    its detector, and the student may be followed by what differs.
    """
    if path.parts[0] not in COCO:
        base = Path(os.path.normpath(path.parent / bases(path)[0]))
        return student_of(base) if base.name.startswith("kd-detr_") else base
    teacher, student = path.stem.removeprefix("kd-detr_").split("-to-")
    if re.match(r"r\d+_", student):
        student = f"{teacher.rpartition('_')[0]}_{student}"
    detector, backbone, *words, schedule, data = student.split("_")
    neck = [word for word in words if word == "fpn"]
    name = "_".join([detector, backbone, *neck, schedule, data])
    (found,) = CONFIGS.glob(f"*/{name}.py")
    return found.relative_to(CONFIGS)


@pytest.mark.parametrize("folder", COCO)
def test_the_shipped_experiments_are_found(folder):
    counts = [sum(p.parts[0] == folder for p in paths) for paths in (EXPERIMENTS, DISTILLED)]
    assert tuple(counts) == COCO[folder]


def test_no_folder_of_experiments_is_forgotten():
    assert set(COCO) == {path.parent.name for path in CONFIGS.glob("*/metafile.yml")}
    assert {path.parts[0] for path in EXPERIMENTS if "coco" in path.name} == set(COCO)


@pytest.mark.parametrize("path", [p for p in ALL if p.parts[0] == "studies"], ids=str)
def test_a_study_can_be_read_and_its_options_fit_its_configs(path):
    study = read_study(str(CONFIGS / path))
    assert len(study.seeds) >= 5
    assert f"({path.name})" in text("studies/README.md")
    built = []
    for run in [*study.teachers.values(), *study.runs.values()]:
        cfg = copy.deepcopy(read(Path(run.config).relative_to("configs")))
        cfg.merge_from_dict(run.options)
        assert (run.teacher is not None) == (cfg.model.type == "KDDETR")
        points = cfg.model.pop("points", {})
        if run.teacher:
            teacher = study.teachers[run.teacher].config
            assert Path(cfg.model.teacher.config).resolve() == (ROOT / teacher).resolve()
            TASK_UTILS.build({"type": "DistillPointGenerator", **points})
            cfg.model.teacher.checkpoint = None
        if cfg.model not in built:  # many runs differ in points alone
            built.append(copy.deepcopy(cfg.model))
            MODELS.build(cfg.model)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_it_is_a_whole_experiment(path):
    cfg = read(path)
    for key in ("model", "train_dataloader", "val_evaluator", "optim_wrapper", "param_scheduler"):
        assert key in cfg
    assert (cfg.model.type == "KDDETR") == (path in DISTILLED)
    # A learning rate that never drops, or drops after the end, is a schedule gone wrong.
    drops = [s for s in cfg.param_scheduler if s.type == "MultiStepLR"]
    assert drops and all(m < cfg.train_cfg.max_epochs for s in drops for m in s.milestones)
    # ..._8xb2-12e_coco: 8 GPUs with 2 images each, 12 epochs.
    for gpus, images, epochs in re.findall(r"_(\d+)xb(\d+)-(\d+)e_coco", path.stem):
        assert cfg.train_cfg.max_epochs == int(epochs)
        assert cfg.train_dataloader.batch_size == int(images)
        assert cfg.auto_scale_lr.base_batch_size == int(gpus) * int(images)
    if path.parts[0] not in COCO:  # with a learning rate of their own, for one process
        assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size
    # ..._2x_coco: mmdet's 24 epochs of 8 GPUs with 2 images each.
    for times in re.findall(r"_(\d)x_coco", path.stem):
        assert cfg.train_cfg.max_epochs == 12 * int(times)
        assert cfg.train_dataloader.batch_size == 2 and cfg.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.parts[0] in COCO], ids=str)
def test_it_says_only_what_differs(path):
    inherits_distillation = "kd-detr_" in bases(path)[0]
    limit = 6 if path in ABLATION else 9 if inherits_distillation else 15
    assert len(text(path).splitlines()) <= limit
    assert not re.search(r'"/|"~', text(path))  # no path of somebody's machine


@pytest.mark.parametrize("path", DISTILLED, ids=str)
def test_it_differs_from_the_student_alone_in_the_model_only(path):
    cfg, alone = read(path), read(student_of(path))
    assert cfg.model.student == alone.model
    for key in alone:
        if key != "model":
            assert cfg[key] == alone[key], key


@pytest.mark.parametrize("path", DISTILLED, ids=str)
def test_its_teacher_is_there_or_is_what_a_config_writes(path):
    teacher = read(path).model.teacher
    if teacher.config.startswith("mmdet::"):
        assert (teacher.checkpoint, teacher.ap) == stock(teacher.config)
    else:
        config = Path(teacher.config).resolve()
        own = read(config.relative_to(CONFIGS))
        assert Path(teacher.checkpoint).name == f"epoch_{own.train_cfg.max_epochs}.pth"
        if path.parts[0] in COCO:
            assert Path(teacher.checkpoint).parent == Path("work_dirs") / config.stem


def marks_of(path):
    """The small DINOs are narrower than the official mmdet's can be."""
    return needs_dino_widths if path.parts[0] not in COCO and "dino" in path.name else ()


@pytest.mark.parametrize("path", [pytest.param(p, marks=marks_of(p), id=str(p)) for p in DISTILLED])
def test_it_builds_at_full_size(path):
    cfg = copy.deepcopy(read(path))
    assert cfg.model.teacher.checkpoint
    cfg.model.teacher.checkpoint = None
    model = MODELS.build(cfg.model)
    assert isinstance(model, KDDETR)
    families = (model.student_family, model.teacher_family)
    assert len({f.num_class_scores - f.has_background for f in families}) == 1
    for part, options in (
        (model.point_generator, cfg.model.get("points", {})),
        (model.distill_loss, cfg.model.get("distill_loss", {})),
    ):
        weights = {f"{term}_weight": value for term, value in getattr(part, "weights", {}).items()}
        for name, value in options.items():
            assert name == "type" or {**vars(part), **weights}[name] == value


@pytest.mark.parametrize(
    "path", [p for p in EXPERIMENTS if p.parts[0] in COCO and p not in DISTILLED], ids=str
)
def test_a_config_without_distillation_is_mmdets_but_for_the_backbone(path):
    name = f"{path.parts[0]}/{re.sub('_r(18|101)_', '_r50_', path.name)}"
    cfg, stock = read(path), Config.fromstring(f'_base_ = "mmdet::{name}"', ".py")
    depth = int(re.search(r"_r(\d+)_", path.name)[1])
    assert cfg.model.backbone.depth == depth
    widths = [64, 128, 256, 512] if depth == 18 else [256, 512, 1024, 2048]
    widths = [widths[stage] for stage in cfg.model.backbone.out_indices]
    assert cfg.model.neck == {**stock.model.neck, "in_channels": widths}
    assert cfg.model.backbone.init_cfg.checkpoint == f"torchvision://resnet{depth}"
    rest = [
        {key: value for key, value in c.items() if key not in ("model", "custom_imports")}
        | {key: value for key, value in c.model.items() if key not in ("backbone", "neck")}
        for c in (cfg, stock)
    ]
    assert rest[0] == rest[1]


def test_an_ablation_differs_from_the_base_in_points_and_loss_only():
    base = read(ABLATION_BASE).model
    seen = [{}]
    for path in ABLATION:
        model = read(path).model
        differs = {key: model[key] for key in model if model[key] != base.get(key)}
        assert set(base) <= set(model) and set(differs) <= {"points", "distill_loss"}
        assert differs not in seen, f"{path} is the base or another ablation"
        seen.append(differs)
        # What the name says is what differs.
        points, loss = differs.get("points", {}), differs.get("distill_loss", {})
        words = path.stem.split("_")[3:-2]
        paired = points.get("type") == "QueryPairing"
        assert (loss.get("rebalance") is False) == ("no-rebalance" in words or paired)
        assert (points.get("specific") is False) == ("general-only" in words)
        assert (points.get("num_general") == 0) == ("specific-only" in words)
        counts = [int(word[8:]) for word in words if re.fullmatch(r"general-\d+", word)]
        assert counts == [number for number in [points.get("num_general")] if number]
        assert (loss.get("class_term") == "softmax") == ("softmax" in words)
        assert (loss.get("layers") == "one_to_one") == ("layerwise" in words)
        if paired:
            assert words == [points.strategy.replace("_", "-")]


@pytest.mark.parametrize("path", [p for p in DISTILLED if "rcnn" in p.name], ids=str)
def test_a_two_stage_student_is_asked_at_its_own_boxes_unless_its_name_says_otherwise(path):
    model = read(path).model
    assert set(model) == {"type", "student", "teacher", "points", "distill_loss"}
    cls_weight = 0.0 if path == BOXES_ONLY else 2.0
    assert model.distill_loss == dict(cls_weight=cls_weight, l1_weight=5.0, giou_weight=2.0)
    assert model.points.type == (
        "DistillPointGenerator" if path == TEACHER_BOXES else "CoordinateSampler"
    )
    if path == BOXES_ONLY:
        assert model.points.boxes == "proposals"
    else:
        assert path.parts[0] == "tiny" or set(model.points) == {"type"}  # defaults


@pytest.mark.parametrize("folder", COCO)
def test_a_folders_readme_lists_every_config(folder):
    readme = text(Path(folder, "README.md"))
    for path in EXPERIMENTS:
        if path.parts[0] == folder:
            assert f"({path.name})" in readme


@pytest.mark.parametrize("folder", COCO)
def test_a_folders_readme_links_to_what_exists(folder):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text(Path(folder, "README.md"))):
        assert "://" in link or (CONFIGS / folder / link).exists(), link
    for config in re.findall(r"configs/\S+\.py", text(Path(folder, "README.md"))):
        assert list(ROOT.glob(config)), config


@pytest.mark.parametrize("folder", COCO)
def test_a_folders_metafile_lists_every_config(folder):
    metafile = yaml.safe_load(text(Path(folder, "metafile.yml")))
    (collection,) = metafile["Collections"]
    assert collection["README"] == f"configs/{folder}/README.md"
    assert (ROOT / collection["README"]).is_file()
    experiments = [path for path in EXPERIMENTS if path.parts[0] == folder]
    models = {model["Config"]: model for model in metafile["Models"]}
    assert len(models) == len(metafile["Models"])
    assert models.keys() == {f"configs/{path}" for path in experiments}
    for path in experiments:
        model, cfg = models[f"configs/{path}"], read(path)
        assert model["Name"] == path.stem and model["In Collection"] == collection["Name"]
        metadata = dict(Epochs=cfg.train_cfg.max_epochs)
        if path in DISTILLED:
            teacher = cfg.model.teacher
            name = teacher.config
            if "::" not in name:
                name = str(Path(name).resolve().relative_to(ROOT))
            metadata["Teacher"] = name
            if "://" in teacher.checkpoint:
                metadata["Teacher Weights"] = teacher.checkpoint
        assert model["Metadata"] == metadata
        assert "Results" not in model  # nobody has measured any


def test_the_metafiles_names_are_unique():
    models, collections = [], []
    for folder in COCO:
        metafile = yaml.safe_load(text(Path(folder, "metafile.yml")))
        models += [model["Name"] for model in metafile["Models"]]
        collections += [collection["Name"] for collection in metafile["Collections"]]
    assert len(models) == len(set(models)) and len(collections) == len(set(collections))


def test_the_project_readme_shows_the_config_as_it_is():
    readme = (ROOT / "README.md").read_text()
    shown = readme.split("```python\n")[1].split("```")[0]
    shown = "".join(re.sub(r"\s+# \d$", "", line) + "\n" for line in shown.splitlines())
    real = text("dino/kd-detr_dino-4scale_r50-to-r18_8xb2-12e_coco.py")
    shorten = lambda text: re.sub(r"/mmdetection/v3.0/dino/[^/]+/", "/.../", text)  # noqa: E731
    assert shown == shorten(re.sub(r"  # noqa.*", "", real))
