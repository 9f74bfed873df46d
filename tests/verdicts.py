"""What tests of claims about stored results share."""

from bayesprompt import catalog
from bayesprompt.store import Store


def holds_and_needs_results(claim, monkeypatch, empty):
    """Fail unless a claim holds on made-up results, which `monkeypatch` put in place, and is not judged without any."""
    assert catalog.evaluate(claim, Store(None, None)).verdict == "holds"
    monkeypatch.undo()
    assert catalog.evaluate(claim, Store(empty, None)).verdict == "not judged"
