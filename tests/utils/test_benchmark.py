"""Cost of a distilled step: what a step does is counted, what is made of timings is by hand."""

import contextlib
import itertools

import pytest
import torch
from conftest import TEACHER, build, dab_config, dino_config, two_stage_config
from mmengine.config import Config
from torch.utils._python_dispatch import TorchDispatchMode

from kd_detr_mmdet.losses import rebalanced_distill_loss
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.utils import ConfigError
from kd_detr_mmdet.utils import benchmark as bench
from kd_detr_mmdet.utils.benchmark import Benchmark, Round, Stopwatch, untrained
from kd_detr_mmdet.utils.inference_cost import random_image

CPU = torch.device("cpu")
OPTIMIZER = dict(optimizer=dict(type="AdamW", lr=1e-4), clip_grad=dict(max_norm=0.1))


@pytest.fixture
def config(kd_config):
    """Makes a whole config of a tiny distillation; keyword arguments override the model's."""

    def make(optim_wrapper=OPTIMIZER, **overrides):
        return Config(dict(model=kd_config(**overrides), optim_wrapper=optim_wrapper))

    return make


class Calls:
    """How often modules' forward methods are called."""

    def __init__(self, **modules):
        self.count = dict.fromkeys(modules, 0)
        for name, module in modules.items():
            module.register_forward_hook(lambda *_, name=name: self.add(name))

    def add(self, name):
        self.count[name] += 1


@pytest.mark.parametrize(
    ("points", "student_calls", "teacher_calls"),
    [
        # The student: its own queries and each set. The teacher: its own, which are the specific
        # points' answers as well, and the general points; where nothing is made of the former, not
        # even these.
        (dict(num_general=10), 3, 2),
        (dict(num_general=0), 2, 1),
        (dict(num_general=10, specific=False), 2, 1),
    ],
)
def test_decoder_and_backbone_calls_of_a_step(
    kd_config, batch, points, student_calls, teacher_calls
):
    model = build(kd_config(points=points)).train()
    calls = Calls(
        student_decoder=model.student.decoder,
        teacher_decoder=model.teacher.decoder,
        student_encoder=model.student.encoder,
        teacher_encoder=model.teacher.encoder,
        student_backbone=model.student.backbone,
        teacher_backbone=model.teacher.backbone,
    )
    model(**batch(model), mode="loss")
    expected = dict(
        student_decoder=student_calls,
        teacher_decoder=teacher_calls,
        student_encoder=1,
        teacher_encoder=1,
        student_backbone=1,
        teacher_backbone=1,
    )
    assert calls.count == {name: count for name, count in expected.items() if count}


def test_the_loss_compares_each_box_with_its_own_target_only(kd_config, batch, monkeypatch):
    shapes = []
    overlaps = rebalanced_distill_loss.bbox_overlaps

    def spy(boxes, targets, **options):
        shapes.append((options["is_aligned"], boxes.shape, targets.shape))
        return overlaps(boxes, targets, **options)

    monkeypatch.setattr(rebalanced_distill_loss, "bbox_overlaps", spy)
    model = build(kd_config()).train()
    model(**batch(model), mode="loss")
    assert shapes == [(True, (2, 2, points, 4), (2, 2, points, 4)) for points in (16, 10)]


