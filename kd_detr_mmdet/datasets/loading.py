"""Images that cannot be read, in runs that must not end for one of them."""

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log


@TRANSFORMS.register_module()
class LoadImageOrAnother(LoadImageFromFile):
    """MMDetection's ``LoadImageFromFile``, but another image steps in for one that cannot be read.

    Each time a warning names the file. The data set draws the other one at random, and gives up
    after its ``max_refetch`` (1000) in a row. For training alone: evaluation must not lose images,
    and a data set with ``test_mode=True`` refuses.
    """

    def transform(self, results: dict) -> dict | None:
        try:
            return super().transform(results)
        except Exception as error:  # files fail in many ways: OSError, OpenCV's, an assertion
            reason = (str(error).strip().splitlines() or [""])[-1]
            print_log(
                f"another image steps in for {results['img_path']!r}, which cannot be read "
                f"({type(error).__name__}: {reason})",
                logger="current",
                level=30,
            )
            return None
