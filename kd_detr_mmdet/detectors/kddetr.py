"""KD-DETR: the student's own loss, plus what the teacher says at shared points."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.models.task_modules import BaseAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from torch import Tensor, nn

from ..families import Family, build_family, share_content
from ..families.base import Look, Record, check_looks, swapped
from ..points import CoordinateSampler, QueryPairing
from ..points.coordinates import relative_boxes
from ..utils.configs import DetectorSource, model_config
from ..utils.errors import ConfigError, check_ap
from ..utils.finite import check_finite, matching_despite_nan
from ..utils.random import preserved_rng
from .checks import check_pair, check_stateless
from .class_map import ClassMap
from .inherit import inherit_weights, start_from, student_options
from .teacher import TeacherPixels, build_teacher
from .teacher_at_work import TeacherAtWork

STUDENT = "student."
# Options of the teacher: what it is, how it is run, and what a tool compares it with.
BUILDING = ("config", "checkpoint", "strict", "trust")
RUNNING = ("dtype", "channels_last", "compile", "scale")


@MODELS.register_module()
class KDDETR(BaseDetector):
    """Distils a frozen detection transformer into another one (KD-DETR, arXiv 2211.08071).

    The student trains by its own loss, untouched. Then both models are asked at the same
    distillation points, and the loss on their answers is added under names of its own.

    To everything outside of training this module *is* the student: it predicts, counts and saves
    as the student alone, and its ``state_dict`` has the student's plain keys. The teacher is a
    plain attribute and no submodule, so it is in no checkpoint, optimiser, DDP replica or
    ``init_weights``; copies of this module (EMA) share it.

    Args:
        student: The student's model config, in any form that
            :func:`~kd_detr_mmdet.utils.configs.model_config` takes, or ``dict(config=...,
            checkpoint=..., trust=False)`` with the weights that it starts from; see
            :func:`~kd_detr_mmdet.detectors.inherit.start_from`.
        teacher: ``config`` (the same forms), ``checkpoint`` (path or URL) and optionally
            ``strict`` and ``trust``; see
            :func:`~kd_detr_mmdet.detectors.teacher.build_teacher`; ``dtype``, ``channels_last``,
            ``compile`` and ``scale`` make it cheaper, see
            :class:`~kd_detr_mmdet.detectors.teacher_at_work.TeacherAtWork`. ``ap``, its COCO AP in
            percent, is for tools/check_teacher.py alone. Its images are the student's,
            normalised anew where it was trained with other statistics or another colour order; a
            teacher whose config names no ``data_preprocessor`` is taken to have been trained with
            the student's.
        points: Config of the points generator (default ``DistillPointGenerator``), or of the
            ``QueryPairing`` that the paper compares it with.
        distill_loss: Config of the distillation loss.
        blank_content: Content query of both models at points without content; see
            :class:`~kd_detr_mmdet.families.Family`.
        student_content: Content query of the student at the teacher's points; see
            :func:`~kd_detr_mmdet.families.share_content`.
        class_map: For a teacher of other classes; see
            :class:`~kd_detr_mmdet.detectors.class_map.ClassMap`. Names come from the training
            data and from the teacher's checkpoint, at the start of training.
        inherit: Parts of the student that start from the teacher's weights; see
            :func:`~kd_detr_mmdet.detectors.inherit.inherit_weights`. They are copied when weights
            are initialised, after the student's checkpoint: a part that is inherited is the
            teacher's. ``load_from`` and ``--resume`` have the last word.
        interval: Distil in every k-th iteration: the k-th, the 2k-th and so on. In between the
            teacher is not run, and the distillation losses are logged as 0.
        data_preprocessor: Default: the student's.

    Attributes:
        distill_factor: Of every distillation loss. Where it is 0 the teacher is not run. See
            :class:`~kd_detr_mmdet.hooks.KDWarmup`.
        diagnostics: What the distillation loss had to say of the last step beside losses, for
            :class:`~kd_detr_mmdet.hooks.DistillLogHook`; detached scalars by name.

    Raises:
        ConfigError: If a part cannot be built, or student and teacher do not fit each other.
    """

    def __init__(
        self,
        student: DetectorSource,
        teacher: dict,
        points: dict | None = None,
        distill_loss: dict | None = None,
        blank_content: str = "zeros",
        student_content: str = "auto",
        class_map: str | dict[str, str] | None = None,
        inherit: list[str] | None = None,
        interval: int = 1,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        student_cfg = model_config(student, "student")
        preprocessor = _one_preprocessor(student_cfg, data_preprocessor)
        super().__init__(data_preprocessor=preprocessor, init_cfg=init_cfg)
        self.start = student_options(student)
        self.student = MODELS.build(student_cfg)
        with preserved_rng():  # the student's weights are drawn as if there were no teacher
            building, running = _teacher_options(teacher)
            teacher_model = build_teacher(**building)
        object.__setattr__(self, "teacher", teacher_model)
        self._teacher_pixels = TeacherPixels(
            self.data_preprocessor, teacher_model.data_preprocessor
        )
        self.teacher_at_work = TeacherAtWork(teacher_model, self._teacher_pixels.padding, **running)
        self.point_generator = TASK_UTILS.build(
            {"type": "DistillPointGenerator", **copy.deepcopy(points or {})}
        )
        self.distill_loss = MODELS.build(
            {"type": "RebalancedDistillLoss", **copy.deepcopy(distill_loss or {})}
        )
        check_stateless(self.distill_loss)
        self._families = (
            build_family(self.student, blank_content),
            build_family(self.teacher, blank_content),
        )
        share_content(*self._families, student_content)
        self.class_map = ClassMap(class_map)
        check_pair(self)
        if inherit is not None and not isinstance(inherit, (list, tuple)):
            raise ConfigError(f"inherit must be a list of the student's parts, got {inherit!r}")
        self.inherit = list(inherit or ())
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ConfigError(f"interval must be a whole number of at least 1, got {interval!r}")
        self.interval = interval
        self.distill_factor = 1.0
        self.diagnostics: dict[str, Tensor] = {}
        self._last_step = (-1, 0)
        # Checkpoints hold the student's plain keys, wherever this module sits (DDP, EMA).
        self._register_state_dict_hook(_drop_student_prefix)
        self._register_load_state_dict_pre_hook(_add_student_prefix)

    @property
    def student_family(self) -> Family:
        """Family: How to ask the student."""
        return self._families[0]

    @property
    def teacher_family(self) -> Family:
        """Family: How to ask the teacher."""
        return self._families[1]

    def init_weights(self) -> None:
        """Initialise the student: its checkpoint, then what it inherits; not the teacher."""
        super().init_weights()
        start_from(self.student, **self.start)
        inherit_weights(self.student, self.teacher, self.inherit)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """Detection losses of the student, and distillation losses.

        Args:
            batch_inputs: Normalised images, shape (bs, 3, H, W).
            batch_data_samples: Their annotations and meta information.

        Returns:
            dict: The student's own losses, bit for bit, then ``kd_loss_*``.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite.
            RuntimeError: If a model did not look at the points' boxes.
        """
        step = self._next_step()
        if self.distill_factor == 0 or (sum(step) + 1) % self.interval:
            losses = self._student_loss(batch_inputs, batch_data_samples)
            for name in self.point_generator.set_names:  # logged as 0, on every rank
                layers = self.student_family.num_decoder_layers if name != "proposals" else 1
                self._add(losses, self.distill_loss.nothing(name, layers, batch_inputs.device))
            check_finite(losses, batch_data_samples)
            return losses
        # The teacher first: what it needs in between is free before the student's graph grows.
        with preserved_rng(batch_inputs.device):
            teacher_record = self.teacher_look(batch_inputs, batch_data_samples)
        with self.student_family.recording() as student_record:
            losses = self._student_loss(batch_inputs, batch_data_samples)
        with preserved_rng(batch_inputs.device):
            looks: list[Look] = []
            if isinstance(self.point_generator, QueryPairing):
                answers = self._pair(student_record, teacher_record, batch_data_samples)
            else:
                records = student_record, teacher_record
                answers = self._ask(*records, batch_data_samples, step, looks)
            for name, student, teacher, valid in answers:
                self._add(losses, self.distill_loss(student, teacher, name, valid))
        check_finite(losses, batch_data_samples)
        check_looks(looks)
        return losses

    def teacher_look(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Record:
        """The teacher's record of the student's images (bs, 3, H, W), with all its options.

        Its own queries are decoded only if its answers are wanted. What is asked of it later
        belongs into ``teacher_at_work.answering()`` too.
        """
        with torch.no_grad():
            images = self._teacher_pixels(batch_inputs, batch_data_samples)
            shown = self.teacher_at_work.images(images, batch_data_samples)
        with self.teacher_at_work.answering():
            return self.teacher_family.look(*shown, decode=False)

    def _add(self, losses: dict[str, Any], terms: dict[str, Tensor]) -> None:
        """Add one set's terms to the losses; MMEngine sums whatever is called a loss."""
        for name, value in terms.items():
            if "loss" not in name:
                self.diagnostics[name] = value
            else:
                losses[name] = value if self.distill_factor == 1 else value * self.distill_factor

    def _ask(
        self,
        student_record: Record,
        teacher_record: Record,
        samples: SampleList,
        step: tuple[int, int],
        looks: list[Look],
    ) -> Iterator[tuple]:
        """Both models' answers at each set of points: name, student's, teacher's, valid.

        Where they have looked is added to ``looks``.
        """
        teacher, student = self.teacher_family, self.student_family
        with self.teacher_at_work.answering():
            queries = teacher.queries(teacher_record)
        sets = self.point_generator(queries, step)
        if isinstance(self.point_generator, CoordinateSampler):
            boxes = student.boxes(student_record, self.point_generator.boxes)
            truth = [relative_boxes(s.gt_instances.bboxes, s.img_shape) for s in samples]
            sets["roi"] = self.point_generator.sample(boxes, truth, step)
        for name, points in sets.items():
            with self.teacher_at_work.answering():
                if points is queries:  # these it answers by itself
                    target = teacher.own_answer(teacher_record)
                else:
                    target = teacher.answer(teacher_record, points, None, looks)
            target = self.class_map.of_teacher(target)
            labels = self.class_map.student_labels(target.labels)
            answer = student.answer(student_record, points, labels, looks)
            yield name, self.class_map.of_student(answer), target, None
        if self.point_generator.proposals:
            yield self._proposals(student_record, teacher_record)

    def _proposals(self, student_record: Record, teacher_record: Record) -> tuple:
        """Both encoders' proposals, at every place of the memory."""
        with self.teacher_at_work.answering():
            target, valid = self.teacher_family.proposals(teacher_record)
        answer, own_valid = self.student_family.proposals(student_record)
        if valid.shape != own_valid.shape:
            raise ConfigError(
                f"points.proposals: the student's memory has {own_valid.size(1)} places and the "
                f"teacher's {valid.size(1)}: take models with the same feature levels, or "
                "points.proposals=False"
            )
        if self.student_family.proposes == "classes":
            target, answer = self.class_map.of_teacher(target), self.class_map.of_student(answer)
        return "proposals", answer, target, valid & own_valid

    def _pair(
        self, student_record: Record, teacher_record: Record, batch_data_samples: SampleList
    ) -> Iterator[tuple]:
        """Both models' answers at their own queries, paired: name, student's, teacher's, valid."""
        with self.teacher_at_work.answering():
            target = self.teacher_family.own_answer(teacher_record)
        answer = self.student_family.own_answer(student_record)
        for name, pairs in self.point_generator(answer, target, batch_data_samples).items():
            yield name, pairs.student, pairs.teacher, pairs.valid

    def _student_loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        with any_predictions_matched(self.student):
            return self.student.loss(batch_inputs, batch_data_samples)

    def predict(self, *args: Any, **kwargs: Any) -> SampleList:
        """The student's predictions."""
        return self.student.predict(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> tuple:
        return self.student._forward(*args, **kwargs)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """The student's feature maps."""
        return self.student.extract_feat(batch_inputs)

    def train(self, mode: bool = True) -> "KDDETR":
        """Set the student's mode; the teacher stays in eval."""
        self.teacher.eval()
        return super().train(mode)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "KDDETR":
        self.teacher._apply(fn, *args, **kwargs)  # the teacher follows device and dtype
        return super()._apply(fn, *args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "KDDETR":
        memo[id(self.teacher)] = self.teacher
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def _next_step(self) -> tuple[int, int]:
        """Name this step for the points generator: (iteration, number of this call within it).

        MMEngine's iteration makes a resumed run draw as the uninterrupted one; outside a Runner
        the calls are counted.
        """
        iteration = MessageHub.get_current_instance().get_info("iter", 0)
        last, calls = self._last_step
        self._last_step = (iteration, calls + 1 if iteration == last else 0)
        return self._last_step


@contextlib.contextmanager
def any_predictions_matched(detector: nn.Module) -> Iterator[None]:
    """Within the context, a detector's assigners take predictions that are not finite."""
    with contextlib.ExitStack() as stack:
        for module in detector.modules():
            if isinstance(assigner := getattr(module, "assigner", None), BaseAssigner):
                anyway = matching_despite_nan(assigner.assign)
                stack.enter_context(swapped(assigner, "assign", anyway))
        yield


def _teacher_options(teacher: dict) -> tuple[dict, dict]:
    """Options to build the teacher, and to run it."""
    allowed = {*BUILDING, *RUNNING, "ap"}
    if not isinstance(teacher, dict) or not {"config", "checkpoint"} <= set(teacher) <= allowed:
        got = sorted(teacher) if isinstance(teacher, dict) else type(teacher).__name__
        raise ConfigError(
            f"teacher must be dict(config=..., checkpoint=..., strict=True, trust=False, ap=None, "
            f"dtype=None, channels_last=False, compile=False, scale=1.0), got {got}; an untrained "
            "teacher has to be asked for by checkpoint=None"
        )
    if teacher.get("ap") is not None:
        check_ap("teacher.ap", teacher["ap"])
    return tuple(
        {name: teacher[name] for name in names if name in teacher} for names in (BUILDING, RUNNING)
    )


def _one_preprocessor(student: ConfigDict, given: dict | None) -> dict | None:
    """The data preprocessor of student and distillation, which must be one."""
    own = student.get("data_preprocessor")
    if given is None:
        return copy.deepcopy(own)
    if isinstance(given, dict):
        if own is not None and dict(own) != dict(given):
            raise ConfigError(
                "data_preprocessor and student.data_preprocessor differ, but the trained student "
                "must see what it will be tested with: keep one of them"
            )
        student["data_preprocessor"] = copy.deepcopy(given)
    return given


def _drop_student_prefix(module: KDDETR, state: dict, prefix: str, metadata: dict) -> None:
    for key in [k for k in state if k.startswith(prefix + STUDENT)]:
        state[prefix + key[len(prefix + STUDENT) :]] = state.pop(key)
    versions = getattr(state, "_metadata", {})  # module versions, by the same names less the dot
    for key in [k for k in versions if (k + ".").startswith(prefix + STUDENT)]:
        versions[(prefix + (key + ".")[len(prefix + STUDENT) :])[:-1]] = versions.pop(key)


def _add_student_prefix(state: dict, prefix: str, *args: Any) -> None:
    for key in [k for k in state if k.startswith(prefix)]:
        state[prefix + STUDENT + key[len(prefix) :]] = state.pop(key)
