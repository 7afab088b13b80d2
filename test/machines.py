"""Machines that tests of configurations plan for."""

from chitu_like.config.device_facts import GIB, DeviceFacts

CPU = DeviceFacts(
    device="cpu",
    name="Xeon",
    memory_bytes=24 * GIB,
    free_bytes=20 * GIB,
    host_free_bytes=20 * GIB,
    num_devices=1,
    num_cpu_cores=2,
    supports_bf16=True,
)