class Operators(TorchDispatchMode):
    """Counts the operators that PyTorch runs."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators_of_loss(points, batch_size, class_term="bernoulli", layers="last"):
    generator = torch.Generator().manual_seed(0)

    def answer():
        shape = (3, batch_size, points)
        scores = torch.randn(*shape, 4, generator=generator)
        return Answer(scores, torch.rand(*shape, 4, generator=generator))

    loss = rebalanced_distill_loss.RebalancedDistillLoss(class_term=class_term, layers=layers)
    with Operators() as operators:
        loss(answer(), answer(), "general")
    return operators.count


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
@pytest.mark.parametrize("layers", ["last", "one_to_one"])
def test_operators_of_the_loss_do_not_grow_with_the_points(class_term, layers):
    few = operators_of_loss(3, 1, class_term, layers)
    assert operators_of_loss(300, 2, class_term, layers) == few > 0


def test_operators_of_a_whole_step(kd_config, batch):
    """Beside what student and teacher run alone, a step runs a decoder for each set, and the loss.

    Recording launches nothing; the memory's projections are not run again.
    """
    model = build(kd_config()).train()
    inputs, samples = batch(model)["inputs"], batch(model)["data_samples"]
    with Operators() as plain:
        model.student.loss(inputs, samples)
    with Operators() as teacher, torch.no_grad():
        family = model.teacher_family
        family.own_answer(family.look(inputs, samples))

    parts = {}

    def counted(name, function):
        def call(*args, **kwargs):
            with Operators() as operators:
                result = function(*args, **kwargs)
            parts.setdefault(name, []).append(operators.count)
            return result

        return call

    student = model.student_family
    model._student_loss = counted("student", model._student_loss)
    model.teacher_look = counted("look", model.teacher_look)
    family.own_answer = counted("own", family.own_answer)
    for who, asked in (("student", student), ("teacher", family)):
        asked.answer = counted(f"{who} at points", asked.answer)
    model.distill_loss.forward = counted("loss", model.distill_loss.forward)
    with Operators() as whole:
        model.loss(inputs, samples)
    assert parts["student"] == [plain.count]
    assert parts["look"] + parts["own"] == [parts["look"][0], teacher.count - parts["look"][0]]
    # What three layers of the teacher take at its own queries is the measure; the look at the
    # points is noted besides.
    (own,) = parts["own"]
    assert len(parts["student at points"]) == 2 and len(parts["teacher at points"]) == 1
    assert max(parts["student at points"]) <= own * 2 / 3 + 20
    assert max(parts["teacher at points"]) <= own + 20
    assert len(parts["loss"]) == 2 and max(parts["loss"]) <= 130
    rest = whole.count - sum(itertools.chain(*parts.values()))
    assert rest <= 140  # the points, whose content is whose, the checks at the end


def test_every_part_of_a_step_is_timed(config):
    benchmark = Benchmark(config(), CPU)
    (measured,) = benchmark.measure(benchmark.generated((96, 64), 2), 1)
    parts = measured.all_parts()
    assert set(parts) == {
        bench.STUDENT_FORWARD,
        bench.TEACHER_FORWARD,
        bench.MAKING_POINTS,
        "specific points, student's answer",
        "general points, teacher's answer",
        "general points, student's answer",
        bench.DISTILL_LOSS,
        bench.REST,
        bench.REMAINDER,
    }
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(measured.kd)
    assert 0 < measured.student_forward < measured.student
    assert measured.teacher > 0
    assert measured.image_size == (96, 64)
    assert measured.memory == {}


def test_sets_of_a_two_stage_student_and_of_paired_queries(config):
    points = dict(type="CoordinateSampler", max_points=8, num_general=4)
    boxes = Benchmark(config(student=two_stage_config("mask_rcnn"), points=points), CPU)
    (measured,) = boxes.measure(boxes.generated((96, 64), 2), 1)
    answers = {label for label in measured.parts if "answer" in label}
    assert answers == {
        f"{name} points, {who}'s answer"
        for name in ("roi", "general")
        for who in ("student", "teacher")
    }
    pairing = dict(type="QueryPairing", strategy="inconsistent")
    paired = Benchmark(config(points=pairing), CPU)
    (measured,) = paired.measure(paired.generated((96, 64), 2), 1)
    answers = {label for label in measured.parts if "answer" in label}
    assert answers == {"own points, student's answer"}


def test_a_watched_step_leaves_no_trace_and_changes_no_loss(kd_config, batch):
    model = build(kd_config()).train()
    data = batch(model)
    watched_things = (
        model,
        model.distill_loss,
        model.point_generator,
        model.student_family,
        model.teacher_family,
    )
    before = [set(vars(thing)) for thing in watched_things]
    results = []
    for context in (
        contextlib.nullcontext(),
        bench.watched(model, Stopwatch(bench.Clock(CPU))),
    ):
        model._last_step = (-1, 0)
        torch.manual_seed(0)
        with context:
            results.append(model(**data, mode="loss"))
    assert [set(vars(thing)) for thing in watched_things] == before
    plain, watched = ({k: torch.as_tensor(v) for k, v in r.items()} for r in results)
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


class Ticks:
    """A clock whose marks are 0, 1, 2, ..."""

    now = -1

    def mark(self):
        self.now += 1
        return self.now

    @staticmethod
    def between(start, end):
        return float(end - start)


def test_a_stopwatch_counts_what_is_called_within_as_the_callers():
    stopwatch = Stopwatch(Ticks())
    inner = stopwatch.timed("inner", lambda: None)
    outer = stopwatch.timed("outer", inner)
    named = stopwatch.timed(lambda name: name.upper(), lambda name: 1 / len(name))
    inner(), outer(), outer(), named("a")
    with pytest.raises(ZeroDivisionError):
        named("")
    inner()  # an error has not left it running
    assert stopwatch.seconds() == {"inner": 2.0, "outer": 2.0, "A": 1.0, "": 1.0}


def made_up(scale, kd=10.0):
    return Round(
        student=4.0 * scale,
        student_forward=1.5 * scale,
        teacher=1.0 * scale,
        kd=kd * scale,
        kd_forward=5.0 * scale,
        image_size=(128, 96),
        parts={
            bench.DISTILL_LOSS: 0.5 * scale,
            "general points, student's answer": 1.0 * scale,
            bench.STUDENT_FORWARD: 1.5 * scale,
            bench.TEACHER_FORWARD: 1.25 * scale,
        },
        memory=dict(student=100 * scale, teacher=50 * scale, kd=165 * scale),
    )


def test_ratio_and_shares_by_hand():
    summary = bench.summarize([made_up(1), made_up(3), made_up(2, kd=11.0)])
    # 10 / (4 + 1) = 2, twice, and 11 / 5 = 2.2.
    assert summary["ratio"] == pytest.approx(
        dict(median=2.0, first_quartile=2.0, last_quartile=2.1)
    )
    assert summary["seconds"]["both"] == dict(median=10, first_quartile=7.5, last_quartile=12.5)
    assert summary["seconds"]["kd"]["median"] == 22.0  # of 10, 30, 22
    parts = summary["parts"]
    assert list(parts) == [
        bench.STUDENT_FORWARD,
        bench.TEACHER_FORWARD,
        "general points, student's answer",
        bench.DISTILL_LOSS,
        bench.REST,
        bench.REMAINDER,
    ]
    shares = [part["share"] for part in parts.values()]
    assert shares == pytest.approx([0.15, 0.125, 0.1, 0.05, 0.075, 0.5])
    # Of the round of twice the unit, the median: but the remainders are 5, 15 and 12.
    assert [p["seconds"] for p in parts.values()] == pytest.approx([3.0, 2.5, 2.0, 1.0, 1.5, 12.0])
    # Apart, the student's forward takes 1.5, its remainder 2.5, and the teacher 1 unit.
    assert [p["added"] for p in parts.values()] == pytest.approx([0.0, 0.5, 2.0, 1.0, 1.5, 7.0])
    assert summary["memory"] == dict(student=300, teacher=150, kd=495)


def test_a_single_round_is_its_own_quartiles():
    assert bench.spread([3.0]) == dict(median=3.0, first_quartile=3.0, last_quartile=3.0)


def test_peak_memory_on_a_cpu(config):
    """Weights, gradients and Adam's two moments; the teacher has none of the latter."""
    cfg = config()
    benchmark = Benchmark(cfg, CPU)
    peaks = benchmark.cpu_memory(next(benchmark.generated((96, 64), 2)))
    assert set(peaks) == {"student", "teacher", "kd"}
    weights = {
        "student": 4 * bench.nbytes(benchmark.plain.model.parameters()),
        "teacher": bench.nbytes(benchmark.model.teacher.parameters()),
    }
    assert all(peaks[name] > size for name, size in weights.items())
    assert peaks["student"] + weights["teacher"] < peaks["kd"]
    assert peaks["kd"] < 2 * (peaks["student"] + peaks["teacher"])


