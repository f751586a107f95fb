"""What can be distilled: a student, a teacher, points and a loss that fit each other."""

from typing import TYPE_CHECKING

from torch import nn

from ..families import TwoStageFamily
from ..points import CoordinateSampler, QueryPairing
from ..utils.errors import ConfigError, brief

if TYPE_CHECKING:
    from .kddetr import KDDETR


def check_pair(model: "KDDETR") -> None:
    """Refuse a student and a teacher whose answers cannot be compared.

    Raises:
        ConfigError: With what differs and what to do.
    """
    student, teacher = model.student_family, model.teacher_family
    if isinstance(teacher, TwoStageFamily):
        raise ConfigError(
            f"{type(teacher.detector).__name__} cannot teach: KDDETR asks a detection transformer "
            "at the student's places; take one of mmdet's DETRs as teacher"
        )
    if teacher.has_background and not student.has_background:
        raise ConfigError(
            f"{type(teacher.detector).__name__} has one softmax over the classes and the "
            f"background, and {type(student.detector).__name__} a sigmoid per class: their scores "
            f"cannot be compared. Pair {type(teacher.detector).__name__} with its like"
        )
    counts = [f.num_class_scores - f.has_background for f in (student, teacher)]
    if counts[0] != counts[1] and model.class_map.option is None:
        raise ConfigError(
            f"student and teacher must know the same classes, but the student scores "
            f"{counts[0]} and the teacher {counts[1]}: set bbox_head.num_classes of both to the "
            "data set's, or class_map='names' to distil the classes that both know"
        )
    check_class_options(model)
    if counts[0] == 1:
        check_single_class(model)
    if isinstance(model.point_generator, QueryPairing):
        check_queries(model)
    else:
        check_places(model)
    names = model.point_generator.set_names
    for name in model.distill_loss.set_weights:
        if name not in names:
            raise ConfigError(
                f"distill_loss.set_weights names {name!r}, but the points' sets are "
                f"{' and '.join(map(repr, names))}"
            )
    if not any(model.distill_loss.set_weights.get(name, 1.0) for name in names):
        raise ConfigError(
            f"distill_loss.set_weights leaves nothing to distil: {model.distill_loss.set_weights} "
            "has 0 for every set of points; raise one, or train the student's own config without "
            "KDDETR"
        )
    depths = student.num_decoder_layers, teacher.num_decoder_layers
    if model.distill_loss.layers == "one_to_one" and depths[0] != depths[1]:
        raise ConfigError(
            f"distill_loss.layers='one_to_one' needs decoders of one depth, but the student has "
            f"{depths[0]} layers and the teacher {depths[1]}: use layers='last'"
        )


def check_stateless(loss: nn.Module) -> None:
    """Refuse a loss with weights of its own: checkpoints are the plain student's, without them.

    Raises:
        ConfigError: With the weights' names.
    """
    if kept := list(loss.state_dict()):
        raise ConfigError(
            f"{type(loss).__name__} has weights of its own ({brief(kept)}), and checkpoints hold "
            "the student's alone, so that a resumed run would begin with new ones: make a buffer "
            "persistent=False, and keep what is learnt out of the distillation loss"
        )


def check_class_options(model: "KDDETR") -> None:
    """Refuse options of the class term that would change nothing for this pair.

    Raises:
        ConfigError: With the option that counts.
    """
    loss = model.distill_loss  # or one of the user's own, without these options
    bridged = model.student_family.has_background and not model.teacher_family.has_background
    names = type(model.student).__name__, type(model.teacher).__name__
    if bridged and (
        getattr(loss, "class_term", "bernoulli") != "bernoulli"
        or getattr(loss, "temperature", 1.0) != 1.0
    ):
        raise ConfigError(
            f"distill_loss.class_term and temperature change nothing here: {names[0]} has one "
            f"softmax over the classes and the background, {names[1]} a sigmoid per class, and "
            "distill_loss.class_bridge says how they are compared: leave the two out"
        )
    if not bridged and getattr(loss, "class_bridge", "foreground") != "foreground":
        raise ConfigError(
            f"distill_loss.class_bridge changes nothing here: it is for a student with one softmax "
            f"over the classes and the background and a teacher with a sigmoid per class, and "
            f"{names[0]} and {names[1]} score alike: leave it out, and set class_term"
        )


