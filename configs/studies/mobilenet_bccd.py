# Points with the project's defaults and pretrained backbones on real images, for a GPU.
title = "Pretrained MobileNetV2: DINO on BCCD"
seeds = [0, 1, 2, 3, 4]

teachers = dict(dino=dict(config="configs/mobilenet/dino_teacher.py"))

_longer = {"train_cfg.max_epochs": 48, "param_scheduler.1.milestones": [38]}


def _distilled(title, **options):
    return dict(
        title=title,
        config="configs/mobilenet/kd-detr_dino.py",
        options=options,
        teacher="dino",
        baseline="alone",
        same_time=["alone", "alone_longer"],
    )


runs = dict(
    alone=dict(title="alone", config="configs/mobilenet/dino_alone.py"),
    alone_longer=dict(
        title="alone, twice as long", config="configs/mobilenet/dino_alone.py", options=_longer
    ),
    both=_distilled("general and specific points"),
    specific=_distilled("specific points", **{"model.points.num_general": 0}),
)
