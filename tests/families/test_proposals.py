"""points.proposals: what two encoders propose, exactly as mmdet selects its queries from it."""

import pytest
import torch
from conftest import dab_config, ddq_config, deformable_config, dino_config, noisy

from kd_detr_mmdet.families import build_family
from kd_detr_mmdet.utils import ConfigError

TWO_STAGE = deformable_config("two stage")
ONLY = dict(num_general=0, specific=False, proposals=True)


@pytest.mark.parametrize("config", [dino_config(), TWO_STAGE], ids=["dino", "deformable"])
def test_the_best_of_them_are_the_queries_boxes(batch, config):
    # With initial weights the decoder's heads would answer as the encoder's.
    detector = noisy(config)
    family = build_family(detector)
    with family.recording() as record:
        detector(**batch(detector), mode="loss")
    answer, valid = family.proposals(record)
    # Of two-stage Deformable DETR the first score alone says whether there is an object.
    assert answer.cls_scores.size(-1) == (1 if config is TWO_STAGE else 4)
    best = answer.cls_scores[0].amax(-1).topk(detector.num_queries).indices
    boxes = answer.boxes[0].gather(1, best[..., None].expand(-1, -1, 4))
    assert torch.allclose(boxes, family.queries(record).boxes)
    assert valid.shape == answer.boxes.shape[1:3]
    assert 0 < valid[1].sum() < valid[0].sum()  # the second image is padded


@pytest.mark.parametrize(
    "student, teacher",
    [(dino_config(), dino_config(decoder_layers=3, channels=8)), (ddq_config(), dino_config()),
     (TWO_STAGE, TWO_STAGE)],
    ids=["dino", "dino-to-ddq", "deformable"],
)  # fmt: skip
def test_they_teach_the_encoder_and_not_the_decoder(pair, batch, student, teacher):
    model = pair(student, teacher, points=ONLY)
    losses = model(**batch(model), mode="loss")
    terms = {name: value for name, value in losses.items() if "kd_loss" in name}
    assert set(terms) == {f"kd_loss_proposals_{term}" for term in ("cls", "l1", "giou")}
    sum(terms.values()).backward()
    gradients = {
        part: sum(p.grad.abs().sum() for p in getattr(model.student, part).parameters()
                  if p.grad is not None)
        for part in ("backbone", "neck", "encoder", "decoder")
    }  # fmt: skip
    assert gradients.pop("decoder") == 0
    assert all(0 < value < float("inf") for value in gradients.values())


def test_identical_models_agree(pair, batch):
    model = pair(dino_config(), dino_config(), points=ONLY)
    model.student.load_state_dict(model.teacher.state_dict())
    model.student.backbone.eval()  # batch statistics would differ
    losses = model(**batch(model), mode="loss")
    assert all(abs(value) < 1e-4 for name, value in losses.items() if "kd_loss" in name)


@pytest.mark.parametrize(
    "student, teacher",
    [(dab_config(), dino_config()), (dino_config(), dab_config()),
     (deformable_config("refine"), TWO_STAGE), (dino_config(width=256), TWO_STAGE)],
)  # fmt: skip
def test_pairs_that_do_not_propose_alike_are_refused(pair, student, teacher):
    with pytest.raises(ConfigError, match="points.proposals compares what two encoders propose"):
        pair(student, teacher, points=ONLY)


def test_one_score_for_any_object_needs_a_class_term_that_speaks_of_it(pair):
    loss = dict(class_term="softmax")
    with pytest.raises(ConfigError, match="class_term='softmax' .* one score only"):
        pair(TWO_STAGE, TWO_STAGE, points=ONLY, distill_loss=loss)
    pair(TWO_STAGE, TWO_STAGE, points=ONLY, distill_loss=dict(loss, cls_weight=0))
    pair(dino_config(), dino_config(), points=ONLY, distill_loss=loss)


def test_places_in_the_padding_do_not_count(pair, batch, monkeypatch):
    model = pair(dino_config(), dino_config(), points=ONLY)
    data, asked = batch(model), model.teacher_family.proposals

    def losses(change):
        def proposals(record):
            answer, valid = asked(record)
            assert 0 < valid.sum() < valid.numel()
            where = valid if change == "valid" else ~valid
            return answer._replace(cls_scores=answer.cls_scores + 5.0 * where[..., None]), valid

        if change:
            monkeypatch.setattr(model.teacher_family, "proposals", proposals)
        model.student.backbone.eval()  # batch statistics would not stay as they are
        return model(**data, mode="loss")["kd_loss_proposals_cls"]

    assert losses(None) == losses("padding") != losses("valid")


def test_other_feature_levels_are_refused(pair, batch):
    model = pair(dino_config(), dino_config(levels=3), points=ONLY)
    with pytest.raises(ConfigError, match="places and the teacher's .* the same feature levels"):
        model(**batch(model), mode="loss")