def check_single_class(model: "KDDETR") -> None:
    """Refuse a class term that asks which class it is where there is one only: it is always 0.

    Raises:
        ConfigError: With what to set instead.
    """
    if model.teacher_family.has_background:
        return
    if model.student_family.has_background:
        option, silent, others = "class_bridge", "foreground", "'posterior' or 'binary'"
    else:
        option, silent, others = "class_term", "softmax", "'bernoulli'"
    if teaches_classes_by(model, option, silent):
        raise ConfigError(
            f"distill_loss.{option}={silent!r} teaches which class an object is of, and there is "
            f"one class only: use {others}, or cls_weight=0 to distil boxes alone"
        )


def teaches_classes_by(model: "KDDETR", option: str, value: str) -> bool:
    """Whether the distillation loss has a class term, and its option this value."""
    loss = model.distill_loss  # or one of the user's own, without these options
    weighted = getattr(loss, "weights", {}).get("cls")
    return bool(weighted) and getattr(loss, option, None) == value


def check_queries(model: "KDDETR") -> None:
    """Refuse to pair queries that a model does not have.

    Raises:
        ConfigError: With the reason and what to do.
    """
    if model.class_map.option is not None:
        raise ConfigError(
            "points.type='QueryPairing' matches both models to the same ground truth: it needs "
            "equal classes, without class_map"
        )
    if isinstance(model.student_family, TwoStageFamily):
        raise ConfigError(
            f"points.type='QueryPairing' pairs queries, and {type(model.student).__name__} has "
            "none: use 'CoordinateSampler' or 'DistillPointGenerator'"
        )


def check_places(model: "KDDETR") -> None:
    """Refuse points at which not both models can be asked.

    Raises:
        ConfigError: With the reason and what to do.
    """
    student, teacher = model.student_family, model.teacher_family
    if isinstance(model.point_generator, CoordinateSampler) and not isinstance(
        student, TwoStageFamily
    ):
        raise ConfigError(
            f"points.type='CoordinateSampler' takes the boxes of a two-stage student, and "
            f"{type(model.student).__name__} is none: use 'DistillPointGenerator'"
        )
    proposed = [family.proposes for family in (student, teacher)]
    if model.point_generator.proposals and (None in proposed or proposed[0] != proposed[1]):
        raise ConfigError(
            f"points.proposals compares what two encoders propose, which "
            f"{type(model.student).__name__} and {type(model.teacher).__name__} do not do alike: "
            "it is for pairs of DINO and DDQ-DETR, or of two-stage Deformable DETR"
        )
    one_score = model.point_generator.proposals and student.proposes == "object"
    if one_score and teaches_classes_by(model, "class_term", "softmax"):
        raise ConfigError(
            f"distill_loss.class_term='softmax' compares classes with each other, and of what "
            f"{type(model.student).__name__} proposes there is one score only, for any object: "
            "use 'bernoulli', or points.proposals=False"
        )
    if model.point_generator.proposals and model.teacher_at_work.scale != 1:
        raise ConfigError(
            "points.proposals compares both models place by place of images of one size: leave "
            "teacher.scale out"
        )
    placeless = [f.detector for f in (student, teacher) if f.box_dims == 0]
    if not placeless:
        return
    name = type(placeless[0]).__name__
    if "general" in model.point_generator.set_names:
        raise ConfigError(
            f"{name}'s queries have no coordinates, so it cannot be asked at general points: set "
            "points.num_general=0"
        )
    if type(student) is not type(teacher) or not student.takes_content:
        models = [type(family.detector).__name__ for family in (teacher, student)]
        if models[0] == models[1]:
            models = [f"{name} of width {family.content_dims}" for family in (teacher, student)]
        raise ConfigError(
            f"{name}'s queries have no coordinates, so it can share the teacher's queries with a "
            f"{name} of the same width only, and with student_content='auto' or 'teacher'; here "
            f"the teacher is a {models[0]} and the student a {models[1]}"
        )
