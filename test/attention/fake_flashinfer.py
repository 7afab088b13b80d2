"""FlashInfer 0.6.14 as its documentation describes it, in torch on a CPU: what our adapter may call.

A wrapper attends to exactly the blocks that the arrays it was given name. Its plan is kept where the
real one keeps it, in the int workspace, so that a plan overwritten by another step's is noticed.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from chitu_like.attention.ref import visible


def make_module() -> ModuleType:
    """A module to stand in sys.modules for `flashinfer`, with its `decode`."""
    package, decode = ModuleType("flashinfer"), ModuleType("flashinfer.decode")
    vars(package).update(
        BatchDecodeWithPagedKVCacheWrapper=DecodeWrapper,
        BatchPrefillWithPagedKVCacheWrapper=PrefillWrapper,
        fast_decode_plan=fast_decode_plan,
        decode=decode,
    )
    vars(decode).update(xqa_batch_decode_with_kv_cache=xqa)
    return package


class PagedWrapper:
    """What decode and prefill share.

    Attributes:
        qo_indptr, kv_indptr, indices, last_page_len: on the device.
        int_workspace: holds the plan: what the host said of the two indptr and the last pages.
    """

    def __init__(self, float_workspace: Tensor, layout: str) -> None:
        assert layout == "NHD"
        assert float_workspace.dtype == torch.uint8
        self.int_workspace = torch.zeros(8 << 20, dtype=torch.uint8)
        self.planned: tuple[int, ...] | None = None
        self.qo_indptr = self.kv_indptr = self.indices = self.last_page_len = torch.empty(0)

    def reset_workspace_buffer(self, float_workspace: Tensor, int_workspace: Tensor) -> None:
        self.int_workspace = int_workspace

    def divide_work(self, *arrays: Tensor) -> None:
        work = torch.cat(arrays).to(torch.int32)
        self.int_workspace.view(torch.int32)[: len(work)] = work
        self.num_planned = len(work)

    def attend(
        self, q: Tensor, cache: tuple[Tensor, Tensor], causal: bool, scale: float, out: Tensor
    ) -> Tensor:
        work = torch.cat((self.qo_indptr, self.kv_indptr, self.last_page_len)).to(torch.int32)
        kept = self.int_workspace.view(torch.int32)[: self.num_planned]
        assert torch.equal(work, kept), "planned for other lengths than those on the device"
        heads, kv_heads, head_dim, page_size = self.shape
        assert q.shape[1:] == (heads, head_dim)
        assert cache[0].shape[1:] == cache[1].shape[1:] == (page_size, kv_heads, head_dim)
        assert q.dtype == self.dtype == cache[0].dtype
        assert out.shape == q.shape
        assert len(q) == int(self.qo_indptr[-1])
        window = None if self.window_left == -1 else self.window_left + 1
        for row, last in enumerate(self.last_page_len.tolist()):
            pages = self.indices[int(self.kv_indptr[row]) : int(self.kv_indptr[row + 1])].long()
            kv_len = (len(pages) - 1) * page_size + last
            tokens = slice(int(self.qo_indptr[row]), int(self.qo_indptr[row + 1]))
            k, v = (part[pages].flatten(0, 1)[:kv_len] for part in cache)
            out[tokens] = attention(q[tokens], k, v, causal, window, scale)
        return out


class DecodeWrapper(PagedWrapper):
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout)
        self.use_cuda_graph, self.use_tensor_cores = use_cuda_graph, use_tensor_cores
        if use_cuda_graph:
            assert paged_kv_indptr_buffer is not None
            assert paged_kv_indices_buffer is not None
            assert paged_kv_last_page_len_buffer is not None
            self.kv_indptr, self.indices = paged_kv_indptr_buffer, paged_kv_indices_buffer
            self.last_page_len = paged_kv_last_page_len_buffer
            assert len(self.kv_indptr) == len(self.last_page_len) + 1

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        window_left: int = -1,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
        sm_scale: float | None = None,
    ) -> None:
        group = num_qo_heads // num_kv_heads
        assert self.use_tensor_cores or group in (1, 2, 3, 4, 8), f"no kernel for groups of {group}"
        if self.use_cuda_graph:
            assert len(last_page_len) == len(self.last_page_len), "another size than captured"
            assert len(indices) <= len(self.indices)
            self.kv_indptr.copy_(indptr)
            self.last_page_len.copy_(last_page_len)
            self.indices[: len(indices)] = indices
        else:
            self.kv_indptr, self.indices = indptr.clone(), indices.clone()
            self.last_page_len = last_page_len.clone()
        self.qo_indptr = torch.arange(len(indptr), dtype=torch.int32)
        self.shape = (num_qo_heads, num_kv_heads, head_dim, page_size)
        self.dtype, self.window_left, self.sm_scale = q_data_type, window_left, sm_scale
        assert kv_data_type in (None, q_data_type)
        self.divide_work(self.qo_indptr, indptr, last_page_len)

    def run(
        self, q: Tensor, cache: tuple[Tensor, Tensor], *, q_scale: float = 1.0, out: Tensor
    ) -> Tensor:
        scale = self.shape[2] ** -0.5 if self.sm_scale is None else self.sm_scale
        return self.attend(q, cache, False, scale * q_scale, out)


def fast_decode_plan(
    wrapper: DecodeWrapper,
    indptr: Tensor,
    indices: Tensor,
    last_page_len: Tensor,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    *,
    window_left: int = -1,
    q_data_type: torch.dtype | None = None,
    kv_data_type: torch.dtype | None = None,
    sm_scale: float | None = None,
    global_override_indptr_cpu: Tensor | None = None,
) -> None:
    """Like DecodeWrapper.plan, but nothing of the tables is copied to a captured wrapper."""
    assert wrapper.use_cuda_graph, "not captured"
    assert len(last_page_len) == len(wrapper.last_page_len), "another size than captured"
    assert len(indices) <= len(wrapper.indices)
    assert wrapper.shape == (num_qo_heads, num_kv_heads, head_dim, page_size)
    assert (wrapper.dtype, wrapper.window_left) == (q_data_type, window_left)
    wrapper.sm_scale = sm_scale
    host_indptr = indptr if global_override_indptr_cpu is None else global_override_indptr_cpu
    wrapper.divide_work(wrapper.qo_indptr, host_indptr, last_page_len)


class PrefillWrapper(PagedWrapper):
    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", backend: str = "auto"
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout)

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        self.qo_indptr, self.kv_indptr = qo_indptr.clone(), paged_kv_indptr.clone()
        self.indices, self.last_page_len = paged_kv_indices, paged_kv_last_page_len.clone()
        self.shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self.dtype, self.window_left, self.sm_scale = q_data_type, window_left, sm_scale
        assert kv_data_type in (None, q_data_type)
        self.causal = causal
        self.divide_work(qo_indptr, paged_kv_indptr, paged_kv_last_page_len)

    def run(
        self, q: Tensor, cache: tuple[Tensor, Tensor], *, q_scale: float = 1.0, out: Tensor
    ) -> Tensor:
        scale = self.shape[2] ** -0.5 if self.sm_scale is None else self.sm_scale
        return self.attend(q, cache, self.causal, scale * q_scale, out)


def xqa(
    query: Tensor,
    kv_cache: tuple[Tensor, Tensor],
    workspace_buffer: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    *,
    bmm1_scale: float = 1.0,
    bmm2_scale: float = 1.0,
    window_left: int = -1,
    out: Tensor,
    kv_layout: str = "NHD",
) -> Tensor:
    """`xqa_batch_decode_with_kv_cache`, which reads its arrays as if they had no strides."""
    assert kv_layout == "NHD"
    assert query.is_contiguous()
    assert block_tables.is_contiguous()
    assert not workspace_buffer.any(), "semaphores are zero between calls"
    assert max_seq_len == block_tables.shape[1] * kv_cache[0].shape[1]
    assert max_seq_len >= int(seq_lens.max())
    window = None if window_left == -1 else window_left + 1
    for row, seq_len in enumerate(seq_lens.tolist()):
        pages = block_tables[row, : -(-seq_len // kv_cache[0].shape[1])].long()
        k, v = (part[pages].flatten(0, 1)[:seq_len] for part in kv_cache)
        out[row] = bmm2_scale * attention(query[row : row + 1], k, v, True, window, bmm1_scale)
    return out


def attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float
) -> Tensor:
    """[tokens, heads, head_dim] over [context, kv_heads, head_dim]; the tokens are the last ones."""
    assert causal or len(q) == 1, "not what a decoder computes"
    group = q.shape[1] // k.shape[1]
    k, v = (part.double().repeat_interleave(group, 1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    scores.masked_fill_(~visible(len(q), len(k), window, q.device), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(q.dtype)
