"""Tiny detectors and batches: every test builds what it needs in a fraction of a second."""

import os

# The suite is the same on every machine: a GPU adds up in another order at every run, where tests
# ask for equal bits. Those marked "gpu" have a command of their own: make test-gpu.
if os.environ.get("GPU_TESTS") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import copy
import json
import runpy
import sys
import uuid
from collections import Counter, OrderedDict
from pathlib import Path

import kd_detr_mmdet  # noqa: F401  isort: skip  (provides mmcv's operators, so before mmdet)

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader

from kd_detr_mmdet.datasets import generate_shapes
from kd_detr_mmdet.utils.checkpoints import let_mmengine_read_data_only
from kd_detr_mmdet.utils.errors import ConfigError

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)  # tensors this small only get slower with more
register_all_modules(init_default_scope=True)


_STOCK = get_config("mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py").model
# The official mmdet's DINO decodes at a width of 256 only, the maintained fork's at any.
DINO_WIDTH = 256 if mmdet.__version__.startswith("3.3.") else 32
DINO_MILLIONS = "2.48" if DINO_WIDTH == 256 else "0.09"  # parameters of dino_config()
needs_dino_widths = pytest.mark.skipif(
    DINO_WIDTH == 256, reason="mmdet 3.3's DINO has a width of 256 only"
)
if mmdet.__version__.startswith("3.3."):
    # The official MMEngine's own loaders cannot read its checkpoints on PyTorch 2.6 and newer.
    let_mmengine_read_data_only()


def small_backbone(channels):
    """A ResNet-18 of few channels that trains from scratch."""
    return dict(
        depth=18,
        base_channels=channels,
        stem_channels=channels,
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    )


def dino_config(
    width=DINO_WIDTH,
    decoder_layers=2,
    num_queries=12,
    levels=2,
    num_classes=4,
    channels=4,
    dropout=0.0,
):
    """mmdet's own DINO config, shrunk to about 0.1 M parameters."""
    cfg = copy.deepcopy(_STOCK)
    attention = dict(embed_dims=width, num_heads=2, dropout=dropout)
    deformable = dict(attention, num_levels=levels)
    ffn = dict(embed_dims=width, feedforward_channels=2 * width, ffn_drop=dropout)
    cfg.num_queries = num_queries
    cfg.num_feature_levels = levels
    cfg.backbone.update(small_backbone(channels))
    cfg.neck.update(
        in_channels=[2 * channels, 4 * channels, 8 * channels],
        out_channels=width,
        norm_cfg=dict(type="GN", num_groups=4),
        num_outs=levels,
    )
    # ChannelMapper needs as many inputs as outputs at least.
    cfg.backbone.out_indices = (1, 2, 3)[-min(levels, 3) :]
    cfg.neck.in_channels = cfg.neck.in_channels[-min(levels, 3) :]
    cfg.encoder = dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn))
    cfg.decoder.num_layers = decoder_layers
    cfg.decoder.layer_cfg = dict(self_attn_cfg=attention, cross_attn_cfg=deformable, ffn_cfg=ffn)
    cfg.positional_encoding.num_feats = width // 2
    cfg.bbox_head.update(num_classes=num_classes, embed_dims=width)
    cfg.dn_cfg.group_cfg.num_dn_queries = 8
    cfg.test_cfg.max_per_img = num_queries
    return ConfigDict(copy.deepcopy(cfg.to_dict()))


def dab_config(width=32, decoder_layers=2, num_queries=12, num_classes=4, channels=4, patterns=0):
    """mmdet's own DAB-DETR config, shrunk alike."""
    cfg = get_config("mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py").model
    cfg.num_patterns = patterns
    _shrink_single_scale(cfg, width, decoder_layers, num_queries, num_classes, channels)
    return ConfigDict(copy.deepcopy(cfg.to_dict()))


