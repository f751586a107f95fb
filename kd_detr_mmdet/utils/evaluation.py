"""COCO AP of a detector or of a teacher's answers, in this process and without a Runner's logs."""

import contextlib
import copy
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample, SampleList
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from ..detectors import KDDETR
from ..families.base import swapped
from ..families.ddq_detr import predicting_at_all
from ..points import Answer
from .errors import ConfigError

# Our names of COCO's metrics, and how MMDetection's end.
AP_NAMES = dict(AP="", AP50="_50", AP75="_75", AP_small="_s", AP_medium="_m", AP_large="_l")


@torch.no_grad()
def evaluate(
    model: BaseDetector,
    dataloader: dict,
    evaluator: dict | list,
    images: int | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Test a detector as MMEngine's test loop does.

    Args:
        model: In eval mode, on its device.
        dataloader: Config of the data loader; its ``dataset`` may be built already.
        evaluator: Config of a COCO metric.
        images: Take only so many, the first ones.
        classes: What the model's labels count, names of some of the data's classes; default: all of
            them. AP is over these classes.

    Returns:
        dict: By the names of ``AP_NAMES``, in percent; None where no object has that size.

    Raises:
        ConfigError: If the metric gives no COCO AP of boxes.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's lines
        dataset = dataloader["dataset"]
        dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else copy.copy(dataset)
        if images is not None and images < len(dataset):
            dataset.get_subset_(images)
        loader = Runner.build_dataloader({**dataloader, "dataset": dataset}, seed=0)
        judge = Evaluator(copy.deepcopy(evaluator))
    judge.dataset_meta = dict(dataset.metainfo, classes=classes or dataset.metainfo["classes"])
    for metric in judge.metrics:  # else images that were not taken count as missed
        metric.img_ids = [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))]
    watched = sys.stderr.isatty()
    for batch in track_iter_progress((loader, len(loader)), file=sys.stderr) if watched else loader:
        judge.process(data_samples=model.test_step(batch), data_batch=batch)
    if watched:
        print(file=sys.stderr)  # the progress bar leaves its line open
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = judge.evaluate(len(dataset))
    if "coco/bbox_mAP" not in metrics:
        raise ConfigError(f"the evaluator gives no 'coco/bbox_mAP' but {', '.join(metrics)}")
    values = {name: metrics[f"coco/bbox_mAP{end}"] for name, end in AP_NAMES.items()}
    return {name: round(100 * v, 1) if v >= 0 else None for name, v in values.items()}


def detections(
    head: nn.Module, answer: Answer, samples: Sequence[DetDataSample], rescale: bool = True
) -> list[InstanceData]:
    """The detections that a DETR's head makes of an answer, however few its points and classes."""
    if answer.distinct is not None:
        found = []
        for index, kept in enumerate(answer.distinct):
            one = slice(index, index + 1)
            distinct = answer._replace(
                cls_scores=answer.cls_scores[:, one, kept],
                boxes=answer.boxes[:, one, kept],
                distinct=None,
            )
            with predicting_at_all(head, kept[kept]):
                found += detections(head, distinct, samples[one], rescale)
        return found
    scores = answer.cls_scores
    candidates = scores.size(2) if answer.has_background else scores[0, 0].numel()
    limit = min(head.test_cfg.get("max_per_img", candidates), candidates)
    with (
        swapped(head, "test_cfg", dict(head.test_cfg, max_per_img=limit)),
        swapped(head, "num_classes", scores.size(-1) - answer.has_background),
    ):
        metas = [sample.metainfo for sample in samples]
        return head.predict_by_feat(scores, answer.boxes, batch_img_metas=metas, rescale=rescale)


@contextmanager
def teacher_in_front(model: KDDETR) -> Iterator[None]:
    """Within the context, a distillation predicts what its teacher says, as the student hears it.

    The teacher gets the student's images, with all options that hold in training, and its answers
    at its own queries are cut to the shared classes, in their order.
    """

    def predict(
        batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        family = model.teacher_family
        record = model.teacher_look(batch_inputs, batch_data_samples)
        with model.teacher_at_work.answering():
            answer = model.class_map.of_teacher(family.own_answer(record))
        found = detections(family.detector.bbox_head, answer, batch_data_samples, rescale)
        return model.add_pred_to_datasample(batch_data_samples, found)

    with swapped(model, "predict", predict):
        yield
