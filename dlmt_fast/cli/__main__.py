"""`python -m dlmt_fast.cli` is `dlmt`."""

from .entry import main

main()
