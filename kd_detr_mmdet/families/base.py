"""What every detector family can do: be recorded while it works, and be asked at points."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmdet.models.detectors import DetectionTransformer
from mmdet.structures import SampleList
from torch import Tensor

from ..points.distill_points import Answer, DistillPoints
from ..utils.errors import ConfigError, check_choice

BLANK_CONTENT = ("zeros", "mean")
FOREIGN_CONTENT = ("auto", "teacher", "blank")
SAME_PLACE = 1e-4  # what a box may lose on its way through a sigmoid and back


class Record(dict):
    """One decoder call: its keyword arguments under ``inputs``, its result under ``outputs``.

    Together they are the whole state that decoding any other query against the same images needs.
    """


class Family(ABC):
    """The only place that knows how one family of detectors stores and decodes its queries.

    Args:
        detector: A detector of the family.
        blank_content: The content of a query at a point that has none. ``'zeros'`` (the authors'
            code) or ``'mean'``, the mean of the detector's own learnt content queries.
        foreign_content: The content of a query at a point that carries another model's content.
            ``'teacher'`` takes it as it is (the widths must agree), ``'blank'`` ignores it, and
            ``'auto'`` is the first where the widths agree and the second where they do not.
    """

    detector_type: type[DetectionTransformer]  # MMDetection's class of the family

    def __init__(
        self,
        detector: DetectionTransformer,
        blank_content: str = "zeros",
        foreign_content: str = "auto",
    ) -> None:
        check_choice("blank_content", blank_content, BLANK_CONTENT)
        check_choice("student_content", foreign_content, FOREIGN_CONTENT)
        self.detector = detector
        self.blank_content = blank_content
        self.foreign_content = foreign_content

    @classmethod
    def supports(cls, detector_type: type) -> bool:
        """Whether detectors of this class decode the way the family file assumes.

        A subclass that prepares or decodes queries its own way (DDQ and Grounding DINO are
        subclasses of DINO) is not of the family.
        """
        return issubclass(detector_type, cls.detector_type) and all(
            getattr(detector_type, name) is getattr(cls.detector_type, name)
            for name in ("forward_transformer", "pre_decoder", "forward_decoder")
        )

    @property
    def embed_dims(self) -> int:
        """int: Width of a content query."""
        return self.detector.embed_dims

    @property
    def num_decoder_layers(self) -> int:
        """int: L of this detector's answers."""
        return self.detector.decoder.num_layers

    @property
    def num_class_scores(self) -> int:
        """int: C of this detector's answers."""
        return self.detector.bbox_head.cls_out_channels

    @property
    def num_queries(self) -> int:
        """int: Number of the detector's own queries."""
        return self.detector.num_queries

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Within the context, remember the last decoder call; the detector works as ever.

        The recorder sits on the instance, not on the class, and is gone afterwards.
        """
        before = vars(self.detector).get("forward_decoder")
        decode = self.detector.forward_decoder
        record = Record()

        def forward_decoder(**inputs: Tensor) -> dict:
            outputs = decode(**inputs)
            record.update(inputs=inputs, outputs=outputs)
            return outputs

        self.detector.forward_decoder = forward_decoder
        try:
            yield record
        finally:
            del self.detector.forward_decoder
            if before is not None:
                self.detector.forward_decoder = before

    def look(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Record:
        """Run the detector over images (bs, 3, H, W) as at inference, and record its decoding."""
        with self.recording() as record:
            features = self.detector.extract_feat(batch_inputs)
            self.detector.forward_transformer(features, batch_data_samples)
        return record

    @abstractmethod
    def queries(self, record: Record) -> DistillPoints:
        """The detector's own decoder queries in a record of inference, as points."""

    @abstractmethod
    def decode(self, record: Record, boxes: Tensor, content: Tensor) -> dict:
        """Decode queries at boxes (bs, M, 4) with content (bs, M, dim), apart from all others."""

    @abstractmethod
    def learnt_content(self) -> Tensor:
        """The detector's learnt content queries, shape (num_queries, dim)."""

    def own_answer(self, record: Record) -> Answer:
        """What the detector said at its own queries in the recorded call; no decoding."""
        return self._read(record["outputs"])

    def answer(self, record: Record, points: DistillPoints) -> Answer:
        """Ask the detector at points, against the images of a record.

        Raises:
            RuntimeError: If the detector did not look at the points' boxes.
        """
        outputs = self.decode(record, points.boxes, self.content_at(points))
        looked_at = outputs["references"][0]
        if looked_at.shape != points.boxes.shape or not torch.allclose(
            looked_at.float(), points.boxes, rtol=0, atol=SAME_PLACE
        ):
            raise RuntimeError(
                f"{type(self.detector).__name__} did not look at the distillation points' boxes: "
                "student and teacher would be compared at different places"
            )
        return self._read(outputs)

    def content_at(self, points: DistillPoints) -> Tensor:
        """The content that this detector's queries get at points: shape (bs, M, embed_dims).

        Raises:
            ConfigError: If another model's content is demanded and its width differs.
        """
        content = points.content
        same_width = content is not None and content.size(-1) == self.embed_dims
        if content is not None and self.foreign_content == "teacher" and not same_width:
            raise ConfigError(
                f"student_content='teacher' needs queries of one width, but the teacher's have "
                f"{content.size(-1)} channels and the student's {self.embed_dims}: use "
                "student_content='blank' or 'auto'"
            )
        if same_width and self.foreign_content != "blank":
            return content
        batch_size, num_points = points.boxes.shape[:2]
        if self.blank_content == "zeros":
            return points.boxes.new_zeros(batch_size, num_points, self.embed_dims)
        return self.learnt_content().detach().mean(0).expand(batch_size, num_points, -1)

    def _read(self, outputs: dict) -> Answer:
        return Answer(*self.detector.bbox_head(**outputs))


def unsupported(detector: object, known: list[str]) -> ConfigError:
    """The error for a detector that no family file covers."""
    return ConfigError(
        f"{type(detector).__name__} cannot be distilled: KDDETR knows {', '.join(known)}; add a "
        "file to kd_detr_mmdet/families for another one"
    )
