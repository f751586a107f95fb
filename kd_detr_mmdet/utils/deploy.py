"""A trained student as one small file: weights, config and classes, and nothing else."""

import hashlib
import io
from pathlib import Path

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import DATASETS
from mmengine.config import Config

from .configs import model_config
from .errors import ConfigError, brief
from .files import write_atomically

# What testing and inference read of a config; the rest is about training.
KEPT = ("default_scope", "custom_imports", "test_dataloader", "test_cfg", "test_evaluator")


def inference_config(cfg: Config) -> Config:
    """A config of the student alone, with its test pipeline and without all that trains it.

    Args:
        cfg: The student's whole config, or that of its distillation.

    Raises:
        ConfigError: If it has no ``test_dataloader``, where MMDetection looks for the pipeline.
    """
    if not (cfg.get("test_dataloader") or {}).get("dataset"):
        raise ConfigError(
            "the config holds no test_dataloader with a dataset: inference needs its pipeline"
        )
    kept = {key: cfg[key] for key in KEPT if cfg.get(key) is not None}
    return Config({"default_scope": "mmdet", **kept, "model": model_config(cfg)})


def class_names(detector: BaseDetector, cfg: Config) -> tuple[str, ...]:
    """The names of a detector's classes, in the order of its labels.

    Args:
        detector: With the ``checkpoint_info`` of
            :func:`~kd_detr_mmdet.detectors.teacher.load_strictly`: the checkpoint's names count.
        cfg: Whose ``test_dataloader`` tells them if the checkpoint does not.

    Raises:
        ConfigError: If nobody tells them, if the two tell different ones, or if they are not as
            many as the detector's classes.
    """
    dataset = cfg.test_dataloader.dataset
    kind = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    known = getattr(kind, "METAINFO", {})
    in_config = (dataset.get("metainfo") or {}).get("classes") or known.get("classes")
    in_checkpoint = detector.checkpoint_info["classes"]
    classes = in_checkpoint or in_config
    if not classes:
        raise ConfigError(
            "neither the checkpoint nor the config names the classes: set "
            "test_dataloader.dataset.metainfo=dict(classes=...)"
        )
    if in_config and tuple(in_config) != tuple(classes):
        raise ConfigError(
            f"the checkpoint was trained on classes {brief(classes)}, but the config's "
            f"test_dataloader has {brief(in_config)}: take the config it was trained with"
        )
    head = detector.roi_head.bbox_head if hasattr(detector, "roi_head") else detector.bbox_head
    head = head[0] if isinstance(head, torch.nn.ModuleList) else head
    if head.num_classes != len(classes):
        raise ConfigError(
            f"the detector has {head.num_classes} classes, but there are names for {len(classes)}: "
            f"{brief(classes)}"
        )
    return tuple(classes)


def save_deployable(
    detector: BaseDetector, cfg: Config, classes: tuple[str, ...], stem: str | Path
) -> Path:
    """Save a detector so that one file is enough to load it.

    The file is a dict of ``state_dict``, the weights under the keys that the stock config has, and
    ``meta``: ``cfg``, the config as text, and ``dataset_meta.classes``. It holds tensors and plain
    values only. As in MMDetection's model zoo its name ends in the first 8 hexadecimal digits of
    its sha256, so equal content has an equal name.

    Args:
        detector: With its weights. A checkpoint's ``state_dict`` is what to load before: where
            MMEngine's EMAHook trained along, that is the average.
        cfg: What :func:`inference_config` gives.
        classes: Names, in the order of the labels.
        stem: Path of the file, less ``-<hash>.pth``.

    Returns:
        Path: The file; it appears whole or not at all.
    """
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=classes))
    buffer = io.BytesIO()  # not a path: its name would be in the file, and so in the hash
    torch.save(dict(meta=meta, state_dict=detector.state_dict()), buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = Path(f"{stem}-{digest}.pth")
    write_atomically(path, content)
    return path
