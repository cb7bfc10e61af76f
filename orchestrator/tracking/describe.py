"""Configuration, dataset and tags of a run in MLflow's terms; pure, except that building dataset inputs imports MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PARAM_LENGTH = 6000
"""Longest value of a param that MLflow keeps."""
DIGEST_LENGTH = 36
"""Longest digest of a dataset that MLflow keeps."""
_CUT = " ... (cut; whole in config.json)"


def flat_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the configuration as dotted keys and texts; a value too long for MLflow is cut and says so."""
    params: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            params.update(flat_params(value, f"{prefix}{key}."))
        else:
            # An empty text is no value to MLflow's server.
            text = value if isinstance(value, str) and value else json.dumps(value)
            params[prefix + key] = text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - len(_CUT)] + _CUT
    return params


def run_tags(started: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that parent and children of a run share, from its `run_started` record."""
    from repsearch import __version__

    tags = {**started["tags"], "run_id": started["run_id"], "term": started["term"], "repsearch_version": __version__}
    return {key: str(value) for key, value in tags.items()}


def dataset_inputs(started: Mapping[str, Any]) -> list[Any]:
    """Return one MLflow dataset input per split; name and digest differ by split, as MLflow keeps one context per dataset and run."""
    import numpy as np
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import Schema, TensorSpec

    facts = started["dataset"]
    images = TensorSpec(np.dtype(np.uint8), (-1, *facts["input_shape"]), "images")
    labels = TensorSpec(np.dtype(np.int64), (-1,), "labels")
    schema = TensorDatasetSchema(features=Schema([images]), targets=Schema([labels]))
    source = CodeDatasetSource(tags={"repsearch.dataset": json.dumps(started["config"].get("dataset", {}))})
    inputs = []
    for split in (split for split in ("train", "validation", "test", "fitness") if split in facts):
        dataset = Dataset(
            name=f"{facts['name']}-{split}",
            digest=facts["digest"][:DIGEST_LENGTH],
            source_type="code",
            source=source.to_json(),
            schema=json.dumps(schema.to_dict()),
            profile=json.dumps({"num_rows": facts[split], "classes": len(facts["classes"])}),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    return inputs
