import pickle

import dagster as dg
import pytest

from deepdistill_resources.embedders import Embedder
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.verifiers.suite import VerifierSuite


@pytest.mark.parametrize(
    "resource",
    [
        Lake(root="s3://bucket/lake", endpoint_url="http://s3"),
        ModelStore(directory="/models"),
        EngineResource(default="vllm", tensor_parallel_size=8),
        Embedder(),
        VerifierSuite(workers=3, engine=EngineResource(processes=2), model_store=ModelStore(directory="/models")),
    ],
    ids=lambda resource: type(resource).__name__,
)
def test_a_resource_in_use_by_a_run_travels_as_its_values(resource):
    found = []

    @dg.op(required_resource_keys={"it"})
    def use(context):
        found.append(pickle.loads(pickle.dumps(context.resources.it)))

    dg.GraphDefinition(name="using", node_defs=[use]).execute_in_process(resources={"it": resource})
    assert type(found[0]) is type(resource) and found[0].model_dump() == resource.model_dump()
