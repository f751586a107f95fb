"""Generated data for the demo and the tests, which needs neither torch nor MMDetection itself."""

from .shapes import SHAPE_CLASSES, generate_shapes, holds_shapes

__all__ = ["SHAPE_CLASSES", "generate_shapes", "holds_shapes"]
