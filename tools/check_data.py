"""Read every image of a config's data sets before training does: python tools/check_data.py CONFIG.

Tells how many boxes of which class training and evaluation take. Exits with 1 and a line for each
file that is unreadable or of another size than annotated.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdet.utils import register_all_modules

from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.data import check_data, count_boxes, read_images


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Read every image of a config's data sets")
    parser.add_argument("config", help="config file")
    add_common_options(parser)
    return parser.parse_args()


def main() -> int:
    """Print what is wrong.

    Returns:
        0 if nothing is, else 1.
    """
    cfg = read_config(parse_args())
    register_all_modules()
    check_data(cfg)
    for line in count_boxes(cfg):
        print(line)
    number, bad = 0, 0
    for problem in read_images(cfg):
        number += 1
        if problem:
            bad += 1
            print(problem)
    print(f"{number} images read, {bad} with problems")
    return int(bad > 0)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
