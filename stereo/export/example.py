"""How to run a graph in ten lines of Python that need nothing of this package.

The lines go into the graph's sidecar, and from there onto the model card of a bundle. They resize
the images to the graph and the prediction back; a disparity grows with the width of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stereo.tasks import Task


def example(task: Task[Any], graph: Path, facts: Mapping[str, Any]) -> list[str]:
    """Lines of a program that is given the image files and writes `<quantity>.npy`.

    Args:
        task: of the network.
        graph: the file, in the folder where the program runs.
        facts: of the sidecar: `height`, `width`, `batch_size`, `input_mean`, `input_std`,
            `normalizes_inside`.
    """
    height, width = facts["height"], facts["width"]
    batch = facts["batch_size"]
    repeat = f".repeat({batch}, 0)" if batch > 1 else ""
    if facts["normalizes_inside"]:
        pixels = "image"
    else:
        mean, std = facts["input_mean"], facts["input_std"]
        pixels = f"((image / 255 - {mean}) / {std}).astype(np.float32)"
    images = [f'"{name}": read({place})' for place, name in enumerate(task.graph_inputs, start=1)]
    result = task.folder
    scale = f" * (size[0] / {width})" if result == "disparity" else ""
    unit = f"  # {task.quantity}" + (f", {task.unit}" if task.unit else "")
    return [
        "import sys, cv2, numpy as np, onnxruntime",
        "def read(number):  # RGB at the size of the graph",
        "    image = cv2.cvtColor(cv2.imread(sys.argv[number]), cv2.COLOR_BGR2RGB)",
        f"    image = cv2.resize(image, ({width}, {height}))",
        f"    return {pixels}.transpose(2, 0, 1)[None]{repeat}",
        f'session = onnxruntime.InferenceSession("{graph.name}", '
        'providers=["CPUExecutionProvider"])',
        f"output = session.run(None, {{{', '.join(images)}}})[0][0]",
        "size = cv2.imread(sys.argv[1]).shape[1::-1]  # width, height",
        f"{result} = cv2.resize(output.reshape({height}, {width}), size){scale}",
        f'np.save("{result}.npy", {result}){unit}',
    ]
