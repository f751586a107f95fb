"""The distillation loss with foreground rebalance (paper, section 3.5)."""

from functools import partial

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..points.distill_points import Answer
from ..utils.errors import ConfigError, check_choice, check_weight
from .class_bridge import CLASS_BRIDGES, bridged_divergence

CLASS_TERMS = ("bernoulli", "softmax")
LAYERS = ("last", "one_to_one")
NORMALIZERS = ("weight", "points", "images")
# Half of what one float32 IoU can resolve of a box of one pixel in 10,000 x 10,000.
AREA_EPS = 1e-9


@MODELS.register_module()
class RebalancedDistillLoss(nn.Module):
    r"""How far the student's answers are from the teacher's at the same points.

    .. math::
        L = \frac{1}{Z} \sum_i w_i \left[ \lambda_{cls} KL(c^t_i \| c^s_i)
            + \lambda_{L1} |b^t_i - b^s_i|_1 / 4
            + \lambda_{GIoU} (1 - GIoU(b^t_i, b^s_i)) \right],
        \quad w_i = \max_c p_t(c \mid q_i)

    ``w`` is the teacher's own confidence at its last layer, detached, so that points on the
    background, which are most of them, do not drown the others. Every decoder layer of the student
    has its own terms.

    Args:
        class_term: ``'bernoulli'``: KL between the two models' per-class sigmoid probabilities,
            summed over the classes, which teaches absolute confidence; ``'softmax'``: KL between
            softmax distributions over the classes (the authors' code), which ignores a constant
            added to every logit.
        class_bridge: The class term where the student alone has a background (Faster R-CNN); see
            :func:`~kd_detr_mmdet.losses.class_bridge.bridged_divergence`. It has no temperature.
        temperature: Both logits are divided by it, and the class term is multiplied by its square.
            None means 1 for ``'bernoulli'`` and 10 for ``'softmax'`` (the authors' code).
        cls_weight: Factor of the class term. The defaults of these three are the authors' (code).
        l1_weight: Factor of the L1 term, the mean over the 4 normalised coordinates.
        giou_weight: Factor of the GIoU term.
        set_weights: Factor for a set of points by name, e.g. ``dict(general=0.5)``; 1 if absent.
        rebalance: False sets every ``w`` to 1.
        layers: ``'last'``: every student layer learns from the teacher's last layer (the authors'
            code); ``'one_to_one'``: layer by layer, for decoders of equal depth.
        normalize: What ``Z`` is. ``'weight'``: the sum of ``w``; ``'points'``: the number of
            points; ``'images'``: the number of images. Each is counted over all ranks, so the
            gradient for given images is the same however they are spread over ranks.

    Raises:
        ConfigError: If an argument is out of range, or no term is left.
    """

    def __init__(
        self,
        class_term: str = "bernoulli",
        class_bridge: str = "foreground",
        temperature: float | None = None,
        cls_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        set_weights: dict[str, float] | None = None,
        rebalance: bool = True,
        layers: str = "last",
        normalize: str = "weight",
    ) -> None:
        super().__init__()
        check_choice("distill_loss.class_term", class_term, CLASS_TERMS)
        check_choice("distill_loss.class_bridge", class_bridge, CLASS_BRIDGES)
        check_choice("distill_loss.layers", layers, LAYERS)
        check_choice("distill_loss.normalize", normalize, NORMALIZERS)
        if not isinstance(rebalance, bool):
            raise ConfigError(f"distill_loss.rebalance must be True or False, got {rebalance!r}")
        if temperature is None:
            temperature = 1.0 if class_term == "bernoulli" else 10.0
        check_weight("distill_loss.temperature", temperature)
        if temperature == 0:
            raise ConfigError("distill_loss.temperature must be above 0")
        if set_weights is not None and not isinstance(set_weights, dict):
            raise ConfigError(f"distill_loss.set_weights must be a dict, got {set_weights!r}")
        self.weights = dict(cls=cls_weight, l1=l1_weight, giou=giou_weight)
        self.set_weights = dict(set_weights or {})
        for name, weight in self.weights.items():
            check_weight(f"distill_loss.{name}_weight", weight)
        if not any(self.weights.values()):
            raise ConfigError(
                "distill_loss leaves nothing to distil: set cls_weight, l1_weight or giou_weight "
                "above 0, or train the student's own config without KDDETR"
            )
        for name, weight in self.set_weights.items():
            check_weight(f"distill_loss.set_weights[{name!r}]", weight)
        self.class_term = class_term
        self.class_bridge = class_bridge
        self.temperature = float(temperature)
        self.rebalance = rebalance
        self.layers = layers
        self.normalize = normalize

    def forward(
        self, student: Answer, teacher: Answer, name: str, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compare two answers to one set of points.

        Args:
            student: Logits (L_s, bs, M, C) and boxes (L_s, bs, M, 4) of every decoder layer.
            teacher: The same of the teacher, with L_t layers.
            name: The set's name, for the keys.
            valid: Which points count, shape (bs, M), where images have fewer than M. None: all.

        Returns:
            dict: Scalars ``kd_loss_<name>_<cls|l1|giou>`` for the student's last decoder layer and
            ``d<i>.kd_loss_<name>_...`` for layer i before it. Float32 under any autocast. For the
            log alone, without gradient: the same terms before their weights, ``kd_raw_<name>_...``,
            and the points' mean ``w``, ``kd_foreground_<name>``.
        """
        # One cast here, so that no KL, IoU or sum runs in half precision under AMP.
        student_logits, student_boxes = (t.float() for t in student[:2])
        teacher_logits, teacher_boxes = (t.detach().float() for t in teacher[:2])
        # A probability of exactly 0 would make 0 * inf of the KL; 1e4 is 0 to float32 as well.
        teacher_logits = teacher_logits.clamp(-1e4, 1e4)
        weight = self.foreground_weight(teacher_logits[-1], teacher.has_background)
        if valid is None:
            valid = weight.new_ones(weight.shape, dtype=torch.bool)
        weight = weight * valid
        if self.layers == "last":
            teacher_logits, teacher_boxes = teacher_logits[-1:], teacher_boxes[-1:]

        if student.has_background and not teacher.has_background:
            class_divergence = partial(bridged_divergence, bridge=self.class_bridge)
        else:
            class_divergence = partial(self.class_divergence, has_background=teacher.has_background)
        terms = dict(
            cls=class_divergence(student_logits, teacher_logits),
            l1=(student_boxes - teacher_boxes).abs().mean(-1),
            giou=1 - elementwise_giou(student_boxes, teacher_boxes),
        )
        normalizer = self.normalizer(weight, valid)
        raw = {term: (value * weight).sum(dim=(1, 2)) / normalizer for term, value in terms.items()}
        return self._named(name, raw, weight.sum() / valid.sum().clamp(min=1))

    def nothing(self, name: str, num_layers: int, device: torch.device) -> dict[str, Tensor]:
        """What :meth:`forward` returns, but 0: for a step without distillation.

        Args:
            name: The set's name.
            num_layers: L_s, of the student.
            device: Where the zeros are wanted.
        """
        zeros = torch.zeros(num_layers, device=device)
        return self._named(name, dict.fromkeys(self.weights, zeros), zeros[0])

    def _named(self, name: str, raw: dict[str, Tensor], foreground: Tensor) -> dict[str, Tensor]:
        """Unweighted terms (L_s,) and the mean weight of a set's points, by their names."""
        scale = self.set_weights.get(name, 1.0)
        losses, details = {}, {f"kd_foreground_{name}": foreground}
        for term, values in raw.items():
            weighted = values * (scale * self.weights[term])
            for layer, (loss, value) in enumerate(zip(weighted, values.detach())):
                prefix = "" if layer == len(values) - 1 else f"d{layer}."
                losses[f"{prefix}kd_loss_{name}_{term}"] = loss
                details[f"{prefix}kd_raw_{name}_{term}"] = value
        return {**losses, **details}

    def foreground_weight(self, teacher_logits: Tensor, has_background: bool = False) -> Tensor:
        """``w_i = max_c p_t(c | q_i)`` for logits (bs, M, C): shape (bs, M), in [0, 1].

        The maximum is over the object classes, never the background.
        """
        if not self.rebalance:
            return teacher_logits.new_ones(teacher_logits.shape[:-1])
        if has_background:
            return teacher_logits.softmax(-1)[..., :-1].amax(-1)
        return teacher_logits.sigmoid().amax(-1)

    def class_divergence(
        self, student: Tensor, teacher: Tensor, has_background: bool = False
    ) -> Tensor:
        """``KL(teacher || student)`` of logits (L, bs, M, C), summed over C: (L, bs, M), >= 0."""
        student, teacher = student / self.temperature, teacher / self.temperature
        if has_background or self.class_term == "softmax":
            kl = F.kl_div(
                student.log_softmax(-1),
                teacher.log_softmax(-1).expand_as(student),
                log_target=True,
                reduction="none",
            )
        else:
            probability = teacher.sigmoid()
            kl = probability * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (
                1 - probability
            ) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return kl.sum(-1) * self.temperature**2

    def normalizer(self, weight: Tensor, valid: Tensor) -> Tensor:
        """``Z`` for this rank: the mean over ranks, since DDP averages the ranks' gradients."""
        if self.normalize == "weight":
            total = weight.sum()
        elif self.normalize == "points":
            total = valid.sum().to(weight.dtype)
        else:
            total = weight.new_full((), weight.size(0))
        # A tiny floor, not mmdet's 1: a floor that bites would bite at another sum on N ranks.
        return reduce_mean(total).clamp(min=1e-6 / get_world_size())

    def extra_repr(self) -> str:
        return (
            f"class_term={self.class_term!r}, temperature={self.temperature}, "
            f"weights={self.weights}, set_weights={self.set_weights}, "
            f"rebalance={self.rebalance}, layers={self.layers!r}, normalize={self.normalize!r}"
        )


def elementwise_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """GIoU of each box with its own target, cxcywh (..., 4), broadcast: shape (...), in [-1, 1]."""
    boxes, targets = torch.broadcast_tensors(boxes, targets)
    return bbox_overlaps(
        bbox_cxcywh_to_xyxy(boxes),
        bbox_cxcywh_to_xyxy(targets),
        mode="giou",
        is_aligned=True,
        eps=AREA_EPS,
    )
