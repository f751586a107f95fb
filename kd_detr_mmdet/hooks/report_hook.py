"""What is about to be distilled, told and checked before the first step."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..detectors import KDDETR
from ..detectors.checks import check_single_class
from ..points import CoordinateSampler, QueryPairing
from ..utils.complexity import gflops, params_m
from ..utils.data import class_lists
from ..utils.errors import ConfigError, brief


@HOOKS.register_module()
class DistillReportHook(Hook):
    """Prints one short summary at the start of a distillation, and compares the class names.

    Raises:
        ConfigError: If the data set's classes are not those that the teacher was trained on, and
            there is no ``class_map``, or it finds no class in common, or one only and a class
            term that is silent about it; or if joined data sets have different classes.
    """

    def before_train(self, runner: Runner) -> None:
        model = getattr(runner.model, "module", runner.model)
        classes = class_lists(getattr(runner.train_dataloader.dataset, "metainfo", {}))
        if len(classes) > 1:
            raise ConfigError(
                "the training data are data sets of different classes, "
                f"{' and '.join(map(brief, classes))}: give all the same metainfo=dict(classes=...)"
            )
        check_classes(model, *classes or [None])
        if runner.rank == 0:
            batch = None
            if runner.val_loop is not None:
                batch = one_test_image(model, runner.val_loop.dataloader)
            runner.logger.info("\n" + summary(model, batch))


def check_classes(model: KDDETR, classes: tuple[str, ...] | None) -> None:
    """Resolve a ``class_map``; without one, refuse a teacher of other or otherwise ordered classes.

    Checkpoints that do not say what they were trained on are let through.
    """
    taught = model.teacher.checkpoint_info["classes"]
    if model.class_map.option is not None:
        if classes is None:
            raise ConfigError("class_map needs the names of the data set's classes: metainfo")
        shared = model.class_map.resolve(tuple(classes), taught)
        if len(shared) == 1:
            check_single_class(model)
        print_log(
            f"distilling {len(shared)} of {len(classes)} classes, those that the teacher knows: "
            + ", ".join(shared),
            logger="current",
        )
        return
    if taught is None or classes is None or tuple(taught) == tuple(classes):
        return
    raise ConfigError(
        f"the teacher was trained on classes {brief(taught)}, but the data set has "
        f"{brief(classes)}: distillation compares scores class by class, so both need the same "
        "classes in the same order (metainfo=dict(classes=...) of the data set), or "
        "model.class_map='names'"
    )


def one_test_image(model: KDDETR, dataloader: object) -> dict | None:
    """The first image of a data loader as the model gets it, or None if there is none."""
    if len(dataloader.dataset) == 0:
        return None
    batch = dataloader.collate_fn([dataloader.dataset[0]])
    return model.data_preprocessor(batch, False)


def summary(model: KDDETR, batch: dict | None = None) -> str:
    """Student, teacher, points and loss in a few lines.

    Args:
        model: What is distilled.
        batch: ``inputs`` and ``data_samples`` to count GFLOPs on; left out if None.
    """

    def size(detector: object) -> str:
        text = f"{type(detector).__name__}, {params_m(detector):.2f} M parameters"
        if batch is None:
            return text
        height, width = batch["inputs"].shape[-2:]
        cost = gflops(detector, batch["inputs"], batch["data_samples"])
        return f"{text}, {cost:.2f} GFLOPs at {width}x{height}"

    info = model.teacher.checkpoint_info
    origin = "no checkpoint: random weights"
    if info["source"] is not None:
        sha = f" (sha256 {info['sha256'][:8]})" if info["sha256"] else ""
        origin = f"{info['source']}{sha}"
    saved = [f"every {model.interval} iterations"] * (model.interval > 1)
    saved += [str(model.teacher_at_work)] * bool(str(model.teacher_at_work))
    notes = [f"           {', '.join(saved)}"] if saved else []
    if params_m(model.teacher) < params_m(model.student):
        notes.append("           smaller than the student: are the two swapped?")
    loss = model.distill_loss
    weights = ", ".join(f"{name} {weight:g}" for name, weight in loss.weights.items())
    for name, weight in loss.set_weights.items():
        weights += f", {name} points x {weight:g}"
    return "\n".join(
        [
            "KD-DETR",
            f"  student  {size(model.student)}",
            f"  teacher  {size(model.teacher)}",
            f"           {origin}",
            *notes,
            f"  points   {points_of(model)}",
            f"  loss     {weights} ({class_term_of(model)}; "
            f"{'foreground rebalance' if loss.rebalance else 'no rebalance'}; "
            f"per {loss.normalize}; teacher layer: {loss.layers})",
        ]
    )


def class_term_of(model: KDDETR) -> str:
    """How this pair's scores are compared, in words."""
    loss, student, teacher = model.distill_loss, model.student_family, model.teacher_family
    if student.has_background and not teacher.has_background:
        return f"{loss.class_bridge} bridge"
    term = "softmax with background" if teacher.has_background else loss.class_term
    return f"{term}, temperature {loss.temperature:g}"


def points_of(model: KDDETR) -> str:
    """The distillation points in words."""
    points = model.point_generator
    if isinstance(points, QueryPairing):
        return f"none shared: own queries paired, {points.strategy}"
    sets = []
    if isinstance(points, CoordinateSampler):
        sets.append(f"{points.max_points} of the student's {points.boxes} boxes")
    if points.specific:
        sets.append(f"{model.teacher_family.num_queries} specific (the teacher's queries)")
    if points.num_general:
        sets.append(f"{points.num_general} general ({points.distribution})")
    if points.proposals:
        sets.append("the encoders' proposals")
    return f"{' + '.join(sets)} per image"
