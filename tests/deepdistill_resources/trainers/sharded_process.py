"""`launched_process`, but accelerate shards by its FSDP config on CPUs, too (torch does so over gloo), and says how."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from deepdistill_resources.trainers.launched_process import main
from deepdistill_resources.trainers.launched_trainer import LOG

_initialise = AcceleratorState.__init__


def _sharding(self, *arguments, fsdp_plugin=None, **options):
    _initialise(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


_prepare = Accelerator.prepare


def _counting(self, *things, **options):
    prepared = _prepare(self, *things, **options)
    for thing in things:  # sharded in place
        if isinstance(thing, torch.nn.Module) and self.is_main_process:
            whole = sum(parameter.numel() for parameter in thing.parameters())
            here = sum(parameter.to_local().numel() for parameter in thing.parameters())
            print(f"{LOG}holds {here} of {whole} parameters", flush=True)
    return prepared


AcceleratorState.__init__, Accelerator.prepare = _sharding, _counting

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
