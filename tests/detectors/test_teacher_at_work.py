"""What makes the teacher cheaper: its answers stay right, and its weights are left alone."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILY_CONFIGS, TEACHER, build, dino_config, random_checkpoint
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage

from kd_detr_mmdet import DistillPoints
from kd_detr_mmdet.detectors.teacher_at_work import shrink
from kd_detr_mmdet.hooks.report_hook import summary
from kd_detr_mmdet.utils import ConfigError
from kd_detr_mmdet.utils.benchmark import Benchmark

HALF = ("bfloat16", "float16")


@pytest.fixture
def taught(kd_config):
    """Makes a KDDETR whose teacher has options."""

    def make(interval=1, points=None, **options):
        cfg = kd_config(interval=interval)
        cfg.teacher.update(options)
        cfg.points.update(points or {})
        return build(cfg).train()

    return make


@pytest.fixture
def hub(monkeypatch):
    """The message hub of a run of its own."""
    monkeypatch.setattr(MessageHub, "_instance_dict", {})
    return MessageHub.get_instance("test_teacher_at_work")


def targets_of(model, data):
    """What reaches the loss: the teacher's answers by set."""
    compare, heard = model.distill_loss.forward, {}

    def forward(student, teacher, name, valid=None):
        heard[name] = teacher
        return compare(student, teacher, name, valid)

    model.distill_loss.forward = forward
    torch.manual_seed(0)
    try:
        losses = model(**copy.deepcopy(data), mode="loss")
    finally:
        del model.distill_loss.forward
    return heard, losses


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_targets_of_a_half_precision_teacher(name, batch, tmp_path):
    cfg = FAMILY_CONFIGS[name]
    checkpoint = random_checkpoint(tmp_path / "teacher.pth", cfg)
    points = dict(num_general=0 if name == "detr" else 10)
    heard, terms = {}, {}
    for dtype in (None, *HALF):
        teacher = dict(config=cfg, checkpoint=checkpoint, dtype=dtype)
        kd = build(dict(type="KDDETR", student=cfg, teacher=teacher, points=points)).train()
        if dtype is None:
            data = batch(kd, ((3, 128, 160), (3, 96, 160)))
        layers = []
        kd.teacher.backbone.layer4[0].conv1.register_forward_hook(
            lambda _, args, out, layers=layers: layers.append(out.dtype)
        )
        heard[dtype], terms[dtype] = targets_of(kd, data)
        assert layers == [getattr(torch, dtype or "float32")]
        assert {p.dtype for p in kd.teacher.parameters()} == {torch.float32}
    # General points are the same for all; DETR has its own alone, and they are learnt.
    compared = "specific" if name == "detr" else "general"
    exact = heard[None][compared]
    for dtype, most in zip(HALF, (0.02, 0.003)):
        answer = heard[dtype][compared]
        assert answer.cls_scores.dtype == answer.boxes.dtype == torch.float32
        assert 0 < (answer.cls_scores - exact.cls_scores).abs().mean() < most
        assert (answer.boxes - exact.boxes).abs().mean() < 1e-3
        assert all(terms[dtype][term].isfinite() for term in terms[dtype] if "kd_loss" in term)


@pytest.mark.parametrize("dtype", HALF)
def test_boxes_are_not_rounded_to_half_precision(taught, batch, dtype):
    """A box of which every digit fits into the half type would be a coarse one."""
    kd = taught(dtype=dtype)
    data = batch(kd, ((3, 128, 160), (3, 96, 160)))
    heard, _ = targets_of(kd, data)
    record = kd.teacher_look(data["inputs"], data["data_samples"])
    with kd.teacher_at_work.answering():
        queries = kd.teacher_family.queries(record)
    boxes = [heard["specific"].boxes, heard["general"].boxes, queries.boxes]
    for found in boxes:
        found = found[(found > 0) & (found < 1)]  # proposals in the padding are 1 in any type
        assert len(found) > 20
        assert (found.to(getattr(torch, dtype)).float() != found).float().mean() > 0.9


def test_the_student_stays_in_its_own_precision(taught, batch):
    kd, plain = taught(dtype="bfloat16"), build(dino_config()).train()
    data = batch(plain)
    torch.manual_seed(0)
    expected = plain(**copy.deepcopy(data), mode="loss")
    _, losses = targets_of(kd, data)
    for term, value in expected.items():
        assert torch.equal(losses[term], value), term


def test_float32_within_amp(taught, batch):
    """The teacher follows the student's autocast unless told not to; its boxes are exact anyway."""
    kd, exact = taught(), taught(dtype="float32")
    data = batch(kd)
    expected, _ = targets_of(kd, data)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = targets_of(taught(), data)
        full, _ = targets_of(exact, data)
    assert torch.equal(full["general"].cls_scores, expected["general"].cls_scores)
    assert not torch.equal(half["general"].cls_scores, expected["general"].cls_scores)
    assert {half["general"].boxes.dtype, half["general"].cls_scores.dtype} == {torch.float32}


