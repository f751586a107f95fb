"""What a distilled training step costs beside student and teacher alone, and where it goes."""

import contextlib
import copy
import io
import itertools
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from ..detectors import KDDETR
from ..families import build_family
from ..families.base import swapped
from ..points import QueryPairing
from .configs import is_kd_model, model_config
from .errors import MEND_TOO_SMALL, TOO_SMALL, ConfigError, check_choice
from .peak_memory import peak_growth

WARM_UP = 2  # rounds that are not counted: allocations, choice of kernels, the optimisers' states
BOXES = 7  # per generated image: COCO's mean is 7.3
SMALLEST_SIDE = 32  # pixels: the last stride of a ResNet
AMP_DTYPES = dict(bfloat16=torch.bfloat16, float16=torch.float16)
MIXED = ("AmpOptimWrapper", "BFloat16OptimWrapper")

STUDENT_FORWARD = "student's own losses, forward"
TEACHER_FORWARD = "teacher's forward"
MAKING_POINTS = "making the points"
DISTILL_LOSS = "distillation loss"
REST = "recording and the rest of the forward pass"
REMAINDER = "backward pass and optimiser step (the remainder)"


class Clock:
    """Seconds between two marks; on a GPU they are marks in its stream, and nothing waits.

    On a CPU with one thread they are seconds of the processor's work: what else the machine does
    meanwhile is not in them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.alone = not self.on_gpu and torch.get_num_threads() == 1

    def settle(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        """This moment, for :meth:`between`."""
        if not self.on_gpu:
            return time.process_time() if self.alone else time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds; on a GPU to be asked after :meth:`settle` only."""
        return start.elapsed_time(end) / 1000 if self.on_gpu else end - start


class Stopwatch:
    """Seconds spent within functions; what one of them calls counts as the caller's."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.spans: list[tuple[str, Any, Any]] = []
        self._running = False

    def timed(self, label: str | Callable[..., str], function: Callable) -> Callable:
        """The function, timed under a label or under what ``label`` makes of its arguments."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            name = label if isinstance(label, str) else label(*args, **kwargs)
            self._running = True
            start = self.clock.mark()
            try:
                return function(*args, **kwargs)
            finally:
                self.spans.append((name, start, self.clock.mark()))
                self._running = False

        return call

    def seconds(self) -> dict[str, float]:
        """Sum by label, in the order of the labels' first appearance."""
        sums: dict[str, float] = {}
        for name, start, end in self.spans:
            sums[name] = sums.get(name, 0.0) + self.clock.between(start, end)
        return sums


