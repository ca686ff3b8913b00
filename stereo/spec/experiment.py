"""The whole experiment: its sections, the verbs and what each verb needs.

One combined spec may serve every verb; the sections of other verbs are checked but unused.
"""

from __future__ import annotations

from dataclasses import dataclass

from stereo.spec.data import DatasetSpec
from stereo.spec.deploy import EngineSpec, EvaluateSpec, ExportSpec, InferenceSpec
from stereo.spec.fields import MISSING, spec_field
from stereo.spec.networks import FastFoundationStereoSpec
from stereo.spec.train import TrainSpec


@dataclass
class ExperimentSpec:
    """An experiment with FastFoundationStereo."""

    results_dir: str = spec_field(MISSING, "Root directory for everything the run writes")
    model: FastFoundationStereoSpec = spec_field(
        FastFoundationStereoSpec, "Network architecture settings"
    )
    dataset: DatasetSpec = spec_field(DatasetSpec, "All data settings of the experiment")
    train: TrainSpec = spec_field(TrainSpec, "Settings of the train action")
    evaluate: EvaluateSpec = spec_field(EvaluateSpec, "Settings of the evaluate action")
    inference: InferenceSpec = spec_field(InferenceSpec, "Settings of the inference action")
    export: ExportSpec = spec_field(ExportSpec, "Settings of the ONNX export action")
    gen_trt_engine: EngineSpec = spec_field(EngineSpec, "Settings of the TensorRT engine build")
