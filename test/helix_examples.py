"""Small files in Helix's four ini forms, written by hand."""

MACHINES = """\
# what the coordinator has
[SourceNode]
inbound_nic_speed = -1
outbound_nic_speed = 10 * gbps
disk_speed = -1
vram_size = -1

[SinkNode]
inbound_nic_speed = 10 * gbps
outbound_nic_speed = -1
disk_speed = -1
vram_size = -1

[A100]
inbound_nic_speed = 10 * gbps
outbound_nic_speed = 5 * gbps
disk_speed = 1 * gbps
vram_size = 40 * GB

[T4]
inbound_nic_speed = 2000 * mbps
outbound_nic_speed = 2000.0 * mbps
disk_speed = -1
vram_size = 16000 * MB
"""

CLUSTER = """\
[NodeNames]
total_compute_nodes=3

[SourceNode]
connected_nodes=[0, 2]

[SinkNode]
connected_nodes=[1, 2]

[ComputeNode-0]
type=A100
connected_nodes=['source', 1, 2]

[ComputeNode-1]
type=T4
connected_nodes=[0, 'sink']

[ComputeNode-2]
type=t4
connected_nodes=['source', 0, 'sink']

[Link-source-0]
bandwidth=1000 * mbps
latency=1 * MilliSec

[Link-source-2]
bandwidth=1000 * mbps
latency=1 * MilliSec

[Link-1-sink]
bandwidth=12.5 * mbps
latency=50 * MilliSec

[Link-2-sink]
bandwidth=12500 * kbps
latency=0.05

[Link-0-1]
bandwidth=1.25 * gbps
latency=1.0 * MilliSec

[Link-0-2]
bandwidth=1000000000
latency=0
"""

SOLUTION = """\
[Settings]
offset=2

[Solution]
compute_node_2=[0, 1, 2]
compute_node_3=[2, 3]
compute_node_4=[]
"""

SIMULATOR = """\
[Coordinator]
inbound_nic_speed=10000.0 * mbps
outbound_nic_speed=10000.0 * mbps

[MachineTypes]
types=['A100', "T4"]

[ComputeNodes]
names=['compute_node_2', 'compute_node_3']

[compute_node_2]
vram_size=40000.0 * MB
inbound_nic_speed=10000.0 * mbps
outbound_nic_speed=5 * gbps
disk_speed=1000.0 * mbps
machine_type="A100"
kv_cache_capacity=8500000
activation_backup_capacity=0

[compute_node_3]
vram_size=16 * GB
inbound_nic_speed=2 * gbps
outbound_nic_speed=2 * gbps
disk_speed=1 * gbps
machine_type="T4"
kv_cache_capacity=100
activation_backup_capacity=0

[Links]
names=['in_2', 'between', 'out_3']

[in_2]
in=source
out=compute_node_2
latency=1.0 * MilliSec
bandwidth=1000.0 * mbps

[between]
in=compute_node_2
out=compute_node_3
latency=2.0 * MilliSec
bandwidth=500.0 * mbps

[out_3]
in=compute_node_3
out=sink
latency=1.0 * MilliSec
bandwidth=1000.0 * mbps
"""
