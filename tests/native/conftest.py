"""The native step, compiled for this processor as it is, and as if it had fewer instructions."""

import ctypes
import functools
import platform

import pytest
import torch

from yunque.native.build import NotBuilt, build
from yunque.native.library import instructions

# Compiled without much care: they only have to be right.
VARIANTS = {
    "this processor": (),
    "AVX2": ("-mno-avx512f", "-mno-avxvnni", "-O1"),
    "plain": ("-DYUNQUE_PLAIN", "-O1"),
}


@functools.cache
def _variant(name: str) -> ctypes.CDLL:
    if name == "AVX2" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("there is no AVX2 here")
    try:
        return ctypes.CDLL(str(build(VARIANTS[name])))
    except NotBuilt as error:
        pytest.skip(str(error))


@pytest.fixture(params=VARIANTS)
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """The library, compiled for each of the ways there are."""
    found = _variant(request.param)
    if request.param == "plain":
        assert instructions(found) == "plain C++"
    return found


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
