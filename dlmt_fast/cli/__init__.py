"""The command `dlmt`: one file a group of commands, beside what they share."""

__all__ = ["main"]


def main() -> None:
    """Run the command line. Nothing of it loads before: a spawned worker imports this module again, and needs none."""
    from .entry import main as run

    run()
