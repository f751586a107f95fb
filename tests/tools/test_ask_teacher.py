"""tools/ask_teacher.py: figures of an answer that is known, and a whole table."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    FAMILY_CONFIGS,
    TEACHER,
    build,
    dino_config,
    noisy,
    random_checkpoint,
    two_stage_config,
)
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.utils import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("ask_teacher", ROOT / "tools" / "ask_teacher.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tmp_path_factory, teacher_checkpoint):
    """A distillation of tiny models on 4 generated images."""
    folder = tmp_path_factory.mktemp("ask")
    shapes = generate_shapes(folder / "shapes", {"train": 1, "val": 4}, (64, 48))
    cfg = Config.fromfile(ROOT / "configs/demo/dino_alone.py")
    cfg.val_dataloader.dataset.data_root = str(shapes)
    cfg.val_dataloader.dataset.pipeline[2].scale = (64, 48)
    cfg.val_evaluator.ann_file = str(shapes / "annotations/instances_val.json")
    teacher = dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint)
    cfg.model = dict(type="KDDETR", student=dino_config(), teacher=teacher)
    return cfg


def test_a_perfect_answer_at_the_ground_truth(tool, config):
    init_default_scope("mmdet")
    dataset = DATASETS.build(config.val_dataloader.dataset)
    asked = tool.Asked(config.val_evaluator, dict(classes=SHAPE_CLASSES))
    head = build(dino_config()).bbox_head
    objects = 0
    for index in range(len(dataset)):
        sample = pseudo_collate([dataset[index]])["data_samples"][0]
        instances = dataset.get_data_info(index)["instances"]
        corners = torch.tensor([i["bbox"] for i in instances]).reshape(-1, 4)
        boxes = tool.relative_boxes(corners, (48, 64))
        labels = torch.tensor([i["bbox_label"] for i in instances], dtype=torch.long)
        # Logit 2 for the right class, -9 for others: a confidence of sigmoid(2) = 88.1 %.
        scores = torch.full((1, 1, len(boxes), 4), -9.0)
        scores[0, 0].scatter_(1, labels[:, None], 2.0)
        answer = Answer(scores, boxes[None, None])
        asked.hear(head, answer, boxes, sample)
        asked.compare(answer, boxes, labels, torch.arange(len(boxes)))
        objects += len(boxes)
    row = asked.row(len(dataset))
    assert objects == len(torch.cat(asked.objects)) > 4
    assert row == {
        "AP": 100.0,
        "AP50": 100.0,
        "AP75": 100.0,
        "class right": 100.0,
        "IoU": 100.0,
        "confidence": 88.1,
        "to move": 0.0,
    }


def test_points_on_objects_and_points_beside_them(tool):
    truth = torch.tensor([[0.25, 0.5, 0.5, 0.4], [0.75, 0.5, 0.5, 0.4]])
    # On the second; half of the first; twice on nothing.
    boxes = [[0.75, 0.5, 0.5, 0.4], [0.125, 0.5, 0.25, 0.4], [0.05, 0.5, 0.1, 0.4]]
    boxes = torch.tensor([*boxes, [0.5, 0.1, 0.1, 0.1]])
    on = torch.tensor([1, 0, -1, -1])
    # Of a softmax, the last score is the background's: the class is 1 at the first two points.
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    scores[0] = torch.tensor([0.3, 0.5, 0.2])
    asked = tool.Asked.__new__(tool.Asked)
    asked.objects = []
    answer = Answer(scores.log()[None, None], boxes[None, None], has_background=True)
    asked.compare(answer, truth, torch.tensor([0, 1]), on)  # wrong at the half of the first
    found = asked.objects[0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 0.5], [0.0, 0.5, 0.2]]))


def test_how_far_answers_are_from_the_boxes_asked_at(tool):
    # Half of the box: GIoU 0.5. A box as large at a box's width from it: 0 - (3 - 2) / 3. The
    # weights are the best class's scores, 0.8 and 0.2.
    asked_at = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.5, 0.1, 0.1]])
    boxes = torch.tensor([[0.55, 0.5, 0.1, 0.2], [0.4, 0.5, 0.1, 0.1]])
    scores = torch.tensor([[0.8, 0.3], [0.1, 0.2]]).logit()
    asked = tool.Asked.__new__(tool.Asked)
    asked.moves = []
    asked.weigh(Answer(scores[None, None], boxes[None, None]), asked_at)
    torch.testing.assert_close(
        asked.moves[0], torch.tensor([[0.8, 0.8 * 0.5], [0.2, 0.2 * (1 + 1 / 3)]])
    )


def test_jitter_moves_by_shares_of_the_size_and_stays_inside(tool):
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.1]]).repeat(20_000, 1)
    moved = tool.jittered(boxes, 0.1, torch.Generator().manual_seed(0))
    assert moved.min() > 0 and moved.max() <= 1
    spread = moved.std(0)  # 10 % of the width and of the height; sizes by a factor of exp(0.1 z)
    assert torch.allclose(spread[:2], torch.tensor([0.02, 0.01]), rtol=0.05)
    assert torch.allclose(moved[:, 2:].log().std(0), torch.tensor([0.1, 0.1]), rtol=0.05)
    assert torch.equal(tool.jittered(boxes, 0.0, torch.Generator()), boxes)


def test_every_place_with_every_content(tool, config, tmp_path, monkeypatch, capsys):
    config.dump(tmp_path / "kd.py")
    out = tmp_path / "rows.json"
    arguments = ["ask_teacher.py", str(tmp_path / "kd.py"), "--num-general", "7", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    tool.main()
    rows = json.loads(out.read_text())
    assert len(rows) == 1 + 4 * 4  # its own queries; places with contents
    assert "7 random boxes, content: nearest" in rows
    assert rows["ground truth, content: zeros"]["IoU"] is not None
    assert rows["7 random boxes, content: zeros"]["IoU"] is None
    assert capsys.readouterr().out.count("\n|") == len(rows) + 2  # with head and rule
    assert rows == tool.ask(config, 7, 0)  # the same draw again


def test_a_trained_student_is_asked_as_well(tool, config, teacher_checkpoint):
    # The teacher's own weights: it says the same at the teacher's queries as the teacher does.
    config = config.copy()
    config.model.student = dino_config(**TEACHER)
    rows = tool.ask(config, 7, 0, teacher_checkpoint)
    own, borrowed = rows["student at its own queries"], rows["student at the teacher's queries"]
    assert own == borrowed == rows["its own queries"]
    assert len(rows) == 1 + 2 + 5 * 4
    assert "the student's boxes, content: nearest" in rows
    with pytest.raises(ConfigError, match="--student"):
        tool.ask(config, 7, 0, "no such file")


@pytest.mark.parametrize("name", sorted({*FAMILY_CONFIGS} - {"detr"}))  # it is asked at no boxes
def test_every_family_is_asked(tool, config, tmp_path, name):
    cfg = copy.deepcopy(FAMILY_CONFIGS[name])
    checkpoint = random_checkpoint(tmp_path / "teacher.pth", cfg, classes=SHAPE_CLASSES)
    config = copy.deepcopy(config)
    config.model = dict(type="KDDETR", student=cfg, teacher=dict(config=cfg, checkpoint=checkpoint))
    rows = tool.ask(config, 7, 0, checkpoint)
    assert rows["student at the teacher's queries"] == rows["student at its own queries"]


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
def test_a_two_stage_student_is_asked_at_proposals_and_ground_truth(
    tool, config, tmp_path, kind, monkeypatch
):
    config = config.copy()
    config.model.student = two_stage_config(kind)
    config.model.points = dict(type="CoordinateSampler")
    config.val_dataloader.dataset.pipeline[2].scale = (32, 24)  # half of the images' size
    student = noisy(two_stage_config(kind), seed=1).eval()
    torch.save(dict(state_dict=student.state_dict()), tmp_path / "student.pth")
    asked, detected_at = [], tool.detected_at

    def spy(detector, features, sample, boxes):
        found = detected_at(detector, features, sample, boxes)
        asked.append((sample.img_id, boxes, found))
        return found

    monkeypatch.setattr(tool, "detected_at", spy)
    rows = tool.ask(config, 7, 0, str(tmp_path / "student.pth"))
    assert len(rows) == 1 + 3 + 5 * 4
    names = [name for name in rows if name.startswith("student at")]
    assert [name[11:] for name in names] == ["its own proposals", "the teacher's queries"] + [
        "the ground truth"
    ]
    there = [rows["the student's boxes, content: zeros"], rows["student at its own proposals"]]
    assert all((row["IoU"] is None) == (row["class right"] is None) for row in there)
    assert rows["student at the ground truth"]["IoU"] is not None
    dataset = DATASETS.build(config.val_dataloader.dataset)
    for index in range(4):
        (own, teachers, truth) = (
            a for a in asked if a[0] == dataset.get_data_info(index)["img_id"]
        )
        data = student.data_preprocessor(pseudo_collate([dataset[index]]), False)
        with torch.no_grad():
            predicted = student.predict(data["inputs"], data["data_samples"])[0].pred_instances
        assert len(predicted) > 0
        torch.testing.assert_close(own[2].bboxes, predicted.bboxes)
        torch.testing.assert_close(own[2].scores, predicted.scores)
        assert len(teachers[1]) == TEACHER["num_queries"] and len(own[1]) > len(truth[1])
        boxes = [i["bbox"] for i in dataset.get_data_info(index)["instances"]]
        torch.testing.assert_close(truth[1], torch.tensor(boxes).reshape(-1, 4) / 2)


def test_no_random_boxes(run):
    code, line, _ = run("ask_teacher.py", "config.py", "--num-general", 0)
    assert code == 2
    assert line.endswith("--num-general: must be an integer of at least 1, got '0'")


def test_what_cannot_be_asked(tool, config):
    alone = config.copy()
    alone.model = dino_config()
    with pytest.raises(ConfigError, match="not a distillation's"):
        tool.ask(alone, 7, 0)