@contextmanager
def watched(model: KDDETR, stopwatch: Stopwatch) -> Iterator[None]:
    """Within the context, the parts of ``model.loss`` are timed; the instances are as ever after.

    Labels are those of this module, and for each set of points ``'<set> points, <who>'s answer'``.
    """
    names: Any = weakref.WeakKeyDictionary()  # a set of points: its name; it must not outlive them

    def naming(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            points = function(*args, **kwargs)
            names[points] = name
            return points

        return stopwatch.timed(MAKING_POINTS, call)

    def asked(who: str) -> Callable[..., str]:
        return lambda record, points, *_: answer_label(names.get(points, "other"), who)

    own = "own" if isinstance(model.point_generator, QueryPairing) else "specific"
    student, teacher, generator = model.student_family, model.teacher_family, model.point_generator
    swaps: list[tuple[object, str, Callable]] = [
        (model, "_student_loss", stopwatch.timed(STUDENT_FORWARD, model._student_loss)),
        (teacher, "look", stopwatch.timed(TEACHER_FORWARD, teacher.look)),
        (teacher, "queries", naming("specific", teacher.queries)),
        (
            model.distill_loss,
            "forward",
            stopwatch.timed(DISTILL_LOSS, model.distill_loss.forward),
        ),
    ]
    for method, name in (("general", "general"), ("sample", "roi")):
        if hasattr(generator, method):
            swaps.append((generator, method, naming(name, getattr(generator, method))))
    for family, who, label in (
        (student, "student", answer_label(own, "student")),
        (teacher, "teacher", TEACHER_FORWARD),  # a part of what it takes alone, too
    ):
        swaps += [
            (family, "answer", stopwatch.timed(asked(who), family.answer)),
            (family, "own_answer", stopwatch.timed(label, family.own_answer)),
        ]
    with contextlib.ExitStack() as stack:
        for instance, method, function in swaps:
            stack.enter_context(swapped(instance, method, function))
        yield


def answer_label(name: str, who: str) -> str:
    """Label of what a model's answer at a set of points takes."""
    return f"{name} points, {who}'s answer"


@dataclass
class Round:
    """One step of each kind, on the same images; with ``interval`` k the mean of k distilled ones.

    Attributes:
        student: Seconds of the plain student's training step.
        student_forward: Seconds of its losses, a part of ``student``.
        teacher: Seconds of the teacher's forward pass, by ``interval``.
        kd: Seconds of the distilled student's training step.
        kd_forward: Seconds of its losses, a part of ``kd``.
        parts: Seconds within ``kd_forward`` by label.
        image_size: Width and height of the batch in pixels, with padding.
        memory: Peak bytes on a GPU of ``student``, ``teacher`` and ``kd``, as if each were there
            alone; empty on a CPU.
    """

    student: float
    student_forward: float
    teacher: float
    kd: float
    kd_forward: float
    image_size: tuple[int, int] = (0, 0)
    parts: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """float: The distilled step over student's step and teacher's forward pass."""
        return self.kd / (self.student + self.teacher)

    def all_parts(self) -> dict[str, float]:
        """Seconds by label, which add up to ``kd``."""
        rest = self.kd_forward - sum(self.parts.values())
        return {**self.parts, REST: rest, REMAINDER: self.kd - self.kd_forward}

    def apart(self) -> dict[str, float]:
        """Seconds that the same parts take with student and teacher apart; absent: none."""
        return {
            STUDENT_FORWARD: self.student_forward,
            TEACHER_FORWARD: self.teacher,
            REMAINDER: self.student - self.student_forward,
        }


@dataclass
class Trainee:
    """A model in training and its optimiser."""

    model: BaseDetector
    optimizer: OptimWrapper


def trainee(model: BaseDetector, optimizer: dict) -> Trainee:
    """A model in training, and its optimiser from a config."""
    return Trainee(model.train(), build_optim_wrapper(model, optimizer))


class Benchmark:
    """A plain student and a distilled one, ready to run side by side.

    Both start from the same random weights, so that matching is as hard for both. Nothing is
    downloaded: a backbone starts at random, and so does a teacher whose checkpoint is no file here
    (``teacher_weights`` says which); speed hardly depends on it.

    Args:
        cfg: A whole config of a distillation; it is left alone.
        device: Where to run.
        amp: ``'bfloat16'``, ``'float16'`` or None for what the config's ``optim_wrapper`` says.

    Raises:
        ConfigError: If the config is no distillation's, names no optimiser, or wants float16 on a
            CPU.
    """

    def __init__(self, cfg: Config, device: torch.device, amp: str | None = None) -> None:
        if not is_kd_model(cfg.model):
            raise ConfigError("the config is not a distillation's: its model is no KDDETR")
        self.amp = chosen_amp(cfg, device, amp)
        self.clock = Clock(device)
        self.cfg = cfg
        model_cfg, self.teacher_weights = offline(cfg.model)
        torch.manual_seed(0)
        with quiet():
            kd = MODELS.build(model_cfg)
            kd.init_weights()
            if self.teacher_weights == "random":
                kd.teacher.init_weights()  # some of mmdet's parameters hold anything before
            plain = MODELS.build(model_config(model_cfg.student))
        plain.load_state_dict(kd.state_dict())
        share_all_classes(kd)
        optimizer = optimizer_config(cfg, self.amp, device)
        self.plain, self.kd = (
            trainee(model.to(device), copy.deepcopy(optimizer)) for model in (plain, kd)
        )

    @property
    def model(self) -> KDDETR:
        """KDDETR: The distillation."""
        return self.kd.model

    def generated(self, size: tuple[int, int], batch_size: int) -> Iterator[dict]:
        """The same batch of random images of one size (width, height) for ever."""
        preprocessor = copy.deepcopy(self.model.data_preprocessor)
        preprocessor.batch_augments = None  # they may change the size
        raw = random_batch(self.model, size, batch_size)
        return itertools.repeat(preprocessor(raw, True))

    def real(self, dataloader: dict, batch_size: int) -> Iterator[dict]:
        """Batches of a training data loader, over and over; incomplete ones are left out.

        Raises:
            ConfigError: If there are not images enough for one.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's lines
            loader = Runner.build_dataloader({**dataloader, "batch_size": batch_size}, seed=0)
        while True:
            full = 0
            for raw in loader:
                if len(raw["data_samples"]) == batch_size:
                    full += 1
                    yield self.model.data_preprocessor(raw, True)
            if not full:
                raise ConfigError(f"train_dataloader has no {batch_size} images: take fewer")

    def measure(self, batches: Iterator[dict], steps: int) -> list[Round]:
        """Run ``WARM_UP`` rounds and then as many as are returned.

        Raises:
            ConfigError: If the images are too small, or too large for the memory.
        """
        try:
            rounds = [self.round(next(batches)) for _ in range(WARM_UP + steps)]
        except (RuntimeError, ValueError) as error:
            message = str(error)
            if any(told in message for told in TOO_SMALL):
                raise ConfigError(f"{MEND_TOO_SMALL} (--size)") from error
            if isinstance(error, torch.cuda.OutOfMemoryError) or "allocate memory" in message:
                raise ConfigError(
                    "a step does not fit into memory: take fewer or smaller images (--batch-size, "
                    "--size)"
                ) from error
            raise
        return rounds[WARM_UP:]

    def round(self, batch: dict) -> Round:
        """A step of each kind on one batch, as MMEngine trains, after loading and normalising."""
        inputs, samples = batch["inputs"], batch["data_samples"]
        model, memory = self.model, {}
        with self._peak(memory, "student", [self.plain.model], [self.plain], inputs):
            student, student_forward = self._step(self.plain, batch)
        with self._peak(memory, "teacher", [model.teacher], [], inputs), self._autocast():
            start = self._start()
            record = model.teacher_look(inputs, samples)
            with model.teacher_at_work.answering():
                model.teacher_family.own_answer(record)
            teacher = self._since(start)
        stopwatch = Stopwatch(self.clock)
        every = model.interval  # as many steps in a row are one with distillation and some without
        with (
            self._peak(memory, "kd", [model, model.teacher], [self.kd], inputs),
            watched(model, stopwatch),
        ):
            steps = [self._step(self.kd, batch) for _ in range(every)]
        kd, kd_forward = (sum(seconds) / every for seconds in zip(*steps))
        return Round(
            student=student,
            student_forward=student_forward,
            teacher=teacher / every,
            kd=kd,
            kd_forward=kd_forward,
            image_size=(inputs.shape[-1], inputs.shape[-2]),
            parts={part: seconds / every for part, seconds in stopwatch.seconds().items()},
            memory=memory,
        )

    def cpu_memory(self, batch: dict) -> dict[str, int]:
        """Peak bytes of each kind of step on a CPU, in processes of their own; empty if unknown.

        Weights, the optimiser's state and what a batch needs are in it.
        """
        kinds = dict(student=_student_steps, teacher=_teacher_look, kd=_kd_steps)
        imports = self.cfg.get("custom_imports")
        given = self.cfg.to_dict(), batch, self.amp
        peaks = {
            name: peak_growth(run, *given, custom_imports=imports) for name, run in kinds.items()
        }
        return {} if None in peaks.values() else peaks

    def _step(self, trainee: Trainee, batch: dict) -> tuple[float, float]:
        """Seconds of a training step, and of the forward pass in it."""
        start = self._start()
        with self._autocast():
            losses = trainee.model(**batch, mode="loss")
        middle = self.clock.mark()
        total, _ = trainee.model.parse_losses(losses)
        trainee.optimizer.update_params(total)
        seconds = self._since(start)
        return seconds, self.clock.between(start, middle)

    def _start(self) -> Any:
        self.clock.settle()
        return self.clock.mark()

    def _since(self, start: Any) -> float:
        end = self.clock.mark()
        self.clock.settle()
        return self.clock.between(start, end)

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES.get(self.amp)
        return torch.autocast(self.clock.device.type, dtype, enabled=dtype is not None)

    @contextmanager
    def _peak(
        self, memory: dict, name: str, models: list, trainees: list[Trainee], inputs: Tensor
    ) -> Iterator[None]:
        """Note the peak of a step as if only these models, optimisers and images were there."""
        if not self.clock.on_gpu:
            yield
            return
        self.clock.settle()
        torch.cuda.reset_peak_memory_stats(self.clock.device)
        before = torch.cuda.memory_allocated(self.clock.device)
        yield
        self.clock.settle()
        grown = torch.cuda.max_memory_allocated(self.clock.device) - before
        memory[name] = grown + nbytes([*resident(models, trainees, self.clock.device), inputs])


def _train(model: BaseDetector, cfg: Config, batch: dict, amp: str | None) -> None:
    """As many steps as it takes until the optimiser's states are there while a graph is."""
    device = torch.device("cpu")
    trained = trainee(model, optimizer_config(cfg, amp, device))
    dtype = AMP_DTYPES.get(amp)
    for _ in range(2):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            losses = model(**batch, mode="loss")
        trained.optimizer.update_params(model.parse_losses(losses)[0])


def _student_steps(cfg: dict, batch: dict, amp: str | None) -> None:
    cfg = Config(cfg)
    model = untrained(model_config(offline(cfg.model)[0].student))
    _train(model.train(), cfg, batch, amp)


def _kd_steps(cfg: dict, batch: dict, amp: str | None) -> None:
    cfg = Config(cfg)
    with quiet():
        model = MODELS.build(offline(cfg.model)[0])
        model.init_weights()
        model.teacher.init_weights()
    share_all_classes(model)
    _train(model, cfg, batch, amp)


@torch.no_grad()
def _teacher_look(cfg: dict, batch: dict, amp: str | None) -> None:
    model = untrained(model_config(offline(Config(cfg).model)[0].teacher.config))
    family, dtype = build_family(model), AMP_DTYPES.get(amp)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        family.own_answer(family.look(batch["inputs"], batch["data_samples"]))


def chosen_amp(cfg: Config, device: torch.device, amp: str | None) -> str | None:
    """``'bfloat16'``, ``'float16'``, or None for float32: as asked, else as the config trains.

    Raises:
        ConfigError: If there is no such precision, or none on this device.
    """
    wrapper = cfg.get("optim_wrapper")
    if not isinstance(wrapper, dict) or "optimizer" not in wrapper:
        raise ConfigError("the config names no optimiser: optim_wrapper=dict(optimizer=...)")
    if amp is None and wrapper.get("type") in MIXED:
        bfloat16 = wrapper["type"] == "BFloat16OptimWrapper" or wrapper.get("dtype") == "bfloat16"
        amp = "bfloat16" if bfloat16 else "float16"
    if amp is not None:
        check_choice("amp", amp, list(AMP_DTYPES))
    if amp == "float16" and device.type != "cuda":
        raise ConfigError("training in float16 needs a GPU: on a CPU take --amp bfloat16")
    return amp


def optimizer_config(cfg: Config, amp: str | None, device: torch.device) -> dict:
    """The config's ``optim_wrapper`` in one precision, with an optimiser step in every step."""
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    wrapper.pop("accumulative_counts", None)
    if wrapper.get("type") in MIXED:
        for key in ("type", "dtype", "loss_scale"):
            wrapper.pop(key, None)
    if amp is not None and device.type == "cuda":  # MMEngine scales losses on a GPU only
        wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic", dtype=AMP_DTYPES[amp])
    wrapper.setdefault("type", "OptimWrapper")
    return wrapper


def offline(model: dict) -> tuple[dict, str]:
    """A distillation's model config that downloads nothing, and where the teacher's weights are.

    Returns:
        tuple: A copy of the config, and the path of the teacher's checkpoint or ``'random'``.
    """
    model = copy.deepcopy(model)
    model["student"] = without_pretrained(model_config(model.get("student"), "student"))
    teacher = model.get("teacher")
    if not isinstance(teacher, dict) or "config" not in teacher:
        return model, "random"  # KDDETR says what is wrong
    teacher["config"] = without_pretrained(model_config(teacher["config"], "teacher.config"))
    checkpoint = teacher.get("checkpoint")
    if checkpoint is not None and Path(str(checkpoint)).expanduser().is_file():
        return model, str(checkpoint)
    teacher["checkpoint"] = None
    return model, "random"


def without_pretrained(cfg: Any) -> Any:
    """A config in which no ``init_cfg`` loads a file any more; changed in place."""
    values = list(cfg.values()) if isinstance(cfg, dict) else cfg
    for value in values if isinstance(values, (list, tuple)) else ():
        without_pretrained(value)
    if isinstance(cfg, dict) and cfg.get("init_cfg"):
        given = cfg["init_cfg"] if isinstance(cfg["init_cfg"], (list, tuple)) else [cfg["init_cfg"]]
        kept = [init for init in given if init.get("type") not in ("Pretrained", PretrainedInit)]
        cfg["init_cfg"] = kept or None
    return cfg


def untrained(model_cfg: dict) -> BaseDetector:
    """A detector in eval mode with MMDetection's initial weights; nothing is downloaded."""
    with quiet():
        # A copy: MMDetection's detectors change their config.
        model = MODELS.build(without_pretrained(ConfigDict(copy.deepcopy(model_cfg))))
        model.init_weights()  # some of mmdet's parameters hold anything before
    return model.eval()


def share_all_classes(model: KDDETR) -> None:
    """Resolve a ``class_map`` without names: as many classes as both have, in their order."""
    if model.class_map.option is not None:
        families = model.student_family, model.teacher_family
        shared = min(f.num_class_scores - f.has_background for f in families)
        model.class_map.pairs = [(index, index) for index in range(shared)]


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, the current logger drops what is no error: a line for each weight."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def image_size(cfg: Config, given: list[int] | None) -> tuple[int, int]:
    """Width and height of the images to generate, in pixels.

    Raises:
        ConfigError: If they are too small, or neither given nor found in the config.
    """
    size = given
    if size is None:
        loader = cfg.get("val_dataloader") or {}
        steps = (loader.get("dataset") or {}).get("pipeline") or []
        scales = [step["scale"] for step in steps if "scale" in step]
        size = scales[0] if scales else None
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ConfigError("the config's validation pipeline tells no image size: give --size W H")
    if min(size) < SMALLEST_SIDE:
        raise ConfigError(
            f"--size must be at least {SMALLEST_SIDE} {SMALLEST_SIDE}, got {size[0]} {size[1]}"
        )
    return int(size[0]), int(size[1])


def random_batch(model: KDDETR, size: tuple[int, int], batch_size: int, seed: int = 0) -> dict:
    """Random images of (width, height) pixels with ``BOXES`` random objects, as loaders give them.

    Returns:
        dict: ``inputs``, uint8 images (3, H, W), and ``data_samples``, on the CPU.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    family = model.student_family
    num_classes = family.num_class_scores - family.has_background
    with_masks = getattr(getattr(model.student, "roi_head", None), "with_mask", False)
    images, samples = [], []
    for index in range(batch_size):
        images.append(torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)))
        first, second = rng.random((2, BOXES, 2)) * [width, height]
        corners = np.concatenate([np.minimum(first, second), np.maximum(first, second)], -1)
        objects = InstanceData(
            bboxes=torch.from_numpy(corners).float(),
            labels=torch.from_numpy(rng.integers(0, num_classes, BOXES)),
        )
        if with_masks:
            masks = np.zeros((BOXES, height, width), np.uint8)
            for mask, (left, top, right, bottom) in zip(masks, corners.astype(int)):
                mask[top : bottom + 1, left : right + 1] = 1
            objects.masks = BitmapMasks(masks, height, width)
        sample = DetDataSample(gt_instances=objects, ignored_instances=objects[:0])
        shape = (height, width)
        sample.set_metainfo(
            dict(img_id=index, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
        )
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def resident(models: list, trainees: list[Trainee], device: torch.device) -> Iterator[Tensor]:
    """What stays on a device between steps: weights, buffers and the optimisers' states."""
    for model in models:
        yield from (*model.parameters(), *model.buffers())
    for trainee in trainees:
        for state in trainee.optimizer.optimizer.state.values():
            kept = [value for value in state.values() if torch.is_tensor(value)]
            yield from (t for t in kept if t.device.type == device.type)  # counters stay on the CPU


def summarize(rounds: list[Round]) -> dict:
    """Medians and quartiles over rounds.

    Ratio and shares are taken within each round before their median is, since its steps have seen
    the same images and the same load of the machine. So medians need not add up exactly.

    Returns:
        dict: ``seconds`` of ``student``, ``teacher``, ``both`` and ``kd``, and ``ratio``, each with
        ``median``, ``first_quartile`` and ``last_quartile``; ``parts``, by label the medians
        ``seconds``, ``share`` of the distilled step, and ``added`` seconds to what student and
        teacher take apart; ``over_student``, the distilled step over the student's; ``memory``, the
        peak bytes of each over all rounds.
    """
    order = ordered_labels(rounds)
    parts = {}
    for label in order:
        seconds = [r.all_parts().get(label, 0.0) for r in rounds]
        apart = [r.apart().get(label, 0.0) for r in rounds]
        parts[label] = dict(
            seconds=statistics.median(seconds),
            share=statistics.median(s / r.kd for s, r in zip(seconds, rounds)),
            added=statistics.median(s - a for s, a in zip(seconds, apart)),
        )
    return dict(
        seconds=dict(
            student=spread([r.student for r in rounds]),
            teacher=spread([r.teacher for r in rounds]),
            both=spread([r.student + r.teacher for r in rounds]),
            kd=spread([r.kd for r in rounds]),
        ),
        ratio=spread([r.ratio for r in rounds]),
        over_student=spread([r.kd / r.student for r in rounds]),
        parts=parts,
        memory={name: max(r.memory[name] for r in rounds) for name in rounds[0].memory},
    )


def ordered_labels(rounds: list[Round]) -> list[str]:
    """Labels of all rounds: student, teacher, points, answers as they come, loss, the others."""
    first, last = (STUDENT_FORWARD, TEACHER_FORWARD, MAKING_POINTS), (DISTILL_LOSS, REST, REMAINDER)
    seen = list(dict.fromkeys(label for r in rounds for label in r.all_parts()))
    answers = [label for label in seen if label not in first + last]
    return [label for label in (*first, *answers, *last) if label in seen]


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        values = values * 2
    first, median, last = statistics.quantiles(values, n=4, method="inclusive")
    return dict(median=median, first_quartile=first, last_quartile=last)


def markdown(report: dict) -> str:
    """A report as tables; see tools/benchmark.py for its keys."""
    summary, memory = report["summary"], report["summary"]["memory"]
    titles = dict(
        student="student alone, training step",
        teacher="teacher alone, forward pass",
        both="both",
        kd="distilled student, training step",
    )
    head = ["step", "ms", "quartiles"] + (["peak MiB"] if memory else [])
    lines = [f"# {report['title']}", "", *_head(head)]
    peaks = {**memory, "both": sum(memory.get(name, 0) for name in ("student", "teacher"))}
    for name, title in titles.items():
        value = summary["seconds"][name]
        quartiles = f"{_ms(value['first_quartile'])} to {_ms(value['last_quartile'])}"
        cells = [title, _ms(value["median"]), quartiles]
        lines.append(_row(cells + ([f"{peaks[name] / 2**20:.0f}"] if memory else [])))
    ratio = summary["ratio"]
    lines += [
        "",
        f"**Overhead ratio {ratio['median']:.2f}** (quartiles {ratio['first_quartile']:.2f} to "
        f"{ratio['last_quartile']:.2f}): the distilled step over both, the floor of any online "
        "distillation.",
        f"The distilled step takes {summary['over_student']['median']:.2f} times the student's.",
        f"Peak memory over both: {memory['kd'] / peaks['both']:.2f}."
        if memory
        else "Peak memory on a CPU: --memory.",
        "",
        *_head(["part of the distilled step", "ms", "share", "added to both, ms"]),
    ]
    for label, part in summary["parts"].items():
        cells = [label, _ms(part["seconds"]), f"{part['share']:.1%}", _ms(part["added"])]
        lines.append(_row(cells))
    lines += ["", *_settings(report)]
    return "\n".join(lines) + "\n"


def _settings(report: dict) -> list[str]:
    """Where a report's figures come from."""
    sizes = ", ".join(f"{width}x{height}" for width, height in report["image_sizes"])
    weights = report["teacher_weights"]
    lines = [
        f"`{report['config']}`: {report['student']}, taught by {report['teacher']}; "
        f"{report['points']}.",
        f"{report['images'].capitalize()} images of {sizes} pixels in batches of "
        f"{report['batch_size']}; precision {report['amp'] or 'float32'}; medians of "
        f"{report['steps']} rounds after {report['warm_up']} that do not count.",
    ]
    if report["options"]:
        lines.append("Options: " + ", ".join(f"{k}={v}" for k, v in report["options"].items()))
    if weights == "random":
        lines.append(
            "The teacher's checkpoint is not here: **it ran with random weights**, on which its "
            "speed hardly depends."
        )
    lines.append(
        f"{report['device']} ({report['machine']}), {report['threads']} CPU threads"
        f"{', processor time' * report['processor_time']}, PyTorch "
        f"{report['torch']}, commit {report['commit'] or 'unknown'}."
    )
    return [line + "  " for line in lines[:-1]] + lines[-1:]  # Markdown's line breaks


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.0f}" if abs(ms) >= 100 else f"{ms:.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]
