"""A trainer for studies: fits a line to points by gradient descent. See docs/trainable.md."""

# ruff: noqa: ANN001, ANN201, D101, D102, D103 - kept short; the page explains each part
import json
import time
from collections import namedtuple
from pathlib import Path

import jsonschema
import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
Objective = namedtuple("Objective", "metric direction unit")
Result = namedtuple("Result", "status metrics artifacts detail", defaults=({}, {}, ""))


class LineFit:
    schema_dir = HERE / "schemas"

    def objective(self, model):
        return Objective("val/rmse", "minimize", "")

    def template(self, model, action):
        return yaml.safe_load((HERE / "spec_templates" / model / f"{action}.yaml").read_text())

    def embedded_data(self, model, directory, profile="cpu"):
        return {split: f"Points:{HERE / split}.txt" for split in ("train", "val")}

    def run(self, action, spec, results_dir, report=None):
        schema = json.loads((HERE / "schemas" / "line" / "train.schema.json").read_text())
        faults = [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(spec)]
        if faults:
            return Result("invalid_spec", detail="\n".join(faults))
        sources = [spec["dataset"][split][0] for split in ("train", "val")]
        data = [np.loadtxt(source["data_file"], ndmin=2) for source in sources]
        if action == "check":
            return Result("ok", {"samples_train": len(data[0]), "samples_val": len(data[1])})
        return fit(spec["train"], *data, results_dir, report)


def fit(train, points, unseen, directory, report):
    line, begin = np.random.default_rng(train["seed"]).normal(size=2), 0
    if train["resume_training_checkpoint_path"]:
        begin, *line = json.loads(Path(train["resume_training_checkpoint_path"]).read_text())
    for epoch in range(begin + 1, train["num_epochs"] + 1):
        began, checkpoint = time.perf_counter(), directory / f"epoch_{epoch:03d}.json"
        error = np.polyval(line, points[:, 0]) - points[:, 1]
        slope = error @ np.vander(points[:, 0], 2) / len(points)
        line = line - train["lr"] * slope / (1 + train["lr_decay"] * epoch)
        rmse = float(np.sqrt(np.mean((np.polyval(line, unseen[:, 0]) - unseen[:, 1]) ** 2)))
        checkpoint.write_text(json.dumps([epoch, *line]))
        scores = {"val/rmse": rmse, "seconds": time.perf_counter() - began}
        if report and report(epoch, scores, checkpoint):
            break
    return Result("ok", {"val/rmse": rmse}, {"checkpoint": checkpoint})
