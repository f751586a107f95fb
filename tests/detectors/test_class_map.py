"""class_map: a teacher of other classes teaches those that both know."""

import pytest
import torch
from conftest import TEACHER, build, detr_config, dino_config, random_checkpoint, two_stage_config

from kd_detr_mmdet.detectors.class_map import ClassMap
from kd_detr_mmdet.hooks.report_hook import check_classes
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.utils import ConfigError

COCO = ("person", "bicycle", "car", "dog", "bus", "train", "cat")


def answer(classes, has_background=False):
    """Logits that are the class's index, for one point."""
    return Answer(
        torch.arange(classes).float().expand(1, 1, 1, -1), torch.rand(1, 1, 1, 4), has_background
    )


@pytest.mark.parametrize(
    "option, shared, student, teacher",
    [
        ("names", ["dog", "car"], [0, 2], [3, 2]),
        (dict(wolf="dog", car="car"), ["wolf", "car"], [1, 2], [3, 2]),
        (dict(car="bus"), ["car"], [2], [4]),
    ],
)
def test_which_scores_are_compared(option, shared, student, teacher):
    classes = ClassMap(option)
    assert classes.resolve(("dog", "wolf", "car"), COCO) == shared
    assert classes.of_student(answer(3)).cls_scores.flatten().tolist() == student
    assert classes.of_teacher(answer(7)).cls_scores.flatten().tolist() == teacher
    # Of a softmax, all others are the background, last: what is shared keeps its probability.
    for side, picked, count in ((classes.of_student, student, 4), (classes.of_teacher, teacher, 8)):
        with_background = side(answer(count, True))
        assert with_background.has_background
        probabilities = answer(count, True).cls_scores.softmax(-1).flatten()
        expected = probabilities[picked]
        expected = torch.cat([expected, 1 - expected.sum(0, keepdim=True)])
        torch.testing.assert_close(with_background.cls_scores.softmax(-1).flatten(), expected)
    labels = torch.arange(len(shared))
    assert classes.student_labels(labels).tolist() == student


def test_without_a_map_answers_pass_as_they_are():
    given = answer(3)
    assert ClassMap().of_student(given) is given
    assert ClassMap().of_teacher(given) is given


@pytest.mark.parametrize("option", ["name", 3, [("a", "b")], {}])
def test_bad_options(option):
    with pytest.raises(ConfigError, match="class_map must be"):
        ClassMap(option)


@pytest.mark.parametrize(
    "option, student, teacher, told",
    [
        ("names", ("tree",), COCO, "nothing to distil"),
        ("names", ("dog",), None, "does not tell them"),
        (dict(dog="wolf"), ("dog",), COCO, "'wolf', but the teacher"),
        (dict(wolf="dog"), ("dog",), COCO, "'wolf', but the data set"),
        (dict(a="car", b="dog", c="car"), ("a", "b", "c"), COCO, "'car' to 'a' and 'c'"),
    ],
)
def test_what_cannot_be_resolved(option, student, teacher, told):
    with pytest.raises(ConfigError, match=told):
        ClassMap(option).resolve(student, teacher)


@pytest.mark.parametrize("kind", ["dino", "faster_rcnn"])
def test_a_teacher_of_seven_classes_teaches_four(tmp_path, batch, kind):
    teacher = dino_config(**TEACHER, num_classes=7)
    path = random_checkpoint(tmp_path / "coco.pth", teacher, classes=COCO)
    cfg = dict(
        type="KDDETR",
        student=dino_config() if kind == "dino" else two_stage_config(),
        teacher=dict(config=teacher, checkpoint=path),
        points=dict(num_general=5),
        class_map="names",
    )
    kd = build(cfg).train()
    data = batch(kd)
    with pytest.raises(ConfigError, match="resolve"):
        kd(**data, mode="loss")
    check_classes(kd, ("cat", "tree", "dog", "person"))
    assert kd.class_map.pairs == [(0, 6), (2, 3), (3, 0)]
    losses = kd(**data, mode="loss")
    loss = sum(value for name, value in losses.items() if "kd_loss" in name)
    loss.backward()
    assert loss.isfinite() and loss > 0
    if kind == "dino":  # the class that the teacher does not know is left to the detection loss
        gradient = kd.student.bbox_head.cls_branches[1].bias.grad
        assert gradient[[0, 2, 3]].all() and gradient[1] == 0


