"""Families from outside of the package."""

import copy

import pytest
from conftest import build, dino_config
from mmdet.models.detectors import DINO

from kd_detr_mmdet import families
from kd_detr_mmdet.families import DINOFamily, Family, build_family, register_family
from kd_detr_mmdet.utils.errors import ConfigError


class OwnDINO(DINO):
    def forward_decoder(self, *args, **kwargs):
        return super().forward_decoder(*args, **kwargs)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", copy.copy(families.FAMILIES))


def test_a_detector_that_decodes_its_own_way_gets_its_own_family(known):
    cfg = dino_config()
    plain = build(cfg)
    own = build({**cfg, "type": OwnDINO})
    with pytest.raises(ConfigError, match="OwnDINO cannot be distilled.*docs/guide.md"):
        build_family(own)

    @register_family
    class OwnFamily(DINOFamily):
        detector_type = OwnDINO

    assert type(build_family(own, "mean")) is OwnFamily
    assert type(build_family(plain)) is DINOFamily


def test_the_last_registered_is_asked_first(known):
    class First(DINOFamily):
        pass

    class Second(DINOFamily):
        pass

    assert register_family(First) is First and register_family(Second) is Second
    assert type(build_family(build(dino_config()))) is Second


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (DINO, "subclass of kd_detr_mmdet.families.Family"),
        ("DINOFamily", "got 'DINOFamily'"),
        (type("Nameless", (Family,), {}), "Nameless names no detector_type"),
    ],
)
def test_what_is_no_family_is_refused(known, wrong, told):
    with pytest.raises(TypeError, match=told):
        register_family(wrong)
