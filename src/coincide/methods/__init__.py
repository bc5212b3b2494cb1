"""Methods: what to learn from a batch, one file each."""

from __future__ import annotations

from coincide._checks import UNKNOWN
from coincide.methods.collision import CollisionMethod
from coincide.methods.iic import IIC
from coincide.methods.imsat import IMSAT
from coincide.methods.method import AllRows, Batch, BatchLoss, Method
from coincide.methods.mi import MutualInformation
from coincide.methods.miadm import MIADM
from coincide.methods.scan import SCAN
from coincide.methods.sela import SeLa
from coincide.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {
    "collision": CollisionMethod,
    "mi": MutualInformation,
    "miadm": MIADM,
    "sela": SeLa,
    "imsat": IMSAT,
    "iic": IIC,
    "scan": SCAN,
    "simclr": SimCLR,
}

__all__ = [
    "IIC",
    "IMSAT",
    "METHODS",
    "MIADM",
    "SCAN",
    "UNKNOWN",
    "AllRows",
    "Batch",
    "BatchLoss",
    "CollisionMethod",
    "Method",
    "MutualInformation",
    "SeLa",
    "SimCLR",
]
