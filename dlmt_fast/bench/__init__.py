"""Throughput on this machine: our backends beside the machine's own limit and the peers that are installed."""

from . import machine, report
from .harness import Contender, Row, measure
from .workloads import OPERATIONS, QUICK, WORKLOADS, Workload

__all__ = ["OPERATIONS", "QUICK", "WORKLOADS", "Contender", "Row", "Workload", "machine", "measure", "report"]
