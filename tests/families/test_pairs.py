"""Any family distils any other: one training step of every pair, and the pairs that cannot be."""

import copy

import pytest
from conftest import (
    DINO_WIDTH,
    FAMILY_CONFIGS,
    build,
    conditional_config,
    dab_config,
    ddq_config,
    deformable_config,
    detr_config,
    dino_config,
)
from mmdet.registry import MODELS

from kd_detr_mmdet.utils import ConfigError

LARGER = dict(decoder_layers=3, num_queries=16)
TEACHERS = dict(
    dino=dino_config(levels=3, **LARGER),
    dab=dab_config(**LARGER),
    deformable=deformable_config(levels=3, **LARGER),
    refine=deformable_config("refine", levels=3, **LARGER),
    two_stage=deformable_config("two stage", levels=3, **LARGER),
    conditional=conditional_config(**LARGER),
    ddq=ddq_config(levels=3, **LARGER),
    detr=detr_config(**LARGER),
)
WITH_PLACES = [name for name in FAMILY_CONFIGS if name != "detr"]
PAIRS = [(ours, theirs) for ours in WITH_PLACES for theirs in WITH_PLACES] + [("detr", "detr")]
ONLY_SPECIFIC = dict(num_general=0)


@pytest.mark.parametrize("student, teacher", PAIRS, ids=[" of ".join(both) for both in PAIRS])
def test_one_step_of_every_pair(pair, batch, student, teacher):
    kd = pair(FAMILY_CONFIGS[student], TEACHERS[teacher]).train()
    losses = kd(**batch(kd, num_items=[2, 1]), mode="loss")
    distil = {name: value for name, value in losses.items() if "kd_loss" in name}
    sets = ("specific",) if student == "detr" else ("specific", "general")
    assert set(distil) == {
        f"{layer}kd_loss_{points}_{term}"
        for layer in ("d0.", "")
        for points in sets
        for term in ("cls", "l1", "giou")
    }
    assert all(value.isfinite() and value > 0 for value in distil.values())
    for points in sets:  # each set by itself, so that neither hides the other's
        kd.zero_grad()
        sum(distil[name] for name in distil if points in name).backward(retain_graph=True)
        taught = set()
        for name, parameter in kd.student.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                if parameter.grad.any():
                    taught.add(name.split(".")[0])
        assert {"backbone", "neck", "encoder", "decoder", "bbox_head"} <= taught
        # Points are not learned: neither are the student's own queries by them.
        own = {"query_embedding", "reference_points_fc", "query_map", "memory_trans_fc"}
        assert not own & taught
    assert all(parameter.grad is None for parameter in kd.teacher.parameters())


def test_every_family_is_here():
    assert TEACHERS.keys() == FAMILY_CONFIGS.keys()
    assert len(PAIRS) == 7 * 7 + 1


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_a_distillation_has_the_keys_of_the_plain_student(pair, name):
    teacher = "detr" if name == "detr" else "dino"
    kd = pair(FAMILY_CONFIGS[name], TEACHERS[teacher])
    assert list(kd.state_dict()) == list(build(FAMILY_CONFIGS[name]).state_dict())


# --- pairs that are refused -----------------------------------------------------------------------


def refused(student, teacher, **options):
    """What the user is told of a pair that cannot be."""
    cfg = dict(type="KDDETR", student=student, teacher=dict(config=teacher, checkpoint=None))
    with pytest.raises(ConfigError) as error:
        MODELS.build(copy.deepcopy({**cfg, **options}))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("other", WITH_PLACES)
def test_detr_teaches_no_other_family(other):
    message = refused(FAMILY_CONFIGS[other], detr_config(), points=ONLY_SPECIFIC)
    assert message.startswith("DETR has one softmax over the classes and the background")
    assert f"and {FAMILY_CONFIGS[other].type} a sigmoid per class" in message
    assert "Pair DETR with its like" in message


@pytest.mark.parametrize(
    "other, content",
    [(other, content) for other in WITH_PLACES for content in ("auto", "blank")]
    + [(other, "teacher") for other in ("dino", "dab", "ddq")],  # whose content has DETR's width
)
def test_detr_shares_no_other_familys_queries(other, content):
    width = TEACHERS[other].encoder.layer_cfg.self_attn_cfg.embed_dims
    both = detr_config(width), FAMILY_CONFIGS[other]
    message = refused(*both, points=ONLY_SPECIFIC, student_content=content)
    assert "DETR's queries have no coordinates" in message
    assert "a DETR of the same width only" in message
    assert message.endswith(f"a {FAMILY_CONFIGS[other].type} and the student a DETR")


@pytest.mark.parametrize("points", [{}, dict(num_general=5), dict(num_general=5, specific=False)])
def test_detr_has_no_general_points(points):
    message = refused(detr_config(), detr_config(), points=points)
    assert "DETR's queries have no coordinates" in message
    assert "set points.num_general=0" in message


def test_detr_of_another_width():
    message = refused(detr_config(), detr_config(width=64), points=ONLY_SPECIFIC)
    assert "DETR's queries have no coordinates" in message
    assert "a DETR of the same width only" in message
    assert "the teacher is a DETR of width 64 and the student a DETR of width 32" in message
    message = refused(
        detr_config(), detr_config(width=64), points=ONLY_SPECIFIC, student_content="teacher"
    )
    assert "student_content='teacher' needs queries of one width" in message


def test_detr_without_the_teachers_queries():
    message = refused(detr_config(), detr_config(), points=ONLY_SPECIFIC, student_content="blank")
    assert "DETR's queries have no coordinates" in message
    assert "student_content='auto' or 'teacher'" in message


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("dino", "dab" if DINO_WIDTH == 256 else "conditional"),
        ("dab", "deformable"),
        ("two_stage", "two_stage"),
    ],
)
def test_content_that_does_not_fit(student, teacher):
    both = FAMILY_CONFIGS[student], TEACHERS[teacher]
    message = refused(*both, student_content="teacher")
    assert "student_content='teacher' needs queries of one width" in message
    assert "use 'auto' or 'blank'" in message
    for fits in ("auto", "blank"):
        cfg = dict(student=both[0], teacher=dict(config=both[1], checkpoint=None))
        MODELS.build(copy.deepcopy(dict(cfg, type="KDDETR", student_content=fits)))


def test_other_numbers_of_classes():
    message = refused(detr_config(), detr_config(num_classes=7), points=ONLY_SPECIFIC)
    assert "student scores 4" in message and "teacher 7" in message
    message = refused(dab_config(), conditional_config(num_classes=7))
    assert "student scores 4" in message and "teacher 7" in message