def deformable_config(
    form="one stage",
    width=None,
    decoder_layers=2,
    num_queries=12,
    levels=2,
    num_classes=4,
    channels=4,
):
    """mmdet's own Deformable DETR config, shrunk alike; forms: one stage, refine, two stage.

    mmdet's code of the two-stage form is made for a width of 256.
    """
    width = width or (256 if form == "two stage" else 32)
    name = "deformable-detr_r50_16xb2-50e_coco.py"
    cfg = get_config(f"mmdet::deformable_detr/{name}").model
    dino = dino_config(width, decoder_layers, num_queries, levels, num_classes, channels)
    for part in ("backbone", "neck", "encoder"):
        cfg[part] = dino[part]
    cfg.num_queries = num_queries
    cfg.num_feature_levels = levels
    cfg.with_box_refine = form != "one stage"
    cfg.as_two_stage = form == "two stage"
    cfg.decoder.num_layers = decoder_layers
    cfg.decoder.layer_cfg = dino.decoder.layer_cfg
    cfg.positional_encoding.num_feats = width // 2
    cfg.bbox_head.update(num_classes=num_classes, embed_dims=width)
    cfg.test_cfg.max_per_img = num_queries
    return ConfigDict(copy.deepcopy(cfg.to_dict()))


def ddq_config(width=32, **options):
    """mmdet's own DDQ-DETR config, shrunk alike."""
    cfg = get_config("mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py").model
    dino = dino_config(width, **options)
    for part in ("backbone", "neck", "encoder", "positional_encoding", "dn_cfg", "test_cfg"):
        cfg[part] = dino[part]
    cfg.num_queries = dino.num_queries
    cfg.num_feature_levels = dino.num_feature_levels
    cfg.decoder.num_layers = dino.decoder.num_layers
    cfg.decoder.layer_cfg = dino.decoder.layer_cfg
    cfg.bbox_head.update(
        num_classes=dino.bbox_head.num_classes, embed_dims=dino.bbox_head.embed_dims
    )
    return ConfigDict(copy.deepcopy(cfg.to_dict()))


def conditional_config(decoder_layers=2, num_queries=12, num_classes=4, channels=4):
    """mmdet's own Conditional DETR config, shrunk but for its width: mmdet's code has 256 only."""
    cfg = get_config("mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py").model
    _shrink_single_scale(cfg, 256, decoder_layers, num_queries, num_classes, channels)
    return ConfigDict(copy.deepcopy(cfg.to_dict()))


def detr_config(width=32, decoder_layers=2, num_queries=12, num_classes=4, channels=4):
    """mmdet's own DETR config, shrunk alike."""
    cfg = get_config("mmdet::detr/detr_r50_8xb2-150e_coco.py").model
    _shrink_single_scale(cfg, width, decoder_layers, num_queries, num_classes, channels)
    return ConfigDict(copy.deepcopy(cfg.to_dict()))


def _shrink_single_scale(cfg, width, decoder_layers, num_queries, num_classes, channels):
    cfg.num_queries = num_queries
    cfg.backbone.update(small_backbone(channels))
    cfg.neck.update(in_channels=[8 * channels], out_channels=width)
    cfg.encoder.num_layers = 1
    cfg.decoder.num_layers = decoder_layers
    for coder in (cfg.encoder, cfg.decoder):
        for name, part in coder.layer_cfg.items():
            part.embed_dims = width
            if name == "ffn_cfg":
                part.feedforward_channels = 2 * width
            else:
                part.num_heads = 2
    cfg.positional_encoding.num_feats = width // 2
    cfg.bbox_head.update(num_classes=num_classes, embed_dims=width)
    cfg.test_cfg.max_per_img = num_queries


def two_stage_config(kind="faster_rcnn", num_classes=4, channels=4, agnostic=False):
    """mmdet's own Faster, Cascade or Mask R-CNN config, shrunk alike: 16 channels, few RoIs."""
    names = dict(
        faster_rcnn="faster-rcnn_r50_fpn_1x_coco.py",
        cascade_rcnn="cascade-rcnn_r50_fpn_1x_coco.py",
        mask_rcnn="mask-rcnn_r50_fpn_1x_coco.py",
    )
    cfg = get_config(f"mmdet::{kind}/{names[kind]}").model
    cfg.backbone.update(small_backbone(channels))
    cfg.neck.update(in_channels=[channels, 2 * channels, 4 * channels, 8 * channels])
    cfg.neck.out_channels = 16
    cfg.rpn_head.update(in_channels=16, feat_channels=16)
    roi_head = cfg.roi_head
    roi_head.bbox_roi_extractor.out_channels = 16
    heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]
    for head in heads:
        head.update(in_channels=16, fc_out_channels=32, num_classes=num_classes)
        head.reg_class_agnostic = agnostic or head.reg_class_agnostic
    if kind == "mask_rcnn":
        roi_head.mask_roi_extractor.out_channels = 16
        roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=num_classes)
    stages = cfg.train_cfg.rcnn if isinstance(cfg.train_cfg.rcnn, list) else [cfg.train_cfg.rcnn]
    for stage in stages:
        stage.sampler.num = 16
    cfg.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=30)
    cfg.test_cfg.rpn.update(nms_pre=50, max_per_img=30)
    return ConfigDict(copy.deepcopy(cfg.to_dict()))


