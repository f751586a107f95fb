"""Which of the teacher's classes teach which of the student's."""

import torch
from torch import Tensor

from ..points.distill_points import Answer
from ..utils.errors import ConfigError, brief


class ClassMap:
    """Picks the classes that both models know out of their answers.

    Args:
        option: None: both have the same classes in the same order. ``'names'``: classes of one
            name correspond. A dict: the student's class names to the teacher's, e.g.
            ``dict(pedestrian='person')``. What a model knows alone is not distilled.

    Attributes:
        pairs: Index of the student and of the teacher for each shared class; None as long as the
            classes' names are not known (:meth:`resolve`), or where all correspond.

    Raises:
        ConfigError: If the option is none of these.
    """

    def __init__(self, option: str | dict[str, str] | None = None) -> None:
        if not (option is None or option == "names" or (isinstance(option, dict) and option)):
            raise ConfigError(
                "class_map must be None, 'names' or a dict of the student's class names to the "
                f"teacher's, got {option!r}"
            )
        self.option = dict(option) if isinstance(option, dict) else option
        self.pairs: list[tuple[int, int]] | None = None

    def resolve(self, student: tuple[str, ...], teacher: tuple[str, ...] | None) -> list[str]:
        """Find the shared classes by their names.

        Args:
            student: Names of the student's classes, in its order.
            teacher: Those of the teacher; None if its checkpoint does not tell.

        Returns:
            list: The student's names of the shared classes.

        Raises:
            ConfigError: If a name is unknown, no class is shared, or two share one of the teacher.
        """
        if teacher is None:
            raise ConfigError(
                "class_map needs the names of the teacher's classes, and its checkpoint does not "
                "tell them: train with a checkpoint that mmdet 3 wrote, or make the classes equal"
            )
        wanted = self.option if isinstance(self.option, dict) else {n: n for n in student}
        if isinstance(self.option, dict):
            for name, of_teacher in wanted.items():
                for given, known, whose in (
                    (name, student, "the data set"),
                    (of_teacher, teacher, "the teacher"),
                ):
                    if given not in known:
                        raise ConfigError(
                            f"class_map names {given!r}, but {whose} knows {brief(known)}"
                        )
        shared = [name for name in student if wanted.get(name) in teacher]
        if not shared:
            raise ConfigError(
                f"no class of the data set {brief(student)} is among the teacher's "
                f"{brief(teacher)}: there is nothing to distil. Name what corresponds by "
                "class_map=dict(student_name='teacher name')"
            )
        taught = [wanted[name] for name in shared]
        twice = next((name for name in taught if taught.count(name) > 1), None)
        if twice is not None:
            pupils = [name for name in shared if wanted[name] == twice]
            raise ConfigError(
                f"class_map gives the teacher's {twice!r} to {' and '.join(map(repr, pupils))}: "
                "each would be taught wherever another of them is. Name one of them"
            )
        self.pairs = [(student.index(name), teacher.index(wanted[name])) for name in shared]
        return shared

    def of_teacher(self, answer: Answer) -> Answer:
        """The teacher's answer on the shared classes, in the order of :attr:`pairs`.

        Of a softmax all others join the background, so that each shared class keeps its
        probability.
        """
        return self._pick(answer, 1)

    def of_student(self, answer: Answer) -> Answer:
        """The student's answer on the shared classes; all others as :meth:`of_teacher` has them."""
        return self._pick(answer, 0)

    def student_labels(self, labels: Tensor) -> Tensor:
        """From indices of shared classes to the student's own."""
        if self.pairs is None:
            return labels
        return labels.new_tensor([pair[0] for pair in self.pairs])[labels]

    def _pick(self, answer: Answer, side: int) -> Answer:
        if self.option is None:
            return answer
        if self.pairs is None:
            raise ConfigError(
                "class_map needs the classes' names: train with tools/train.py, or call "
                "model.class_map.resolve(student_classes, teacher_classes) first"
            )
        scores = answer.cls_scores
        shared = [pair[side] for pair in self.pairs]
        picked = scores[..., shared]
        if answer.has_background:
            others = [column for column in range(scores.size(-1)) if column not in shared]
            none_of_them = scores[..., others].logsumexp(-1, keepdim=True)
            picked = torch.cat([picked, none_of_them], -1)
        return answer._replace(cls_scores=picked)
