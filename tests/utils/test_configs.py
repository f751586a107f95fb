"""model_config: from whatever names a detector to the config of its model."""

import copy
from pathlib import Path

import pytest
from conftest import dino_config
from mmengine.config import Config, ConfigDict

from kd_detr_mmdet.utils.configs import is_kd_model, model_config
from kd_detr_mmdet.utils.errors import ConfigError

STOCK = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"


@pytest.fixture
def model():
    return dict(type="DINO", num_queries=7, backbone=dict(type="ResNet", depth=18))


@pytest.fixture
def file(tmp_path, model):
    path = tmp_path / "detector.py"
    path.write_text(f"model = {model!r}\nmax_epochs = 3\n")
    return path


def refused(source, what="student"):
    """What the user is told: one line that starts with the option's name."""
    with pytest.raises(ConfigError) as error:
        model_config(source, what)
    message = str(error.value)
    assert message.startswith(f"{what}: ")
    assert "\n" not in message
    return message


# What is taken


@pytest.mark.parametrize(
    "form",
    [
        lambda model: model,
        ConfigDict,
        lambda model: dict(model=model, max_epochs=3),
        lambda model: ConfigDict(model=model),
        lambda model: Config(dict(model=model, max_epochs=3)),
    ],
)
def test_dicts(form, model):
    config = model_config(form(model))
    assert config == model
    assert isinstance(config, ConfigDict)
    assert isinstance(config.backbone, ConfigDict)


@pytest.mark.parametrize("form", [str, Path])
def test_path_of_a_file(form, file, model):
    assert model_config(form(file)) == model


def test_name_of_a_packages_config():
    config = model_config(STOCK)
    assert config.type == "DINO"
    assert config.num_queries == 900
    assert config.backbone.depth == 50


def test_file_may_inherit_from_a_package(tmp_path):
    path = tmp_path / "detector.py"
    path.write_text(f"_base_ = {STOCK!r}\nmodel = dict(num_queries=5)\n")
    assert model_config(str(path)).num_queries == 5
    assert model_config(str(path)).backbone.depth == 50


def test_result_is_a_copy(model):
    for source in (model, ConfigDict(model), Config(dict(model=model))):
        before = copy.deepcopy(source)
        config = model_config(source)
        config.backbone.depth = 101
        config.pop("num_queries")
        assert source == before if not isinstance(source, Config) else source.model == before.model


# Distillations


def kd(student, **more):
    teacher = dict(config="never_read.py", checkpoint="never_read.pth")
    return dict(type="KDDETR", student=student, teacher=teacher, **more)


def test_distillation_gives_its_student(model):
    for source in (kd(model), dict(model=kd(model)), Config(dict(model=kd(model)))):
        config = model_config(source)
        assert config.type == "DINO"
        assert config.num_queries == 7
        assert "teacher" not in config


def test_distillation_of_a_file_gives_that_files_student(file, tmp_path):
    path = tmp_path / "kd.py"
    path.write_text(f"model = {kd(str(file))!r}\n")
    assert model_config(path).num_queries == 7


def test_student_of_a_distillation_gets_its_data_preprocessor(model):
    preprocessor = dict(type="DetDataPreprocessor", mean=[1, 2, 3])
    assert model_config(kd(model, data_preprocessor=preprocessor)).data_preprocessor == preprocessor
    own = {**model, "data_preprocessor": dict(type="DetDataPreprocessor", mean=[4, 5, 6])}
    kept = model_config(kd(own, data_preprocessor=preprocessor)).data_preprocessor
    assert kept == own["data_preprocessor"]


def test_is_kd_model(model):
    assert is_kd_model(kd(model))
    assert not is_kd_model(model)
    assert not is_kd_model({})


def test_full_detector_config_survives():
    cfg = dino_config()
    assert model_config(cfg) == cfg


# Mistakes


@pytest.mark.parametrize("source", [None, 3, ["detector.py"], True])
def test_wrong_type(source):
    message = refused(source)
    assert "expected a model dict" in message
    assert f"got {type(source).__name__}" in message


def test_missing_file():
    message = refused("configs/nowhere.py")
    assert "no config file 'configs/nowhere.py'" in message
    assert "check its path" in message


def test_missing_file_whose_name_has_no_ending():
    """Users of MMDetection 2 and mim name configs without '.py'."""
    assert "a config's name ends in .py" in refused("dino-4scale_r50_8xb2-12e_coco")


def test_missing_config_of_a_package():
    message = refused("mmdet::dino/nowhere.py")
    assert "mmdet::dino/nowhere.py" in message


def test_package_that_is_not_installed():
    assert "no_such_package::x.py" in refused("no_such_package::x.py")


@pytest.mark.parametrize("source", [{}, dict(model=None), dict(model=dict(depth=3)), Config()])
def test_no_model(source):
    assert "holds no 'model' with a 'type'" in refused(source)


def test_file_without_a_model(tmp_path):
    path = tmp_path / "schedule.py"
    path.write_text("max_epochs = 3\n")
    assert "holds no 'model' with a 'type'" in refused(path)


@pytest.mark.parametrize(
    "text, told",
    [
        ("model = dict(type='DINO'\n", "SyntaxError"),
        ("model = dict(type='DINO', depth=1 / 0)\n", "ZeroDivisionError"),
        ("_base_ = './nowhere.py'\n", "nowhere.py"),
    ],
)
def test_file_that_does_not_run(tmp_path, text, told):
    path = tmp_path / "broken.py"
    path.write_text(text)
    message = refused(path)
    assert told in message
    assert "broken.py" in message or "nowhere.py" in message


def test_file_of_another_kind(tmp_path):
    path = tmp_path / "detector.txt"
    path.write_text("DINO")
    assert "cannot be read" in refused(path)


def test_folder(tmp_path):
    assert str(tmp_path) in refused(tmp_path)


def test_distillation_without_a_student():
    message = refused(dict(type="KDDETR", teacher=dict(config="x.py", checkpoint=None)))
    assert "student" in message


def test_a_config_may_keep_the_data_preprocessor_beside_the_model():
    """MMEngine's Runner takes it from there, so a teacher's must too."""
    preprocessor = dict(type="DetDataPreprocessor", mean=[1.0, 2.0, 3.0])
    config = Config(dict(model=dict(type="DINO"), data_preprocessor=preprocessor))
    assert model_config(config).data_preprocessor == preprocessor
    config.model.data_preprocessor = dict(type="Own")
    assert model_config(config).data_preprocessor == dict(type="Own")
