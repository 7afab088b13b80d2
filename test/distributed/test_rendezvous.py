"""Ranks find each other through torchrun's store and form their instance's groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import free_port

from chitu_like.cluster.placement import Placement
from chitu_like.core.errors import PeerError
from chitu_like.distributed.rendezvous import (
    Store,
    address_among,
    find_address,
    job_secret,
    join,
    open_store,
    publish_address,
)

REPO = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(__file__).with_name("rendezvous_rank.py"))
TIMEOUT_S = 120.0


def environment(**variables: object) -> dict[str, str]:
    """Of a child: nothing of a torchrun or of a network's choice that stands around us."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC_", "GLOO_", "NCCL_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**inherited, "PYTHONPATH": str(REPO), **{k: str(v) for k, v in variables.items()}}


def torchrun(check: str, num_ranks: int, *options: str, **variables: object) -> None:
    """Run a check of rendezvous_rank.py; it must end well on all ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_ranks)]
    result = subprocess.run(
        [*launch, *(options or ("--standalone",)), SCRIPT, check],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def run_two(check: str, *, rank_0_keeps_store: bool = False) -> list[int]:
    """Run a check on two ranks without torchrun. Returns: their exit codes.

    The store is here, as torchrun's agent keeps it: a rank may end while the other still asks.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    where = {"MASTER_PORT": store.port, **agent}
    if rank_0_keeps_store:
        where = {"MASTER_PORT": free_port()}
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, check],
            env=environment(RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", **where),
        )
        for rank in range(2)
    ]
    try:
        return [rank.wait(TIMEOUT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is the only rank of a job."""
    for name in list(os.environ):
        if name.startswith(("LOCAL_", "GROUP_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name, value in [("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")]:
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    return monkeypatch


@pytest.fixture
def store(alone: pytest.MonkeyPatch) -> Store:
    return open_store(5.0)


def test_the_secret_is_drawn_once_a_job(store: Store) -> None:
    secret = job_secret(store, 0)
    assert len(bytes.fromhex(secret)) == 32
    assert job_secret(store, 3) == secret


def test_addresses_are_found_by_name(store: Store) -> None:
    publish_address(store, "leader-0", "127.0.0.1:1")
    publish_address(store, "leader-1", "[::1]:2")
    assert find_address(store, "leader-1", 1.0) == "[::1]:2"
    assert find_address(store, "leader-0", 1.0) == "127.0.0.1:1"


def test_who_told_nothing_is_named(store: Store) -> None:
    with pytest.raises(PeerError, match=r"'address/leader-7' .* within 0\.1 s") as raised:
        find_address(store, "leader-7", 0.1)
    assert "\n" not in str(raised.value)
    with pytest.raises(PeerError, match="'secret'"):
        job_secret(store, 1, timeout_s=0.1)


def test_lives_and_jobs_on_one_store_share_no_key(alone: pytest.MonkeyPatch) -> None:
    lives = []
    for run, restart in [("a", "0"), ("a", "1"), ("b", "0")]:
        alone.setenv("TORCHELASTIC_RUN_ID", run)
        alone.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        lives.append(open_store(5.0))
    publish_address(lives[0], "leader-0", "old")
    for life in lives[1:]:
        with pytest.raises(PeerError):
            find_address(life, "leader-0", 0.1)
    assert find_address(lives[0], "leader-0", 1.0) == "old"


def test_a_store_that_is_not_there_is_named(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("RANK", "1")
    alone.setenv("WORLD_SIZE", "2")
    with pytest.raises(PeerError, match="cannot reach the store of this job: ") as raised:
        open_store(0.5)
    assert "\n" not in str(raised.value)


def test_an_instance_of_one_rank_needs_no_group(store: Store) -> None:
    placement = Placement.uniform(num_instances=3, tp_size=1, layer_partition=[4])
    joined = join(
        store,
        placement.instances[2],
        2,
        2,
        backend="gloo",
        device=torch.device("cpu"),
        timeout_s=0.1,
    )
    assert (joined.parallel.num_ranks, joined.pipeline) == (1, None)
    assert not dist.is_initialized()
    joined.leave()


def test_ranks_of_one_node_meet_on_loopback(alone: pytest.MonkeyPatch, store: Store) -> None:
    for name, value in [("RANK", "5"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")]:
        alone.setenv(name, value)
    alone.setenv("MASTER_ADDR", "no-such-host.invalid")  # it is not even asked for
    assert address_among(store, range(4, 8), 0.1) == "127.0.0.1"


def test_a_node_that_knows_the_master_as_itself_asks_another(
    alone: pytest.MonkeyPatch, store: Store
) -> None:
    """The host's name stands beside 127.0.1.1 in many an /etc/hosts."""
    alone.setenv("LOCAL_RANK", "0")
    alone.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(PeerError, match="'address/rank-4'"):
        address_among(store, range(8), 0.1)
    publish_address(store, "rank-4", "127.0.0.1")  # what reaches it is all that counts here
    assert address_among(store, range(8), 0.1) == "127.0.0.1"


@pytest.mark.slow
def test_an_idle_group_outlives_its_timeout() -> None:
    assert run_two("idle_longer_than_the_timeout", rank_0_keeps_store=True) == [0, 0]


@pytest.mark.slow
def test_a_rank_leaves_a_group_whose_other_rank_is_dead() -> None:
    assert run_two("leaving_a_dead_peer") == [0, -9]


@pytest.mark.slow
def test_a_rank_leaves_a_group_whose_other_rank_is_stopped() -> None:
    assert run_two("leaving_a_stopped_peer") == [0, -9]


@pytest.mark.slow
def test_a_rank_whose_peer_does_not_come_says_so() -> None:
    assert run_two("a_peer_that_does_not_come") == [0, 0]


@pytest.mark.slow
def test_every_layout_has_its_groups() -> None:
    torchrun("every_layout", 4)


@pytest.mark.slow
def test_a_restarted_job_reads_no_key_of_its_first_life() -> None:
    torchrun("a_restart_forgets", 2, "--max_restarts=1", f"--master_port={free_port()}")


@pytest.mark.multi_gpu(count=2)
def test_two_gpus_have_their_groups() -> None:
    torchrun("every_layout", 2, ON_CUDA=1)


@pytest.mark.multi_gpu(count=4)
def test_four_gpus_have_their_groups() -> None:
    torchrun("every_layout", 4, ON_CUDA=1)


class Nodes:
    """Two network namespaces joined by a cable; their hosts know the first as node-a.

    Args:
        name: unlike any other's on this machine.
        first_knows_itself_as: what node-a means on node-a itself.
    """

    addresses = ("10.213.7.1", "10.213.7.2")

    def __init__(self, name: str, first_knows_itself_as: str) -> None:
        self.names = (f"{name}-a", f"{name}-b")
        self._hosts = [Path("/etc/netns") / node / "hosts" for node in self.names]
        first, second = self.names
        try:
            for node, hosts, first_is in zip(
                self.names, self._hosts, (first_knows_itself_as, self.addresses[0]), strict=True
            ):
                hosts.parent.mkdir(parents=True)
                hosts.write_text(f"127.0.0.1 localhost\n{first_is} node-a\n")
                ip("netns", "add", node)
                ip("-n", node, "link", "set", "lo", "up")
            cable = ("type", "veth", "peer", "name", "eth0", "netns", second)
            ip("link", "add", "eth0", "netns", first, *cable)
            for node, address in zip(self.names, self.addresses, strict=True):
                ip("-n", node, "address", "add", f"{address}/30", "dev", "eth0")
                ip("-n", node, "link", "set", "eth0", "up")
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        for node, hosts in zip(self.names, self._hosts, strict=True):
            subprocess.run(["ip", "netns", "delete", node], check=False)
            hosts.unlink(missing_ok=True)
            hosts.parent.rmdir()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.mark.slow
@pytest.mark.needs("ip")
@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")
@pytest.mark.parametrize("first_knows_itself_as", ["127.0.1.1", "10.213.7.1"])
def test_ranks_of_two_nodes_meet_on_the_cable_between_them(first_knows_itself_as: str) -> None:
    nodes = Nodes(f"chitu-{os.getpid()}", first_knows_itself_as)
    launches: list[subprocess.Popen[str]] = []
    try:
        for node_rank, (node, address) in enumerate(zip(nodes.names, nodes.addresses, strict=True)):
            command = ["ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run"]
            options = ["--nnodes=2", f"--node_rank={node_rank}", "--nproc_per_node=2"]
            where = ["--master_addr=node-a", "--master_port=29500"]
            launches.append(
                subprocess.Popen(
                    [*command, *options, *where, SCRIPT, "two_nodes"],
                    env=environment(OWN_ADDRESS=address),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        said = [launch.communicate(timeout=TIMEOUT_S)[0] for launch in launches]
        assert [launch.returncode for launch in launches] == [0, 0], "\n".join(said)
    finally:
        for launch in launches:
            launch.kill()
            launch.wait()
        nodes.remove()
