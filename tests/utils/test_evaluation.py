"""AP without a Runner: of a known answer, of few images, and of a teacher in front."""

import json

import pytest
import torch
from conftest import FAMILY_CONFIGS, TEACHER, build, dino_config, noisy
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes
from kd_detr_mmdet.families import build_family
from kd_detr_mmdet.points import Answer, DistillPoints
from kd_detr_mmdet.utils import ConfigError
from kd_detr_mmdet.utils.evaluation import detections, evaluate, teacher_in_front


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data loader and evaluator of 4 generated images, and their annotations' content."""
    init_default_scope("mmdet")
    folder = tmp_path_factory.mktemp("evaluation")
    shapes = generate_shapes(folder / "shapes", {"train": 1, "val": 4}, (64, 48))
    cfg = Config.fromfile("configs/demo/dino_alone.py")
    cfg.val_dataloader.dataset.data_root = str(shapes)
    cfg.val_dataloader.batch_size = 3
    path = shapes / "annotations/instances_val.json"
    cfg.val_evaluator.ann_file = str(path)
    return cfg.val_dataloader, cfg.val_evaluator, json.loads(path.read_text())


class Knowing(nn.Module):
    """Finds every object of a data set; labels count ``classes``, and others are not found."""

    def __init__(self, content, classes):
        super().__init__()
        self.content, self.classes, self.asked = content, classes, []
        self.names = {category["id"]: category["name"] for category in content["categories"]}

    def test_step(self, batch):
        for sample in batch["data_samples"]:
            self.asked.append(sample.img_id)
            objects = [
                (a["bbox"], self.classes.index(self.names[a["category_id"]]))
                for a in self.content["annotations"]
                if a["image_id"] == sample.img_id and self.names[a["category_id"]] in self.classes
            ]
            boxes = torch.tensor([box for box, _ in objects]).reshape(-1, 4).float()
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([label for _, label in objects], dtype=torch.long)
            sample.pred_instances = InstanceData(
                bboxes=boxes, labels=labels, scores=torch.ones(len(objects))
            )
        return batch["data_samples"]


@pytest.mark.parametrize(
    ("images", "classes", "expected"),
    [(None, SHAPE_CLASSES, 4), (2, SHAPE_CLASSES, 2), (9, SHAPE_CLASSES[::2], 4)],
)
def test_who_finds_all_has_full_ap(data, images, classes, expected):
    loader, evaluator, content = data
    knowing = Knowing(content, list(classes))
    found = evaluate(knowing, loader, evaluator, images, None if len(classes) == 4 else classes)
    assert list(found) == ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    assert found["AP"] == found["AP50"] == 100.0
    assert found["AP_large"] is None  # no object is that large
    assert len(knowing.asked) == expected


def test_a_metric_without_ap_of_boxes_is_refused(data):
    loader, evaluator, content = data
    with pytest.raises(ConfigError, match="no 'coco/bbox_mAP' but coco/AR"):
        evaluate(Knowing(content, SHAPE_CLASSES), loader, {**evaluator, "metric": "proposal"})


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_a_teachers_answers_are_its_predictions(family, batch):
    detector = noisy(FAMILY_CONFIGS[family]).eval()
    data = batch(detector, training=False)
    ways = build_family(detector)
    with torch.no_grad():
        record = ways.look(data["inputs"], data["data_samples"])
        found = detections(detector.bbox_head, ways.own_answer(record), data["data_samples"])
        expected = detector.predict(data["inputs"], data["data_samples"])
    for ours, theirs in zip(found, expected):
        assert len(ours) > 0
        for key in ("bboxes", "labels", "scores"):
            assert torch.equal(ours[key], theirs.pred_instances[key])


def test_duplicates_are_left_out_of_each_answer_by_its_own_selection(batch):
    """DDQ-DETR predicts at those queries alone that its decoder finds distinct."""
    detector = noisy(FAMILY_CONFIGS["ddq"]).eval()
    data = batch(detector, training=False)
    ways, head = build_family(detector), detector.bbox_head
    samples = data["data_samples"]
    with torch.no_grad():
        record = ways.look(data["inputs"], samples)
        own, queries = ways.own_answer(record), ways.queries(record)
        before = detections(head, own, samples)
        # Every box twice, the first time with another query's content.
        boxes, content = queries.boxes.repeat(1, 2, 1), queries.content
        twice = DistillPoints(boxes, torch.cat([content.roll(1, 1), content], 1))
        with ways._as_at_inference(twice.num_points):  # as mmdet predicts
            outputs = ways.decode(record, twice.boxes, twice.content)
            metas = [sample.metainfo for sample in samples]
            expected = head.predict_by_feat(*head(**outputs), batch_img_metas=metas)
        answer = ways.answer(record, twice)
        found = detections(head, answer, samples)
        after = detections(head, ways.own_answer(record), samples)
    assert head.cache_dict is detector.cache_dict
    assert answer.distinct.shape == (2, 2 * detector.num_queries)
    for one, other in zip(before, after):
        assert torch.equal(one.scores, other.scores)
    assert not answer.distinct.all() and answer.distinct.any(1).all()
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours.scores, theirs.scores) and torch.equal(ours.bboxes, theirs.bboxes)


def test_fewer_points_and_classes_than_the_head_has(batch):
    detector = build(dino_config())
    sample = batch(detector, training=False)["data_samples"][0]
    answer = Answer(torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]]), torch.rand(1, 1, 2, 4), False)
    (found,) = detections(detector.bbox_head, answer, [sample])
    assert found.labels.tolist() == [1, 0, 0, 1]
    assert detector.bbox_head.num_classes == 4 and detector.bbox_head.test_cfg.max_per_img == 12


def test_the_teacher_in_front(kd_config, batch):
    """Its own pixels and the shared classes; and the student is back afterwards."""
    theirs = dino_config(**TEACHER)
    theirs.data_preprocessor.update(mean=[0.0] * 3, std=[255.0] * 3)
    config = kd_config()
    config.teacher.config = theirs
    kd = build({**config, "class_map": "names"}).eval()
    kd.class_map.resolve(("ring", "disc"), SHAPE_CLASSES)
    data = batch(kd, training=False)
    with torch.no_grad(), teacher_in_front(kd):
        found = kd.predict(data["inputs"], data["data_samples"])[0].pred_instances.clone()
    family = kd.teacher_family
    with torch.no_grad():
        pixels = kd._teacher_pixels(data["inputs"], data["data_samples"])
        assert not torch.equal(pixels, data["inputs"])
        scores = family.own_answer(family.look(pixels, data["data_samples"])).cls_scores[-1, 0]
        shared = scores[:, [3, 0]].sigmoid()  # ring and disc among the teacher's
        expected = shared.flatten().topk(len(found))
        student = kd.predict(data["inputs"], data["data_samples"])[0].pred_instances
    assert torch.allclose(found.scores, expected.values)
    assert torch.equal(found.labels, expected.indices % 2)
    assert not torch.equal(student.scores, found.scores)
