"""How well a teacher answers at boxes that are not its own: python tools/ask_teacher.py CONFIG.

CONFIG is a distillation's. The teacher is asked at its own queries, at ground-truth boxes, at
jittered ones and at random boxes, with each content that its queries can be given there. What it
says at ground truth bounds what it can teach at a student's boxes. With a trained student, who
answers how well at whose queries tells where its AP is lost: in what it says or in where it looks.
Of a two-stage student the proposals of its RPN are asked, and it at ground truth as well.
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor

from kd_detr_mmdet import DistillPointGenerator, DistillPoints
from kd_detr_mmdet.detectors.teacher import load_strictly
from kd_detr_mmdet.families import TwoStageFamily
from kd_detr_mmdet.families.base import BLANK_CONTENT
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.points.coordinates import pixel_corners, relative_boxes
from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.configs import is_kd_model
from kd_detr_mmdet.utils.data import check_data
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.evaluation import detections

JITTER = (0.1, 0.3)  # standard deviations, as shares of a box's width and height
COLUMNS = ("AP", "AP50", "AP75", "class right", "IoU", "confidence")


class Asked:
    """What was heard at one kind of place: detections for COCO's AP, and figures at objects."""

    def __init__(self, cfg: dict, metainfo: dict) -> None:
        self.metric = METRICS.build(cfg)
        self.metric.dataset_meta = metainfo
        self.objects: list[Tensor] = []

    def hear(self, head: torch.nn.Module, answer: Answer, sample: object, boxes: Tensor) -> None:
        """Take in a DETR's answer; ``boxes`` are the objects that the first points lie on."""
        scores, found = answer.cls_scores[-1, 0], answer.boxes[-1, 0]
        if len(boxes):
            labels = sample.gt_labels
            probability = scores[: len(boxes)].sigmoid()
            overlap = bbox_overlaps(
                bbox_cxcywh_to_xyxy(found[: len(boxes)]),
                bbox_cxcywh_to_xyxy(boxes),
                is_aligned=True,
            )
            right = (probability.argmax(-1) == labels).float()
            self.objects.append(torch.stack([right, overlap, probability.amax(-1)], -1))
        self.take(*detections(head, answer, [sample]), sample)

    def take(self, found: InstanceData, sample: object) -> None:
        """Take in an image's detections, in pixels of the original image."""
        sample.pred_instances = found
        self.metric.process({}, [sample.to_dict()])

    def row(self, images: int) -> dict:
        """Figures in percent."""
        with contextlib.redirect_stdout(io.StringIO()):
            result = self.metric.evaluate(images)
        aps = [result[f"coco/bbox_mAP{suffix}"] for suffix in ("", "_50", "_75")]
        means = torch.cat(self.objects).mean(0).tolist() if self.objects else [None] * 3
        return {
            name: None if value is None else round(100 * value, 1)
            for name, value in zip(COLUMNS, [*aps, *means])
        }


