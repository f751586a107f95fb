"""The module that takes the place of ``mmcv._ext`` where mmcv has no compiled operators."""

import importlib
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from .deformable_attention import ms_deform_attn_backward, ms_deform_attn_forward
from .focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from .nms import nms
from .roi_align import roi_align_backward, roi_align_forward
from .torchvision_ops import torchvision_ops

EXTENSION = "mmcv._ext"
# pip keeps the wheel that it built without operators, hence --no-cache-dir.
COMPILE_COMMAND = (
    "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "
    "--no-binary onedl-mmcv -c requirements.txt onedl-mmcv"
)
OPERATORS: tuple[Callable, ...] = (
    nms,
    roi_align_forward,
    roi_align_backward,
    ms_deform_attn_forward,
    ms_deform_attn_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
)


class StandIn(ModuleType):
    """Has every operator by name, as mmcv asks at import, and raises when a missing one is called.

    Args:
        reason: Why there are no compiled operators.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(EXTENSION, "Stand-in of kd_detr_mmdet for mmcv's compiled operators.")
        # Without a spec, importlib.util.find_spec() raises. Without a loader, mmcv's own
        # check_ops_exist() says rightly that there are no compiled operators.
        self.__spec__ = ModuleSpec(EXTENSION, loader=None, origin="kd_detr_mmdet")
        self._reason = reason
        for operator in OPERATORS:
            setattr(self, operator.__name__, operator)

    @staticmethod
    def get_compiler_version() -> str:
        return "not compiled"

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return "not compiled"

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("_"):  # no operator, but Python or a debugger asking
            raise AttributeError(f"module {EXTENSION!r} has no attribute {name!r}")

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's operator '{name}' is not available: {self._reason}. Use a model without "
                f"it, or {_remedy()}"
            )

        missing.__name__ = missing.__qualname__ = name
        return missing


def _remedy() -> str:
    try:
        metadata.version("onedl-mmcv")
    except metadata.PackageNotFoundError:  # not known to compile on a PyTorch this new
        return "an mmcv whose operators were compiled for this PyTorch"
    return f"compile mmcv (20 minutes or more): {COMPILE_COMMAND}"


def provide_mmcv_ops() -> None:
    """Make ``mmcv._ext`` importable: the compiled operators if there are any, else the stand-in.

    Call it before anything imports ``mmcv.ops`` or ``mmdet.models``. Further calls do nothing.

    Raises:
        ImportError: mmcv is not installed.
    """
    try:
        import mmcv  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "mmcv":
            raise
        raise ImportError(
            "mmcv is not installed. Install what is tested: pip install -r requirements.txt"
        ) from error
    try:
        importlib.import_module(EXTENSION)  # also finds the stand-in of an earlier call
    except ModuleNotFoundError:
        sys.modules[EXTENSION] = StandIn("this mmcv was installed without compiled operators")
    except ImportError as error:  # as a rule, compiled for another version of PyTorch
        sys.modules[EXTENSION] = StandIn(f"mmcv's compiled operators do not load ({error})")


def operator_sources() -> dict[str, str]:
    """Where each operator comes from.

    Returns:
        For 'nms', 'roi_align', 'ms_deform_attn', 'sigmoid_focal_loss' and 'others' one of
        'compiled mmcv', 'torchvision', 'kd_detr_mmdet (PyTorch)' and 'missing: <why>'. torchvision
        has no maximum in RoIAlign and no offset in NMS; the stand-in's own code then fills in.
    """
    extension = sys.modules.get(EXTENSION)
    names = ("nms", "roi_align", "ms_deform_attn", "sigmoid_focal_loss", "others")
    if extension is None:
        return dict.fromkeys(names, "missing: provide_mmcv_ops() was not called")
    if not isinstance(extension, StandIn):
        return dict.fromkeys(names, "compiled mmcv")
    own = "kd_detr_mmdet (PyTorch)"
    sources = dict.fromkeys(names, own)
    if torchvision_ops() is not None:
        sources["nms"] = sources["roi_align"] = "torchvision"
    sources["others"] = f"missing: {extension._reason}"
    return sources
