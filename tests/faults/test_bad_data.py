"""Bad images and annotations: trained through, or refused with the file named."""

import copy
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import FAMILY_CONFIGS, TEACHER, dino_config, two_stage_config
from mmengine.structures import InstanceData
from PIL import Image

SIZE = (64, 48)


@pytest.fixture
def data(shapes, tmp_path, write_config):
    """A copy of the generated data set that a test may spoil, and its config."""
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    file = root / "annotations/instances_train.json"

    class Data:
        images = root / "images/train"
        annotations = json.loads(file.read_text())

        def of(self, number):
            return [a for a in self.annotations["annotations"] if a["image_id"] == number]

        def rename(self, number, name):
            self.annotations["images"][number - 1]["file_name"] = name
            return self.images / name

        def config(self, **options):
            file.write_text(json.dumps(self.annotations))
            return write_config(**{"train_dataloader.dataset.data_root": str(root), **options})

    return Data()


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def test_odd_files_and_boxes_are_trained_through(data, run, tmp_path):
    colour = Image.fromarray(picture())
    colour.convert("L").save(data.rename(1, "grey.png"))
    colour.convert("CMYK").save(data.rename(2, "cmyk.jpg"))
    colour.convert("P").save(data.rename(3, "palette.png"))
    colour.convert("RGBA").save(data.rename(4, "alpha.png"))
    cv2.imwrite(str(data.rename(5, "grey16.png")), picture()[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(data.rename(6, "colour16.png")), picture().astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6  # by 90 degrees: 48 x 64 pixels, not the 64 x 48 of the annotation file
    colour.save(data.rename(7, "turned.jpg"), exif=turned)
    colour.resize((100, 30)).save(data.rename(8, "other_size.png"))
    for number, box in {
        9: [200, 200, 9, 9],  # outside the image
        10: [-10, -10, 90, 90],  # larger than the image
        11: [5, 5, 0, 7],
        12: [20, 20, -5, -5],
        13: [30, 30, 1, 1],
    }.items():
        for annotation in data.of(number):
            annotation["bbox"] = box
    for annotation in data.of(14):
        annotation["iscrowd"] = 1
    keep = [a for a in data.annotations["annotations"] if a["image_id"] not in (15, 16)]
    data.annotations["annotations"] = keep
    code, line, out = run("train.py", data.config())
    assert code == 0, line
    losses = [float(value) for value in re.findall(r" loss: (\S+)", out)]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert (tmp_path / "work/epoch_1.pth").exists()


def test_boxes_nowhere(data, run):
    data.annotations["annotations"] = []
    code, line, _ = run("train.py", data.config())
    assert code == 2 and "instances_train.json' has no box of the classes" in line


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(bbox=[1, 2, float("nan"), 4]), "has no box of four numbers: [1, 2, nan, 4]"),
        (dict(bbox=[1, 2, 3]), "has no box of four numbers: [1, 2, 3]"),
        (dict(bbox=None), "lacks 'bbox'"),
        (dict(area=None), "lacks 'area'"),
    ],
)
def test_annotations_that_would_end_in_a_nan_or_a_traceback(data, run, change, told):
    annotation = data.of(3)[0]
    annotation.update(change)
    for name in [name for name, value in change.items() if value is None]:
        del annotation[name]
    code, line, _ = run("train.py", data.config())
    assert code == 2 and told in line
    assert "instances_train.json" in line and "image '000003.png'" in line


def spoil(data):
    """Images that exist and cannot be read; the names."""
    photo = cv2.imencode(".jpg", picture())[1].tobytes()
    data.rename(3, "cut.jpg").write_bytes(photo[: len(photo) // 2])
    data.rename(5, "text.jpg").write_bytes(b"this is no image" * 9)
    return "cut.jpg", "text.jpg"


def test_an_image_that_is_cut_off_is_named_where_it_is_used(data, run):
    spoil(data)
    code, line, _ = run("train.py", data.config())
    assert code == 2 and re.search("failed to load image: .*(cut|text).jpg", line)


@pytest.mark.parametrize("workers", [0, 1])
def test_by_option_another_image_steps_in(data, run, workers):
    names = spoil(data)
    config = data.config(
        **{
            "train_dataloader.dataset.pipeline.0.type": "LoadImageOrAnother",
            "train_dataloader.num_workers": workers,
        }
    )
    code, line, out = run("train.py", config)
    assert code == 0, line
    assert "[2/2]" in out
    for name in names if workers == 0 else ():  # a worker's output is not captured
        assert re.search(f"another image steps in for .*{name}", out)


def test_every_image_is_read_before_training(data, run):
    config = data.config()
    assert run("check_data.py", config)[0] == 0
    names = spoil(data)
    data.annotations["images"][8].update(width=48, height=64)
    code, _, out = run("check_data.py", data.config())
    assert code == 1
    lines = out.splitlines()
    assert lines[-1] == "24 images read, 3 with problems"
    for name in names:
        assert sum(f"{name}: is no image, or cut off" in line for line in lines) == 1
    assert "000009.png: is 64 x 48 pixels, but the annotation file says 48 x 64" in out
    # What is told at once when training starts ends this check too.
    (data.images / "000010.png").write_bytes(b"")
    code, line, _ = run("check_data.py", data.config())
    assert code == 2 and "000010.png' is an empty file" in line


# Every family as a student


STUDENTS = dict(FAMILY_CONFIGS, faster_rcnn=two_stage_config())


def boxes(number, size=None):
    """Boxes in an image of 96 x 64 pixels, of ``size`` pixels or of any size."""
    draw = torch.Generator().manual_seed(number)
    corner = torch.rand(number, 2, generator=draw) * torch.tensor([80.0, 50])
    extent = 2 + 10 * torch.rand(number, 2, generator=draw)
    extent = torch.full_like(extent, size) if size else extent
    labels = torch.randint(4, (number,), generator=draw)
    return InstanceData(bboxes=torch.cat([corner, corner + extent], 1), labels=labels)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_distilled_step_of_every_family(name, pair, batch):
    student = STUDENTS[name]
    teacher = dino_config(**TEACHER) if name == "faster_rcnn" else student
    # mmdet's DDQ-DETR takes as many boxes as it has dense queries, 1.5 times its num_queries.
    many = 18 if name == "ddq" else 2000
    kd = pair(student, teacher).train()
    images = batch(kd, shapes=((3, 64, 96), (3, 64, 96)))
    for annotated, ignored in (
        ([boxes(0), boxes(0)], boxes(0)),
        ([boxes(0), boxes(0)], boxes(3)),  # crowd only
        ([boxes(5, size=1.0), boxes(1, size=1.0)], boxes(0)),
        ([boxes(many), boxes(0)], boxes(0)),
    ):
        data = copy.deepcopy(images)
        for sample, instances in zip(data["data_samples"], annotated):
            sample.gt_instances, sample.ignored_instances = instances, ignored
        loss, terms = kd.parse_losses(kd(**data, mode="loss"))
        kd.zero_grad()
        loss.backward()
        assert sum("kd_loss" in term for term in terms) >= 3
        assert all(torch.as_tensor(value).isfinite().all() for value in terms.values())
        gradients = [p.grad for p in kd.parameters() if p.grad is not None]
        assert len(gradients) > 50 and all(g.isfinite().all() for g in gradients)