def jittered(boxes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Boxes (n, 4) with centres moved and sizes scaled at random, within the image."""
    noise = share * torch.randn(boxes.shape, generator=generator)
    centers = boxes[:, :2] + noise[:, :2] * boxes[:, 2:]
    return torch.cat([centers, boxes[:, 2:] * noise[:, 2:].exp()], -1).clamp(1e-3, 1)


def detected_at(
    detector: torch.nn.Module, features: tuple, sample: object, boxes: Tensor
) -> InstanceData:
    """What RoI heads detect at boxes (n, 4), corners in pixels of the image that they see."""
    labels = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    proposals = InstanceData(bboxes=boxes, scores=boxes.new_ones(len(boxes)), labels=labels)
    heads = detector.roi_head
    (found,) = heads.predict_bbox(features, [sample.metainfo], [proposals], heads.test_cfg, True)
    return found


@torch.no_grad()
def ask(
    cfg: dict, num_general: int, seed: int, student_checkpoint: str | None = None
) -> dict[str, dict]:
    """Ask the teacher at all places; returns the table's rows by name.

    Raises:
        ConfigError: If the config is not a distillation's, no image has annotations, or the
            student does not fit its checkpoint.
    """
    if not is_kd_model(cfg.model):
        raise ConfigError("the config is not a distillation's: its model is no KDDETR")
    init_default_scope("mmdet")
    MMLogger.get_current_instance().setLevel("WARNING")  # COCO's lines, a dozen times
    model = MODELS.build(cfg.model).eval()
    family = model.teacher_family
    if family.box_dims == 0:
        raise ConfigError(
            f"{type(model.teacher).__name__}'s queries have no coordinates: it cannot be asked "
            "at boxes"
        )
    student = model.student_family if student_checkpoint else None
    if student is not None:
        load_strictly(model.student, student_checkpoint, what="--student")
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    generator = torch.Generator().manual_seed(seed)
    general = DistillPointGenerator(num_general=num_general, specific=False, seed=seed)
    contents = BLANK_CONTENT if family.has_memory else BLANK_CONTENT[:-1]
    contents = contents if family.content_dims else ("none",)
    heard: dict[str, Asked] = {}
    for index in range(len(dataset)):
        batch = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
        (sample,) = samples = batch["data_samples"]
        record = model.teacher_look(batch["inputs"], samples)
        with model.teacher_at_work.answering():
            own_answer, queries = family.own_answer(record), family.queries(record)
        info = dataset.get_data_info(index)
        objects = [o for o in info["instances"] if not o["ignore_flag"]]
        # Of the annotations, not of the sample: pipelines resize before or after they load them.
        corners = torch.tensor([o["bbox"] for o in objects]).reshape(-1, 4)
        truth = relative_boxes(corners, (info["height"], info["width"]))
        sample.gt_labels = torch.tensor([o["bbox_label"] for o in objects], dtype=torch.long)
        answers = {"its own queries": (family, own_answer, truth[:0])}
        places = {"ground truth": truth}
        for share in JITTER:
            places[f"ground truth, jittered by {share:.0%}"] = jittered(truth, share, generator)
        places[f"{num_general} random boxes"] = general.general(1, (index,)).boxes[0]
        found: dict[str, InstanceData] = {}
        if isinstance(student, TwoStageFamily):
            features = model.student.extract_feat(batch["inputs"])
            (own,) = model.student.rpn_head.predict(features, samples, rescale=False)
            rois = {
                "student at its own proposals": own.bboxes,
                "student at the teacher's queries": pixel_corners(
                    queries.boxes[0], sample.img_shape
                ),
                "student at the ground truth": pixel_corners(
                    truth.to(queries.boxes), sample.img_shape
                ),
            }
            for name, boxes in rois.items():
                found[name] = detected_at(model.student, features, sample, boxes)
            places["the student's boxes"] = relative_boxes(own.bboxes, sample.img_shape)
        elif student is not None:
            own = student.look(batch["inputs"], samples)
            answers["student at its own queries"] = student, student.own_answer(own), truth[:0]
            answer = student.answer(own, queries)
            answers["student at the teacher's queries"] = student, answer, truth[:0]
            places["the student's boxes"] = student.queries(own).boxes[0]
        for place, boxes in places.items():
            for content in contents if len(boxes) else ():
                family.blank_content = content if family.content_dims else "zeros"
                on_objects = truth if place.startswith("ground") else truth[:0]
                points = DistillPoints(boxes[None].to(batch["inputs"].device))
                with model.teacher_at_work.answering():
                    answer = family.answer(record, points)
                answers[f"{place}, content: {content}"] = family, answer, on_objects
        for name, (asked, answer, on_objects) in answers.items():
            ears = heard.setdefault(name, Asked(cfg.val_evaluator, dataset.metainfo))
            ears.hear(asked.detector.bbox_head, answer, sample, on_objects)
        for name, detections_there in found.items():
            ears = heard.setdefault(name, Asked(cfg.val_evaluator, dataset.metainfo))
            ears.take(detections_there, sample)
    if not any(name.startswith("ground truth") for name in heard):
        raise ConfigError("no image of the validation data has annotations: nothing to ask at")
    return {name: asked.row(len(dataset)) for name, asked in heard.items()}


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    lines = [f"| asked at | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = ["-" if row[column] is None else f"{row[column]:.1f}" for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of a distillation")
    parser.add_argument("--student", help="checkpoint of a trained student, to ask it as well")
    parser.add_argument("--num-general", type=int, default=100, help="random boxes per image")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and random boxes")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    add_common_options(parser)
    args = parser.parse_args()
    cfg = read_config(args)
    check_data(cfg, ("val_dataloader",))
    rows = ask(cfg, args.num_general, args.seed, args.student)
    print(table(rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        main()