# A small config of every family; the forms of Deformable DETR count apart.
FAMILY_CONFIGS = dict(
    dino=dino_config(),
    dab=dab_config(),
    deformable=deformable_config(),
    refine=deformable_config("refine"),
    two_stage=deformable_config("two stage"),
    conditional=conditional_config(),
    ddq=ddq_config(),
    detr=detr_config(),
)
TEACHER = dict(decoder_layers=3, num_queries=16, levels=3)


def build(cfg):
    """A detector from a copy of its config, with MMDetection's initial weights."""
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    return model


def refused(cfg):
    """What the user is told of a config that cannot be built."""
    with pytest.raises(ConfigError) as error:
        MODELS.build(copy.deepcopy(cfg))
    return str(error.value)


def teacher_of(**kwargs):
    """An untrained DINO as the teacher of a ``KDDETR``, by :func:`dino_config`."""
    return dict(config=dino_config(**kwargs), checkpoint=None)


def noisy(cfg, seed=1):
    """A detector with random weights of some size: initial ones answer alike at every query."""
    detector = build(cfg)
    generator = torch.Generator().manual_seed(seed)
    state = detector.state_dict()
    for value in state.values():
        if value.is_floating_point():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    for name, value in state.items():
        if name.endswith("running_var"):
            value.abs_().add_(0.1)
    return detector


def random_checkpoint(path, cfg, seed=1, classes=None):
    """Save a :func:`noisy` detector as MMEngine would; returns the path."""
    meta = {} if classes is None else dict(dataset_meta=dict(classes=classes))
    torch.save(dict(state_dict=noisy(cfg, seed).state_dict(), meta=meta), path)
    return str(path)


def pytest_terminal_summary(terminalreporter):
    """How many tests were skipped, by reason."""
    skipped = terminalreporter.stats.get("skipped", ())
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session")
def teacher_checkpoint(tmp_path_factory):
    """Checkpoint of a teacher with the config ``dino_config(**TEACHER)``."""
    return random_checkpoint(
        tmp_path_factory.mktemp("teacher") / "teacher.pth", dino_config(**TEACHER)
    )


@pytest.fixture
def kd_config(teacher_checkpoint):
    """Makes a KDDETR config of a tiny student and teacher; keyword arguments override."""

    def make(**overrides):
        cfg = dict(
            type="KDDETR",
            student=dino_config(),
            teacher=dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint),
            points=dict(num_general=10),
        )
        return ConfigDict({**cfg, **overrides})

    return make


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Makes a KDDETR of two configs, with DETR's points if the student is one."""
    folder, known = tmp_path_factory.mktemp("pairs"), []

    def make(student, teacher, **overrides):
        if teacher not in known:
            random_checkpoint(folder / f"{len(known)}.pth", teacher)
            known.append(copy.deepcopy(teacher))
        checkpoint = str(folder / f"{known.index(teacher)}.pth")
        cfg = dict(
            type="KDDETR",
            student=student,
            teacher=dict(config=teacher, checkpoint=checkpoint),
            points=dict(num_general=0 if student["type"] == "DETR" else 10),
        )
        return build({**cfg, **overrides})

    return make


@pytest.fixture
def batch():
    """Makes preprocessed inputs: dict(inputs (bs, 3, H, W), data_samples), images of two sizes.

    With ``num_items`` the number of boxes in each image is fixed.
    """

    def make(model, shapes=((3, 64, 96), (3, 48, 80)), num_items=None, training=True):
        shapes = [list(shape) for shape in shapes]
        data = demo_mm_inputs(len(shapes), shapes, num_items=num_items, num_classes=4)
        return model.data_preprocessor(data, training)

    return make


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """16 + 8 generated images."""
    return generate_shapes(
        tmp_path_factory.mktemp("data") / "shapes", {"train": 16, "val": 8}, (64, 48)
    )


