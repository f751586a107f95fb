"""tools/show_points.py: what it notes of a step, and the picture."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from conftest import TEACHER, build, dino_config, two_stage_config
from mmengine.config import Config

from kd_detr_mmdet.datasets import generate_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("show_points", ROOT / "tools" / "show_points.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("student", ["dino", "faster_rcnn"])
def test_what_is_asked_and_said(tool, kd_config, batch, student):
    options = {}
    if student == "faster_rcnn":
        sampler = dict(type="CoordinateSampler", max_points=9, num_general=10, specific=True)
        options = dict(student=two_stage_config(), points=sampler)
    kd = build(kd_config(**options)).train()
    sets = tool.one_step(kd, batch(kd, shapes=((3, 64, 96),)))
    sizes = dict(specific=16, general=10, roi=9)
    assert list(sets) == list(sizes)[: len(sets)] and len(sets) == (2 if student == "dino" else 3)
    for name, found in sets.items():
        assert found["weight"].shape == (sizes[name],)
        assert found["weight"].min() > 0 and found["weight"].max() < 1
        for kind in ("points", "student", "teacher"):
            assert found[kind].shape == (sizes[name], 4)
    # The general points are those of this step, and nothing is left on the model.
    drawn = kd.point_generator.general(1, kd._last_step).boxes[0]
    assert torch.equal(sets["general"]["points"], drawn)
    assert "answer" not in vars(kd.student_family) and "forward" not in vars(kd.distill_loss)


@pytest.fixture
def config(tmp_path, kd_config):
    shapes = generate_shapes(tmp_path / "shapes", {"train": 2, "val": 1}, (64, 48))
    cfg = Config.fromfile(ROOT / "configs/demo/dino_alone.py")
    cfg.train_dataloader.dataset.data_root = str(shapes)
    cfg.model = kd_config()
    return cfg


def run(tool, cfg, tmp_path, monkeypatch, *arguments):
    cfg.dump(tmp_path / "kd.py")
    monkeypatch.setattr(sys, "argv", ["show_points.py", str(tmp_path / "kd.py"), *arguments])
    tool.main()


def test_the_picture(tool, config, tmp_path, monkeypatch):
    out = tmp_path / "new" / "points.png"
    run(tool, config, tmp_path, monkeypatch, "--out", str(out), "--index", "1")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_another_format(tool, config, tmp_path, monkeypatch):
    with pytest.raises(tool.ConfigError, match=r"must end in .png, .svg or .pdf, got 'x.bmp'"):
        run(tool, config, tmp_path, monkeypatch, "--out", "x.bmp")


def test_proposals_are_no_boxes_to_draw(tool, kd_config, batch):
    points = dict(num_general=10, proposals=True)
    kd = build(kd_config(student=dino_config(**TEACHER), points=points)).train()
    assert list(tool.one_step(kd, batch(kd, shapes=((3, 64, 96),)))) == ["specific", "general"]


@pytest.mark.parametrize("student", ["dino", "faster_rcnn"])
def test_the_picture_of_a_file(tool, config, tmp_path, kd_config, monkeypatch, student):
    """No annotations, and no training data: a picture for a paper."""
    if student == "faster_rcnn":
        sampler = dict(type="CoordinateSampler", max_points=9)
        config.model = kd_config(student=two_stage_config(), points=sampler)
    (image,) = (tmp_path / "shapes" / "images" / "val").iterdir()
    config.train_dataloader.dataset.data_root = "nowhere"
    seen = []
    monkeypatch.setattr(tool, "draw", lambda path, image, sets: seen.append((image, sets)))
    run(tool, config, tmp_path, monkeypatch, str(image))
    ((drawn, sets),) = seen
    assert sets and drawn.shape == (3, 96, 128)  # as the test pipeline scales it
    pixels = tool.mmcv.imresize(tool.mmcv.imread(image, channel_order="rgb"), (128, 96))
    assert torch.equal(drawn, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("content, told", [(None, "cannot be read"), (b"text", "is no image")])
def test_a_file_that_is_no_image(tool, config, tmp_path, monkeypatch, content, told):
    path = tmp_path / "image.png"
    if content:
        path.write_bytes(content)
    with pytest.raises(tool.ConfigError, match=told):
        run(tool, config, tmp_path, monkeypatch, str(path))


@pytest.mark.parametrize(
    "points, index, told",
    [
        (dict(type="QueryPairing", strategy="inconsistent"), "0", "nothing to draw"),
        (dict(num_general=0, specific=False, proposals=True), "0", "nothing to draw"),
        (dict(num_general=5), "2", "between 0 and 1, got 2"),
    ],
)
def test_what_cannot_be_drawn(tool, config, tmp_path, monkeypatch, points, index, told):
    config.model.points = points
    with pytest.raises(tool.ConfigError, match=told):
        run(tool, config, tmp_path, monkeypatch, "--index", index)
