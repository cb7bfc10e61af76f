"""The final network as an MLflow model, linked to the parent run.

Saved as a `torch.export` program (MLflow's "pt2"): `mlflow.pytorch.load_model` needs no code of ours to load it, and nothing is pickled.
Input: uint8 images (N, C, H, W); output: logits (N, K), by the same operations as the network, so the same predictions.
All calls go through the client: MLflow's `log_model` would need an active run, which is global to the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.connect import Connection
from orchestrator.tracking.metrics import Value

if TYPE_CHECKING:
    from repsearch.networks import SearchableNetwork

MODEL_NAME = "network"
EXAMPLES = 2
"""Images of the input example; one would make the exported batch size fixed."""


def load_network(run_folder: Path, config: Mapping[str, Any], *, path: str, digest: str) -> tuple[SearchableNetwork, Any]:
    """Return the committed network at `path` of the run's store, in evaluation mode, and example images (uint8 numpy, NCHW)."""
    import store
    from orchestrator.remote import store_of
    from repsearch.config import parse_config
    from repsearch.datasets import load_data
    from repsearch.networks import build_network, load_arrays
    from store.parameters import read_parameters

    parsed = parse_config(config)
    data = load_data(parsed.dataset, seed=parsed.run.seed)
    network = build_network(parsed.network, data, seed=parsed.run.seed, purpose="learned")
    load_arrays(network, read_parameters(store_of(run_folder), store.Reference(path, digest)))
    return network.eval(), data.test.images[:EXAMPLES].numpy()


def save_network(network: SearchableNetwork, example: Any, folder: Path, *, model_id: str, run: str) -> None:
    """Write `network` into `folder` (which must not exist) in MLflow's format."""
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, network.classes))]),
    )
    mlflow.pytorch.save_model(
        network,
        str(folder),
        mlflow_model=Model(model_id=model_id, model_uuid=model_id, run_id=run),
        signature=signature,
        input_example=example,
        serialization_format="pt2",
        # Given, so that MLflow does not load the model in another process to find out.
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "torch", "numpy")],
    )


def log_network(
    connection: Connection,
    run: str,
    network: SearchableNetwork,
    example: Any,
    *,
    round: int,
    digest: str,
    tags: Mapping[str, str],
    metrics: list[Value],
) -> str:
    """Log `network`, learned in `round`, to MLflow run `run`; return the model's id. The same digest is logged once.

    metrics: values of the run at that round, linked to the model.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    client = connection.client
    found = [model for model in _models(connection, run) if model.tags.get("digest") == digest]
    if any(str(model.status) == "READY" for model in found):
        return str(found[0].model_id)
    # One that an earlier attempt left pending is completed.
    model = found[0] if found else client.create_logged_model(
        connection.experiment_id, name=MODEL_NAME, source_run_id=run, tags={**tags, "round": str(round), "digest": digest}
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="repsearch-model-") as temporary:
        folder = Path(temporary) / "model"
        save_network(network, example, folder, model_id=model.model_id, run=run)
        client.log_model_artifacts(model.model_id, str(folder))
    client.log_outputs(run, [LoggedModelOutput(model.model_id, step=round)])
    # The same rows as the run's own, so that the run's history stays as it is.
    linked = [Metric(item.key, item.value, _milliseconds(item.time), item.step, model_id=model.model_id) for item in metrics]
    client.log_batch(run, metrics=linked)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _models(connection: Connection, run: str) -> list[Any]:
    return list(connection.client.search_logged_models([connection.experiment_id], filter_string=f"source_run_id = '{run}'"))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
