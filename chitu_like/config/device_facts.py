"""DeviceFacts: what must be known of a device before anything is planned on it, torch-free."""

from dataclasses import dataclass

from chitu_like.config.schema import DeviceType

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """One rank's device and its host, as measured by the compute wing.

    Attributes:
        device: what kind it is.
        name: as its maker calls it.
        memory_bytes: memory of the device; of the host where device is cpu.
        free_bytes: of it, not in use by anybody now.
        host_free_bytes: host memory that can be had without swapping.
        num_devices: devices of this kind that this process can see; 1 for cpu.
        num_cpu_cores: cores this process may run on.
        supports_bf16: bfloat16 is computed, not only stored.
        compute_capability: (major, minor) of a CUDA device; (0, 0) for cpu.
        has_triton: Triton is installed, for a CUDA device.
        has_flashinfer: FlashInfer is installed, and its kernels or a compiler that makes them.
    """

    device: DeviceType
    name: str
    memory_bytes: int
    free_bytes: int
    host_free_bytes: int
    num_devices: int
    num_cpu_cores: int
    supports_bf16: bool
    compute_capability: tuple[int, int] = (0, 0)
    has_triton: bool = False
    has_flashinfer: bool = False