def test_a_device_without_half_precision(taught, batch, monkeypatch):
    kd = taught(dtype="float16")

    def forward(*args):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(kd.teacher, "extract_feat", forward)
    with pytest.raises(ConfigError, match=r"teacher.dtype='float16': this cpu lacks .*'bfloat16'"):
        kd(**batch(kd), mode="loss")


# --- the same values, laid out or computed otherwise ----------------------------------------------


def counting_backend(calls):
    """A backend of torch.compile that needs no compiler."""

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    return backend


def test_channels_last_and_compiled_are_the_same_teacher(taught, batch):
    calls = []
    plain = taught()
    data = batch(plain)
    expected, _ = targets_of(plain, data)
    kd = taught(channels_last=True, compile=dict(backend=counting_backend(calls)))
    assert kd.teacher.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    kd.teacher.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    twin = copy.deepcopy(kd)
    assert summary(kd) and not calls  # nothing is compiled before the first look
    heard, _ = targets_of(kd, data)
    assert calls
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    for name, answer in expected.items():
        torch.testing.assert_close(heard[name].cls_scores, answer.cls_scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(heard[name].boxes, answer.boxes, rtol=0, atol=1e-4)
    # It is the same module to all that saves, loads, copies and moves it.
    assert list(kd.teacher.state_dict()) == list(plain.teacher.state_dict())
    assert list(kd.state_dict()) == list(plain.state_dict())
    assert twin.teacher is kd.teacher and twin.teacher_at_work.teacher is kd.teacher
    assert ExponentialMovingAverage(kd).module.teacher_at_work.teacher is kd.teacher
    weight = kd.to(torch.float64).float().teacher.backbone.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_failing_compiler_is_told(taught, batch):
    def backend(graph, inputs):
        raise OSError("no C++ compiler found")

    kd = taught(compile=dict(backend=backend))
    with pytest.raises(ConfigError, match="teacher.compile: .*needs a C") as error:
        kd(**batch(kd), mode="loss")
    assert "no C++ compiler found" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_for_real(taught, batch):
    plain, kd = taught(), taught(compile=True)
    for shapes in (((3, 64, 96), (3, 48, 80)), ((3, 96, 64), (3, 80, 48))):
        data = batch(plain, shapes)
        expected, heard = targets_of(plain, data)[0], targets_of(kd, data)[0]
        for name, answer in expected.items():
            torch.testing.assert_close(heard[name].boxes, answer.boxes, rtol=0, atol=1e-4)


# --- smaller images -------------------------------------------------------------------------------


def sample_of(height, width, padded):
    return DetDataSample(
        metainfo=dict(img_shape=(height, width), batch_input_shape=padded, pad_shape=padded)
    )


@pytest.mark.parametrize("scale", [0.5, 0.37, 0.75])
def test_relative_boxes_are_the_same_place_in_smaller_images(scale):
    """A patch that fills a box of the valid image fills the same box of the smaller one."""
    sizes, box = ((96, 128), (80, 100), (47, 61)), (0.5, 0.25, 1.0, 0.75)  # x1, y1, x2, y2
    images = torch.full((3, 1, 96, 128), -5.0)
    samples = [sample_of(*size, (96, 128)) for size in sizes]
    for image, (height, width) in zip(images, sizes):
        image[:, :height, :width] = 0
        rows, columns = (
            slice(round(box[first] * side), round(box[first + 2] * side))
            for first, side in ((1, height), (0, width))
        )
        image[:, rows, columns] = 1
    small, shrunk = shrink(images, samples, scale, padding=-5.0)
    assert small.shape[-2:] == tuple(-int(-side * scale // 1) for side in (96, 128))
    for image, sample, (height, width) in zip(small, shrunk, sizes):
        assert sample.img_shape == (round(height * scale), round(width * scale))
        assert sample.batch_input_shape == sample.pad_shape == small.shape[-2:]
        rows, columns = sample.img_shape
        valid = image[0, :rows, :columns]
        assert valid.min() >= -1e-5  # no padding is mixed in
        assert (image[0, rows:] == -5).all() and (image[0, :, columns:] == -5).all()
        inside = (valid > 0.5).float()
        x, y = torch.arange(columns) + 0.5, torch.arange(rows) + 0.5
        area = inside.sum()
        found = (
            (inside.sum(0) * x).sum() / area / columns,
            (inside.sum(1) * y).sum() / area / rows,
        )
        assert found == pytest.approx((0.75, 0.5), abs=0.6 / min(rows, columns))
        assert area / inside.numel() == pytest.approx(0.25, abs=1.2 / min(rows, columns))


def test_a_teacher_of_smaller_images_answers_as_on_those_images(taught, batch):
    """It is shown what a pipeline of that size would show it, and where padding ends."""
    kd = taught(scale=0.5)
    data = batch(kd, ((3, 128, 160), (3, 96, 128)), training=False)
    record = kd.teacher_look(data["inputs"], data["data_samples"])
    points = DistillPoints(torch.rand(2, 9, 4, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        found = kd.teacher_family.answer(record, points)
        for index, (height, width) in enumerate(((128, 160), (96, 128))):
            size = (height // 2, width // 2)
            image = data["inputs"][index : index + 1, :, :height, :width]
            image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
            padded = F.pad(image, (0, 80 - size[1], 0, 64 - size[0]))
            alone = kd.teacher_family.look(padded, [sample_of(*size, (64, 80))])
            expected = kd.teacher_family.answer(
                alone, DistillPoints(points.boxes[index : index + 1])
            )
            for ours, theirs in zip(found[:2], expected[:2]):
                torch.testing.assert_close(ours[:, index], theirs[:, 0], rtol=0, atol=1e-4)
    assert data["data_samples"][0].batch_input_shape == (128, 160)  # the student's are as before


def test_the_student_still_sees_all_of_the_image(taught, batch):
    kd = taught(scale=0.5)
    heights = {}
    for who, model in (("student", kd.student), ("teacher", kd.teacher)):
        model.backbone.register_forward_pre_hook(
            lambda _, args, who=who: heights.update({who: args[0].shape[-2]})
        )
    kd(**batch(kd, ((3, 128, 160), (3, 96, 160))), mode="loss")
    assert heights == dict(student=128, teacher=64)


def test_padding_is_the_teachers(kd_config, batch):
    cfg = kd_config()
    cfg.teacher.update(scale=0.5)
    assert build(cfg).teacher_at_work.padding == 0
    cfg.teacher.config = dino_config(**TEACHER)
    cfg.teacher.config.data_preprocessor.update(pad_value=7)
    assert build(cfg).teacher_at_work.padding == 7


# --- every k-th iteration -------------------------------------------------------------------------


def test_the_teacher_runs_in_every_kth_iteration(taught, batch, hub):
    kd, always = taught(interval=3), taught()
    data, looks = batch(kd), []
    kd.teacher.backbone.register_forward_hook(lambda *_: looks.append(hub.get_info("iter")))
    names = set()
    for iteration in [*range(7), 8]:  # resumed after 6, it goes on as if uninterrupted
        hub.update_info("iter", iteration)
        torch.manual_seed(iteration)
        losses = kd(**copy.deepcopy(data), mode="loss")
        names.add(tuple(sorted(losses)))
        distilled = iteration in (2, 5, 8)
        for term, value in losses.items():
            if "kd_loss" in term:
                assert (value != 0) == distilled, term
    assert looks == [2, 5, 8]
    assert len(names) == 1  # the log and other ranks meet the same terms in every iteration
    torch.manual_seed(8)
    for term, value in always(**copy.deepcopy(data), mode="loss").items():
        torch.testing.assert_close(losses[term], value)


def test_the_benchmark_averages_over_the_interval(kd_config):
    cfg = Config(
        dict(
            model=kd_config(interval=2),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-4)),
        )
    )
    benchmark = Benchmark(cfg, torch.device("cpu"))
    looks, steps = [], []
    benchmark.model.teacher.backbone.register_forward_hook(lambda *_: looks.append(1))
    benchmark.model.student.backbone.register_forward_hook(lambda *_: steps.append(1))
    benchmark.round(next(benchmark.generated((96, 64), 2)))
    assert (len(looks), len(steps)) == (2, 2)  # alone, and in one of two steps


# --- what is told ---------------------------------------------------------------------------------


def test_the_summary_tells(taught):
    told = summary(taught(interval=4, dtype="bfloat16", channels_last=True, scale=0.5))
    assert "every 4 iterations, bfloat16, channels last, images scaled by 0.5" in told
    assert "every" not in summary(taught())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(dtype="half"), "teacher.dtype must be one of 'float32', 'bfloat16', 'float16'"),
        (dict(channels_last=1), "teacher.channels_last must be True or False, got 1"),
        (dict(compile="yes"), "teacher.compile must be True, False or a dict"),
        (dict(scale=0), "teacher.scale must be a number above 0 and at most 1, got 0"),
        (dict(scale=1.5), "got 1.5"),
        (dict(scale=True), "got True"),
        (dict(scale=0.5, points=dict(proposals=True)), "leave teacher.scale out"),
        (dict(interval=0), "interval must be a whole number of at least 1, got 0"),
        (dict(interval=2.0), "got 2.0"),
        (dict(interval=True), "got True"),
    ],
)
def test_bad_options(taught, options, told):
    with pytest.raises(ConfigError) as error:
        taught(**options)
    assert told in str(error.value)


def test_defaults_change_nothing(kd_config, batch):
    kd = MODELS.build(kd_config())
    assert (kd.interval, kd.teacher_at_work.scale, str(kd.teacher_at_work)) == (1, 1.0, "")
    images = batch(kd)["inputs"]
    assert kd.teacher_at_work.images(images, [])[0] is images
