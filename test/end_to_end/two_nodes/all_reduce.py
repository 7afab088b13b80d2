"""Every rank adds up all ranks' numbers over the interface that reaches the others, and says so."""

import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from chitu_like.distributed.interface import local_address_towards, pin_interface

address = local_address_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
pin_interface(os.environ, address)
dist.init_process_group("gloo")
rank = dist.get_rank()
total = torch.tensor([10.0**rank])
dist.all_reduce(total)
said = f"rank {rank} at {address}: {total.item():g}, {sys.argv[1:]}\n"
print(said, end="", flush=True)  # in one piece: the ranks of a node share a pipe
if "wait" in sys.argv:
    Path(sys.argv[-1], str(rank)).write_text(str(os.getpid()))
    socket.create_server((address, 0)).accept()  # for ever
dist.barrier()
dist.destroy_process_group()
