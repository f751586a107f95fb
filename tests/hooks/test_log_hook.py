"""DistillLogHook: what the back-ends get, and how short the console's line stays."""

import pytest
from conftest import build, dino_config

SETS, TERMS = ("specific", "general"), ("cls", "l1", "giou")


@pytest.fixture
def six_layers(kd_config):
    return build(
        kd_config(
            student=dino_config(decoder_layers=6),
            distill_loss=dict(cls_weight=0, set_weights=dict(general=0.5)),
        )
    )


def test_terms_share_and_foreground_reach_the_back_ends(six_layers, train_tiny):
    rows, _ = train_tiny(six_layers, iterations=2, interval=1)
    first = rows[0]  # the mean of one iteration
    for name in SETS:
        assert 0 < first[f"kd_foreground_{name}"] < 1
        for layer in ("d0.", "d4.", ""):
            for term, weight in (("cls", 0), ("l1", 5), ("giou", 2)):
                raw = first[f"{layer}kd_raw_{name}_{term}"]
                scale = weight * (0.5 if name == "general" else 1)
                assert raw > 1e-4
                assert first[f"{layer}kd_loss_{name}_{term}"] == pytest.approx(raw * scale, 1e-4)
    losses = {name: value for name, value in first.items() if "loss" in name and name != "loss"}
    kd = sum(value for name, value in losses.items() if "kd_loss" in name)
    assert len(losses) == 36 + 39  # and DINO's own
    assert first["loss"] == pytest.approx(sum(losses.values()), rel=1e-4)  # and nothing but losses
    assert first["kd_share"] == pytest.approx(kd / first["loss"], rel=1e-4)


def test_the_console_line_tells_of_the_last_layer_and_no_raw_terms(six_layers, train_tiny):
    _, (line, *_) = train_tiny(six_layers, iterations=1, interval=1)
    ours = [item.split(": ")[0] for item in line.split("  ") if "kd_" in item]
    expected = {f"kd_loss_{name}_{term}" for name in SETS for term in TERMS}
    expected |= {"kd_share", *(f"kd_foreground_{name}" for name in SETS)}
    assert set(ours) == expected
    assert len(ours) == 9
    for theirs in ("lr: ", "  loss: ", "  d0.loss_cls: ", "  d4.dn_loss_iou: "):
        assert theirs in line


def test_values_are_read_where_a_line_is_written_and_nowhere_else(kd_config, train_tiny):
    model = build(kd_config())
    rows, _ = train_tiny(model, iterations=5, interval=2)
    # After the second and the fourth iteration. The fifth ends the epoch: its values wait for none.
    assert len(rows) == 2
    assert train_tiny.hub.get_scalar("train/kd_share").data[0].size == 3
    assert train_tiny.hub.get_scalar("train/loss").data[0].size == 5
