"""The file to deploy: alone it makes the detector, and it is refused where it would mislead."""

import pytest
import torch
from conftest import FAMILY_CONFIGS, build, dino_config, noisy, random_checkpoint, two_stage_config
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config

from kd_detr_mmdet.datasets import SHAPE_CLASSES
from kd_detr_mmdet.detectors.teacher import load_strictly
from kd_detr_mmdet.utils.deploy import class_names, inference_config, save_deployable
from kd_detr_mmdet.utils.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    """Makes a detector with the weights of a checkpoint that knows classes."""

    def make(cfg, classes=None, seed=1):
        detector = build(cfg).eval()
        path = random_checkpoint(tmp_path / "checkpoint.pth", cfg, seed, classes)
        load_strictly(detector, path, what="checkpoint")
        return detector

    return make


@pytest.fixture
def config(write_config):
    """The inference config of a tiny student."""
    return inference_config(Config.fromfile(write_config()))


def test_the_config_is_the_students_and_holds_no_training(config):
    assert set(config) == {
        *("default_scope", "model", "test_dataloader", "test_cfg", "test_evaluator")
    }
    assert config.model.type == "DINO"


def test_the_file_alone_makes_a_detector(config, load, tmp_path, shapes):
    trained = load(dino_config())
    file = str(save_deployable(trained, config, SHAPE_CLASSES, tmp_path / "student"))

    cfg = Config.fromstring(torch.load(file, weights_only=True)["meta"]["cfg"], ".py")
    detector = init_detector(cfg, file, device="cpu")
    found = inference_detector(detector, str(shapes / "images/val/000001.png"))

    assert detector.dataset_meta["classes"] == SHAPE_CLASSES
    trained.cfg = detector.cfg
    again = inference_detector(trained, found.img_path)
    for name in ("bboxes", "scores", "labels"):
        assert torch.equal(found.pred_instances[name], again.pred_instances[name])


def test_the_name_tells_the_content(config, load, tmp_path):
    def save(seed, folder):
        detector = load(dino_config(), seed=seed)
        return save_deployable(detector, config, SHAPE_CLASSES, tmp_path / folder / "student")

    first, second, other = save(1, "a"), save(1, "b"), save(2, "c")
    assert first.name == second.name != other.name
    assert first.read_bytes() == second.read_bytes()


def test_ddqs_second_names_of_its_weights_are_left_out(config, tmp_path):
    trained = noisy(FAMILY_CONFIGS["ddq"])
    trained.decoder.aux_reg_branches = trained.bbox_head.aux_reg_branches  # as training does
    checkpoint = str(tmp_path / "checkpoint.pth")
    torch.save(dict(state_dict=trained.state_dict()), checkpoint)
    detector = build(FAMILY_CONFIGS["ddq"])
    load_strictly(detector, checkpoint, what="checkpoint")
    path = save_deployable(detector, config, SHAPE_CLASSES, tmp_path / "ddq")
    saved = torch.load(path, weights_only=True)["state_dict"]
    build(FAMILY_CONFIGS["ddq"]).load_state_dict(saved, strict=True)


@pytest.mark.parametrize(
    "model", [dino_config(), two_stage_config(), two_stage_config("cascade_rcnn")]
)
def test_class_names(config, load, model):
    assert class_names(load(model, SHAPE_CLASSES), config) == SHAPE_CLASSES
    assert class_names(load(model), config) == SHAPE_CLASSES  # the config's
    with pytest.raises(ConfigError, match="was trained on classes .ring, .* has .disc, "):
        class_names(load(model, SHAPE_CLASSES[::-1]), config)
    config.test_dataloader.dataset.metainfo.classes = ("a", "b")
    with pytest.raises(ConfigError, match="has 4 classes, but there are names for 2: .a, b"):
        class_names(load(model), config)


def test_a_config_without_a_test_pipeline(config):
    config.test_dataloader = None
    with pytest.raises(ConfigError, match="no test_dataloader"):
        inference_config(config)
