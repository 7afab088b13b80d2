import copy
import pickle

import pytest

from chitu_like.core import errors


@pytest.mark.parametrize(
    "name",
    [
        "ConfigError",
        "CheckpointError",
        "CapacityError",
        "UnsupportedError",
        "PeerError",
        "RequestError",
    ],
)
def test_every_error_is_a_chitu_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.ChituError)


def test_a_request_error_keeps_its_field_when_copied() -> None:
    error = errors.RequestError("n=0: use 1 or more", param="n")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(twin), twin.param) == ("n=0: use 1 or more", "n")
    assert isinstance(error, ValueError)