def test_peak_memory_as_if_each_were_alone(config, monkeypatch):
    """CUDA's counters, made up: 1,000 bytes are there before each step, which takes 70 more."""
    benchmark = Benchmark(config(), CPU)
    monkeypatch.setattr(benchmark.clock, "on_gpu", True)
    for name, value in (
        ("synchronize", None),
        ("reset_peak_memory_stats", None),
        ("memory_allocated", 1000),
        ("max_memory_allocated", 1070),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    memory, images = {}, torch.zeros(2, 3, 5, 7)
    plain, kd = benchmark.plain, benchmark.kd
    with benchmark._peak(memory, "student", [plain.model], [plain], images):
        pass
    with benchmark._peak(memory, "teacher", [benchmark.model.teacher], [], images):
        pass
    with benchmark._peak(memory, "kd", [benchmark.model, benchmark.model.teacher], [kd], images):
        pass
    colours = 24  # bytes of a data preprocessor's mean and standard deviation; not in state_dict
    size = bench.nbytes(plain.model.state_dict().values()) + colours
    teacher_size = bench.nbytes(benchmark.model.teacher.state_dict().values()) + colours
    images = 4 * 2 * 3 * 5 * 7
    assert memory["student"] == 70 + size + images
    assert memory["teacher"] == 70 + teacher_size + images
    assert memory["kd"] == 70 + size + colours + teacher_size + images

    batch = next(benchmark.generated((96, 64), 2))
    plain.optimizer.update_params(plain.model.parse_losses(plain.model(**batch, mode="loss"))[0])
    state = plain.optimizer.optimizer.state
    moments = bench.nbytes(v for s in state.values() for k, v in s.items() if k != "step")
    counters = bench.nbytes(s["step"] for s in state.values())
    assert moments == 2 * bench.nbytes(state)  # AdamW's two, of each weight that learns
    kept = bench.nbytes(bench.resident([plain.model], [plain], CPU))
    assert kept == size + moments + counters
    elsewhere = bench.resident([], [plain], torch.device("cuda"))
    assert bench.nbytes(elsewhere) == 0


def test_both_students_start_alike_and_share_nothing(config):
    benchmark = Benchmark(config(), CPU)
    plain, kd = benchmark.plain.model.state_dict(), benchmark.model.state_dict()
    assert plain.keys() == kd.keys()
    for name, value in plain.items():
        assert torch.equal(value, kd[name])
        assert value.data_ptr() != kd[name].data_ptr() or value.numel() == 0
    assert benchmark.plain.model.training and benchmark.model.student.training
    assert not benchmark.model.teacher.training


def test_a_checkpoint_that_is_here_is_used(config, teacher_checkpoint):
    benchmark = Benchmark(config(), CPU)
    assert benchmark.teacher_weights == teacher_checkpoint
    weights = torch.load(teacher_checkpoint, weights_only=False)["state_dict"]
    assert torch.equal(benchmark.model.teacher.state_dict()["level_embed"], weights["level_embed"])


@pytest.mark.parametrize("checkpoint", [None, "no/such.pth", "https://example.invalid/teacher.pth"])
def test_nothing_is_downloaded(config, checkpoint):
    pretrained = dict(type="Pretrained", checkpoint="https://example.invalid/backbone.pth")
    student, teacher = dino_config(), dino_config(**TEACHER)
    student.backbone.init_cfg = pretrained
    teacher.backbone.init_cfg = [pretrained, dict(type="Kaiming", layer="Conv2d")]
    teacher.init_cfg = pretrained
    cfg = config(student=student, teacher=dict(config=teacher, checkpoint=checkpoint))
    before = cfg.to_dict()
    benchmark = Benchmark(cfg, CPU)
    assert cfg.to_dict() == before
    assert benchmark.teacher_weights == "random"
    assert all(p.isfinite().all() for p in benchmark.model.teacher.parameters())
    assert benchmark.model.teacher.backbone.init_cfg == [dict(type="Kaiming", layer="Conv2d")]


def test_other_classes_need_no_names(config, teacher_checkpoint):
    cfg = config(student=dino_config(num_classes=3), class_map="names")
    benchmark = Benchmark(cfg, CPU)
    assert benchmark.model.class_map.pairs == [(0, 0), (1, 1), (2, 2)]
    assert len(benchmark.measure(benchmark.generated((96, 64), 2), 1)) == 1


def test_random_images_are_what_loaders_give(config):
    student = two_stage_config("mask_rcnn", num_classes=1)
    teacher = dict(config=dino_config(**{**TEACHER, "num_classes": 1}), checkpoint=None)
    points = dict(type="CoordinateSampler", max_points=8)
    loss = dict(class_bridge="posterior")  # with one class, the default would teach none
    given = config(student=student, teacher=teacher, points=points, distill_loss=loss)
    benchmark = Benchmark(given, CPU)
    raw = bench.random_batch(benchmark.model, (80, 50), 3)
    again = bench.random_batch(benchmark.model, (80, 50), 3)
    assert [image.shape for image in raw["inputs"]] == [(3, 50, 80)] * 3
    for sample, same in zip(raw["data_samples"], again["data_samples"]):
        objects = sample.gt_instances
        assert torch.equal(objects.bboxes, same.gt_instances.bboxes)
        assert len(objects) == bench.BOXES
        assert objects.bboxes.min() >= 0
        assert (objects.bboxes <= torch.tensor([80.0, 50.0, 80.0, 50.0])).all()
        assert (objects.bboxes[:, 2:] > objects.bboxes[:, :2]).all()
        assert (objects.labels == 0).all()
        assert objects.masks.masks.any(axis=(1, 2)).all()
    batch = next(benchmark.generated((80, 50), 3))
    assert batch["inputs"].shape == (3, 3, 64, 96)  # padded, as the config says
    assert batch["inputs"].is_floating_point()
    assert batch["data_samples"][0].batch_input_shape == (64, 96)


def test_precision():
    amp = dict(OPTIMIZER, type="AmpOptimWrapper", loss_scale="dynamic", dtype="bfloat16")
    cfg, gpu = Config(dict(optim_wrapper=dict(amp, accumulative_counts=4))), torch.device("cuda")
    assert bench.chosen_amp(cfg, CPU, None) == "bfloat16"
    assert bench.chosen_amp(cfg, gpu, "float16") == "float16"
    assert bench.chosen_amp(Config(dict(optim_wrapper=OPTIMIZER)), CPU, None) is None
    assert bench.optimizer_config(cfg, "bfloat16", CPU) == dict(OPTIMIZER, type="OptimWrapper")
    on_gpu = bench.optimizer_config(cfg, "float16", gpu)
    assert (on_gpu["type"], on_gpu["dtype"]) == ("AmpOptimWrapper", torch.float16)
    with pytest.raises(ConfigError, match="needs a GPU"):
        bench.chosen_amp(cfg, CPU, "float16")
    with pytest.raises(ConfigError, match="amp must be one of"):
        bench.chosen_amp(cfg, CPU, "int8")
    with pytest.raises(ConfigError, match="names no optimiser"):
        bench.chosen_amp(Config(dict()), CPU, None)


def test_a_step_in_half_precision(config):
    benchmark = Benchmark(config(), CPU, "bfloat16")
    dtypes = []
    linear = benchmark.model.student.decoder.layers[0].ffn.layers[1]
    linear.register_forward_hook(lambda module, inputs, out: dtypes.append(out.dtype))
    benchmark.measure(benchmark.generated((96, 64), 2), 1)
    assert set(dtypes) == {torch.bfloat16}


def test_what_cannot_be_measured(config, monkeypatch):
    alone = config()
    alone.model = dab_config()
    with pytest.raises(ConfigError, match="not a distillation's"):
        Benchmark(alone, CPU)
    benchmark = Benchmark(config(teacher=dict(config=dino_config(**TEACHER), checkpoint=None)), CPU)
    with pytest.raises(ConfigError, match="too small"):
        benchmark.measure(benchmark.generated((32, 32), 2), 1)

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark, "round", full)
    with pytest.raises(ConfigError, match="does not fit into memory"):
        benchmark.measure(benchmark.generated((96, 64), 2), 1)

    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(benchmark, "round", broken)
    with pytest.raises(RuntimeError, match="something else"):
        benchmark.measure(benchmark.generated((96, 64), 2), 1)


def test_an_untrained_model_is_whole_and_its_config_is_left_alone():
    config = dino_config()
    config.backbone.init_cfg = dict(type="Pretrained", checkpoint="https://example.invalid/r.pth")
    before = config.to_dict()
    model = untrained(config)
    assert config.to_dict() == before
    assert not model.training and all(p.isfinite().all() for p in model.parameters())
    found = model.test_step(random_image((96, 64)))[0].pred_instances
    assert len(found) == 12 and found.bboxes[:, 2].max() <= 96 and found.bboxes[:, 3].max() <= 64
