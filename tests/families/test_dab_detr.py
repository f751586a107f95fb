"""DAB-DETR: asked at points like a DINO, alone and in pairs with it."""

import copy

import pytest
import torch
from conftest import TEACHER, build, dab_config, dino_config, random_checkpoint
from mmdet.models.detectors import DABDETR

from kd_detr_mmdet.families import DABDETRFamily, build_family
from kd_detr_mmdet.points import DistillPoints

SHAPES = (((3, 64, 96), (3, 48, 80)), ((3, 64, 96), (3, 64, 96)))  # with and without padding


@pytest.fixture
def dab(tmp_path):
    """A DAB-DETR whose weights are not the initial ones, which look nowhere in particular."""
    detector = build(dab_config())
    path = random_checkpoint(tmp_path / "dab.pth", dab_config())
    detector.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
    return detector.eval()


@pytest.fixture
def pair(tmp_path):
    """Makes a KDDETR of two config makers."""

    def make(student, teacher, **options):
        path = random_checkpoint(tmp_path / "teacher.pth", teacher)
        return build(
            dict(
                type="KDDETR",
                student=student,
                teacher=dict(config=teacher, checkpoint=path),
                points=dict(num_general=10),
                **options,
            )
        )

    return make


def look(detector, data):
    family = build_family(detector)
    with torch.no_grad():
        return family, family.look(data["inputs"], data["data_samples"])


@pytest.mark.parametrize("shapes", SHAPES)
def test_asked_at_its_own_queries_it_repeats_itself(dab, batch, shapes):
    family, record = look(dab, batch(dab, shapes, training=False))
    with torch.no_grad():
        again = family.answer(record, family.queries(record))
    for said, repeated in zip(family.own_answer(record), again):
        torch.testing.assert_close(repeated, said, rtol=0, atol=1e-4)
    assert again.cls_scores.shape == (2, 2, 12, 4)
    assert again.boxes.shape == (2, 2, 12, 4)


def test_it_looks_where_it_is_told(dab, batch, monkeypatch):
    family, record = look(dab, batch(dab, training=False))
    points = DistillPoints(torch.rand(2, 7, 4, generator=torch.Generator().manual_seed(0)))
    seen = []
    monkeypatch.setattr(
        dab.decoder.ref_point_head, "forward", lambda sine: seen.append(sine) or sine[..., :32]
    )
    with torch.no_grad():
        family.answer(record, points)
    from mmdet.models.layers import coordinate_to_encoding

    # What the first layer encodes is the points' boxes: their own sine encoding.
    expected = coordinate_to_encoding(points.boxes, num_feats=16)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-3)


def test_its_queries_are_its_learnt_boxes(dab, batch):
    family, record = look(dab, batch(dab, training=False))
    points = family.queries(record)
    expected = dab.query_embedding.weight.sigmoid().expand(2, -1, -1)
    torch.testing.assert_close(points.boxes, expected, rtol=0, atol=1e-6)
    assert not points.content.any()
    assert family.num_queries == points.num_points == 12


def test_patterns_multiply_its_queries(batch):
    dab = build(dab_config(patterns=3)).eval()
    family, record = look(dab, batch(dab, training=False))
    assert family.num_queries == family.queries(record).num_points == 36
    assert torch.equal(family.learnt_content(), dab.patterns.weight)


def test_a_subclass_that_decodes_its_own_way_is_refused():
    class Same(DABDETR):
        pass

    class Own(DABDETR):
        def forward_decoder(self, *args, **kwargs):
            return super().forward_decoder(*args, **kwargs)

    assert DABDETRFamily.supports(Same)
    assert not DABDETRFamily.supports(Own)


def test_own_losses_are_bit_identical_to_plain_mmdet(pair, batch):
    kd, plain = pair(dab_config(), dab_config(decoder_layers=3)), build(dab_config())
    data = batch(plain)
    torch.manual_seed(0)
    expected = plain.train()(**copy.deepcopy(data), mode="loss")
    torch.manual_seed(0)
    losses = kd.train()(**data, mode="loss")
    assert len(expected) == 6
    for name, value in expected.items():
        assert torch.equal(losses[name], value), name


def test_the_same_student_and_teacher_have_nothing_to_learn(pair, batch):
    cfg = dab_config()
    cfg.backbone.norm_eval = True  # batch statistics would tell training from evaluation
    kd = pair(cfg, cfg)
    kd.student.load_state_dict(kd.teacher.state_dict())
    losses = kd.train()(**batch(kd), mode="loss")
    for term in ("cls", "l1", "giou"):
        for points in ("specific", "general"):
            assert losses[f"kd_loss_{points}_{term}"] < 1e-3


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (dab_config(), dab_config(decoder_layers=3, num_queries=16)),
        (dab_config(width=64), dab_config()),
        (dab_config(), dino_config(**TEACHER)),
        (dino_config(), dab_config(decoder_layers=3)),
    ],
    ids=["dab-dab", "wider", "dino-dab", "dab-dino"],
)
def test_one_step_of_every_pair(pair, batch, student, teacher):
    kd = pair(student, teacher).train()
    losses = kd(**batch(kd), mode="loss")
    distil = [value for name, value in losses.items() if "kd_loss" in name]
    assert len(distil) == 2 * 2 * 3  # sets, student layers, terms
    sum(distil).backward()
    taught = set()
    for name, parameter in kd.student.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all()
            if parameter.grad.any():
                taught.add(name.split(".")[0])
    assert {"backbone", "neck", "encoder", "decoder", "bbox_head"} <= taught
    assert all(parameter.grad is None for parameter in kd.teacher.parameters())
    assert set(kd.state_dict()) == set(build(student).state_dict())


@pytest.mark.parametrize("student", [dab_config(), dino_config()], ids=["dab", "dino"])
def test_content_is_taken_from_the_own_family_only(pair, student):
    kd = pair(student, dino_config(**TEACHER))
    content = torch.ones(1, 2, 32)
    points = DistillPoints(torch.full((1, 2, 4), 0.5), content)
    given = kd.student_family.content_at(points)
    assert torch.equal(given, content if student.type == "DINO" else torch.zeros(1, 2, 32))
    forced = pair(student, dino_config(**TEACHER), student_content="teacher")
    assert torch.equal(forced.student_family.content_at(points), content)