def plain_text(cfg):
    """A config as a config file's text; MMEngine's, formatted by yapf, takes seconds."""
    return "".join(f"{key} = {value!r}\n" for key, value in cfg.to_dict().items())


@pytest.fixture
def write_config(tmp_path, shapes, teacher_checkpoint):
    """Writes config files of the student alone and distilled; options override by dotted key."""

    def write(distilled=True, **options):
        base = Config.fromfile(ROOT / "configs/demo/dino_alone.py")
        base.model = dino_config()
        base.default_hooks.logger.interval = 1
        base.env_cfg.mp_cfg.mp_start_method = "spawn"
        for loader in ("train", "val", "test"):
            dataset = base[f"{loader}_dataloader"].dataset
            dataset.data_root = str(shapes)
            dataset.pipeline[2].scale = (64, 48)
        annotations = str(shapes / "annotations/instances_val.json")
        base.val_evaluator.ann_file = base.test_evaluator.ann_file = annotations
        base.train_cfg.max_epochs = 1
        base.work_dir = str(tmp_path / "work")
        if distilled:
            teacher = dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint)
            base.model = dict(
                type="KDDETR", student=base.model, teacher=teacher, points=dict(num_general=10)
            )
        base.merge_from_dict(options)
        path = tmp_path / ("distilled.py" if distilled else "alone.py")
        path.write_text(plain_text(base))
        return str(path)

    return write


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a tool in this process: (exit code, last line of stderr, stdout)."""

    # Asking the compilers for their versions takes longer than all the rest.
    monkeypatch.setattr("mmengine.runner.runner.collect_env", lambda: {"Python": "3"})

    def tool(name, *arguments):
        code = 0
        with monkeypatch.context() as patch:
            # train.py has MMEngine read checkpoints in another way from then on.
            patch.setattr(CheckpointLoader, "_schemes", CheckpointLoader._schemes.copy())
            # It would log to the folder of an earlier run in this process.
            patch.setattr(DetLocalVisualizer, "_instance_dict", OrderedDict())
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            patch.setattr(Config, "pretty_text", property(plain_text))
            try:
                runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
            except SystemExit as stop:
                code = stop.code
        out, err = capfd.readouterr()
        return code, (err.strip().splitlines() or [""])[-1], out

    return tool


@pytest.fixture
def train_tiny(tmp_path, monkeypatch):
    """Trains a model for one epoch by a real Runner with a DistillLogHook.

    Returns the rows of scalars.json and the lines of the console's log; ``train_tiny.hub`` is the
    last run's message hub.
    """
    for manager in (MessageHub, MMLogger, DefaultScope, Visualizer):
        monkeypatch.setattr(manager, "_instance_dict", copy.copy(manager._instance_dict))
    monkeypatch.setattr(Config, "pretty_text", "")  # formatting it takes longer than training

    def train(model, iterations, interval, hooks=()):
        data = demo_mm_inputs(2 * iterations, [[3, 64, 96]] * 2 * iterations, num_classes=4)
        images = [dict(inputs=i, data_samples=s) for i, s in zip(*data.values())]
        runner = Runner(
            model=model,
            work_dir=str(tmp_path),
            experiment_name=f"tiny_{uuid.uuid4().hex}",
            train_dataloader=DataLoader(images, batch_size=2, collate_fn=pseudo_collate),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-5)),
            default_hooks=dict(logger=dict(type="LoggerHook", interval=interval), checkpoint=None),
            custom_hooks=[dict(type="DistillLogHook"), *hooks],
            log_processor=dict(window_size=100),
            visualizer=dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")]),
            default_scope="mmdet",
            randomness=dict(seed=0),
        )
        runner.train()
        train.hub = runner.message_hub
        (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
        (log,) = tmp_path.glob("*/*.log")
        lines = [line for line in log.read_text().splitlines() if "Epoch(train)" in line]
        return [json.loads(row) for row in scalars.read_text().splitlines()], lines

    random_state = torch.get_rng_state()
    yield train
    torch.set_rng_state(random_state)