def test_a_roi_head_is_asked_for_the_box_of_its_own_class(pair, batch, monkeypatch):
    """And not of the class with the number that the shared one has among the shared."""
    model = pair(two_stage_config(), dino_config(**TEACHER, num_classes=7), class_map="names")
    model.class_map.resolve(("cat", "tree", "dog", "person"), COCO)
    asked, answer = [], model.student_family.answer

    def noted(record, points, labels, looks):
        asked.append(labels.flatten())
        return answer(record, points, labels, looks)

    monkeypatch.setattr(model.student_family, "answer", noted)
    model.train()(**batch(model), mode="loss")
    numbers = set(torch.cat(asked).tolist())
    assert numbers <= {0, 2, 3}  # 1 is the tree, which the teacher does not know
    assert numbers & {2, 3}


def test_a_background_that_the_teacher_is_sure_of_is_no_class(pair, batch):
    model = pair(
        detr_config(), detr_config(num_classes=7), points=dict(num_general=0), class_map="names"
    )
    model.class_map.resolve(("cat", "tree", "dog", "person"), COCO)
    model.teacher.bbox_head.fc_cls.bias.data[-1] = 50.0
    losses = model.train()(**batch(model), mode="loss")
    assert losses["kd_loss_specific_cls"] > 0


def test_a_class_that_the_teacher_alone_knows_is_background(pair, batch):
    """A point that the teacher is sure is a bicycle is on nothing that it shares."""
    model = pair(
        detr_config(), detr_config(num_classes=7), points=dict(num_general=0), class_map="names"
    )
    model.class_map.resolve(("cat", "tree", "dog", "person"), COCO)
    for column, foreground in ((COCO.index("bicycle"), 0.0), (COCO.index("dog"), 1.0)):
        model.teacher.bbox_head.fc_cls.bias.data.zero_()[column] = 50.0
        model.train()(**batch(model), mode="loss")
        assert model.diagnostics["kd_foreground_specific"].item() == pytest.approx(foreground)


def test_more_classes_without_a_map_are_refused_with_the_remedy(tmp_path, kd_config):
    teacher = dict(config=dino_config(num_classes=7), checkpoint=None)
    with pytest.raises(ConfigError, match="class_map='names'"):
        build(kd_config(teacher=teacher))
    with pytest.raises(ConfigError, match="without class_map"):
        pairing = dict(type="QueryPairing", strategy="inconsistent")
        build(kd_config(teacher=teacher, class_map="names", points=pairing))


@pytest.mark.parametrize("kind", ["dino", "faster_rcnn"])
def test_one_shared_class_needs_a_class_term_that_speaks_of_it(tmp_path, kind):
    teacher = dino_config(**TEACHER, num_classes=7)
    path = random_checkpoint(tmp_path / "coco.pth", teacher, classes=COCO)
    option, silent, other = (
        ("class_term", "softmax", "bernoulli")
        if kind == "dino"
        else ("class_bridge", "foreground", "posterior")
    )

    def check(value, **options):
        cfg = dict(
            type="KDDETR",
            student=dino_config() if kind == "dino" else two_stage_config(),
            teacher=dict(config=teacher, checkpoint=path),
            distill_loss={option: value, **options},
            class_map="names",
        )
        check_classes(build(cfg), ("a", "tree", "dog", "b"))

    with pytest.raises(ConfigError, match=f"distill_loss.{option}='{silent}' .* one class only"):
        check(silent)
    check(other)
    check(silent, cls_weight=0)
