"""How well a teacher answers at boxes that are not its own: python tools/ask_teacher.py CONFIG.

CONFIG is a distillation's. The teacher is asked at its own queries, at ground-truth boxes, at
jittered ones and at random boxes, with each content that its queries can be given there. What it
says at ground truth bounds what it can teach at a student's boxes. The last column is the GIoU
loss of a student that gives every point back as its answer: while ``kd_raw_..._giou`` of a training
log is no lower, the points' boxes have taught it nothing else. With a trained student, who answers
how well at whose queries tells where its AP is lost: in what it says or in where it looks. Of a
two-stage student the proposals of its RPN are asked, and it at ground truth as well.
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
from kd_detr_mmdet.families.base import BLANK_CONTENT, Record
from kd_detr_mmdet.losses import RebalancedDistillLoss
from kd_detr_mmdet.losses.rebalanced_distill_loss import elementwise_giou
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.points.coordinate_sampler import objects_at
from kd_detr_mmdet.points.coordinates import pixel_corners, relative_boxes
from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.configs import is_kd_model
from kd_detr_mmdet.utils.data import check_data
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.evaluation import detections
from kd_detr_mmdet.utils.runs import at_least_one

JITTER = (0.1, 0.3)  # standard deviations, as shares of a box's width and height
COLUMNS = ("AP", "AP50", "AP75", "class right", "IoU", "confidence", "to move")


class Asked:
    """What was heard at one kind of place: detections for COCO's AP, and figures at objects."""

    def __init__(self, cfg: dict, metainfo: dict) -> None:
        self.metric = METRICS.build(cfg)
        self.metric.dataset_meta = metainfo
        self.objects: list[Tensor] = []
        self.moves: list[Tensor] = []

    def hear(self, head: torch.nn.Module, answer: Answer, boxes: Tensor, sample: object) -> None:
        """Take in a DETR's answer for an image that it was asked about at boxes (M, 4)."""
        self.take(*detections(head, answer, [sample]), sample)
        self.weigh(answer, boxes)

    def weigh(self, answer: Answer, boxes: Tensor) -> None:
        """Note the GIoU loss of saying the box that one was asked at, and the loss's weights."""
        scores = answer.cls_scores[-1, 0]
        weight = RebalancedDistillLoss().foreground_weight(scores, answer.has_background)
        loss = 1 - elementwise_giou(boxes, answer.boxes[-1, 0])
        self.moves.append(torch.stack([weight, weight * loss], -1))

    def take(self, found: InstanceData, sample: object) -> None:
        """Take in an image's detections, in pixels of the original image."""
        sample.pred_instances = found
        self.metric.process({}, [sample.to_dict()])

    def compare(self, answer: Answer, truth: Tensor, labels: Tensor, on: Tensor) -> None:
        """Compare an answer with the objects (n, 4) that its points lie on: (M,), -1 for none."""
        lies = on >= 0
        on, scores, found = on[lies], answer.cls_scores[-1, 0][lies], answer.boxes[-1, 0][lies]
        softmax = answer.has_background
        probability = scores.softmax(-1)[:, :-1] if softmax else scores.sigmoid()
        corners = bbox_cxcywh_to_xyxy(found), bbox_cxcywh_to_xyxy(truth[on])
        right = (probability.argmax(-1) == labels[on]).float()
        overlap = bbox_overlaps(*corners, is_aligned=True)
        self.objects.append(torch.stack([right, overlap, probability.amax(-1)], -1))

    def row(self, images: int) -> dict:
        """Figures in percent."""
        with contextlib.redirect_stdout(io.StringIO()):
            result = self.metric.evaluate(images)
        aps = [result[f"coco/bbox_mAP{suffix}"] for suffix in ("", "_50", "_75")]
        objects = torch.cat(self.objects) if self.objects else []
        means = objects.mean(0).tolist() if len(objects) else [None] * 3
        weight, loss = torch.cat(self.moves).sum(0).tolist() if self.moves else (0, 0)
        figures = [*aps, *means, loss / weight if weight else None]
        return {
            name: None if value is None else round(100 * value, 1)
            for name, value in zip(COLUMNS, figures, strict=True)
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

    def ears(name: str) -> Asked:
        if name not in heard:  # building one reads the annotations' file
            heard[name] = Asked(cfg.val_evaluator, dataset.metainfo)
        return heard[name]

    head = model.teacher.bbox_head
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
        truth = relative_boxes(corners, (info["height"], info["width"])).to(queries.boxes)
        labels = torch.tensor([o["bbox_label"] for o in objects], dtype=torch.long)
        labels, each = labels.to(truth.device), torch.arange(len(truth), device=truth.device)
        ears("its own queries").hear(head, own_answer, queries.boxes[0], sample)
        places = {"ground truth": (truth, each)}
        for share in JITTER:
            name = f"ground truth, jittered by {share:.0%}"
            places[name] = jittered(truth.cpu(), share, generator).to(truth), each
        random = general.general(1, (index,)).boxes[0].to(truth)
        places[f"{num_general} random boxes"] = random, None
        if isinstance(student, TwoStageFamily):
            features = model.student.extract_feat(batch["inputs"])
            (own,) = model.student.rpn_head.predict(features, samples, rescale=False)
            known = Record(features=features, shapes=[sample.img_shape])
            proposals = relative_boxes(own.bboxes, sample.img_shape)
            places["the student's boxes"] = proposals, objects_at(proposals, truth)
            for name, boxes in {
                "student at its own proposals": proposals,
                "student at the teacher's queries": queries.boxes[0],
                "student at the ground truth": truth,
            }.items():
                rois = pixel_corners(boxes, sample.img_shape)
                ears(name).take(detected_at(model.student, features, sample, rois), sample)
                if len(boxes):
                    answer = student.answer(known, DistillPoints(boxes[None]))
                    ears(name).compare(answer, truth, labels, objects_at(boxes, truth))
        elif student is not None:
            own = student.look(batch["inputs"], samples)
            own_head = model.student.bbox_head
            boxes, answer = student.queries(own).boxes[0], student.own_answer(own)
            ears("student at its own queries").hear(own_head, answer, boxes, sample)
            answer = student.answer(own, queries)
            ears("student at the teacher's queries").hear(
                own_head, answer, queries.boxes[0], sample
            )
            places["the student's boxes"] = boxes, objects_at(boxes, truth)
        for place, (boxes, on) in places.items():
            for content in contents if len(boxes) else ():
                family.blank_content = content if family.content_dims else "zeros"
                with model.teacher_at_work.answering():
                    answer = family.answer(record, DistillPoints(boxes[None]))
                asked = ears(f"{place}, content: {content}")
                asked.hear(head, answer, boxes, sample)
                if on is not None:
                    asked.compare(answer, truth, labels, on)
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
    parser.add_argument(
        "--num-general", type=at_least_one, default=100, help="random boxes per image"
    )
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
