"""Each finding of a study is a test of its own, and so is each table gone wrong."""

from tests.support.planted import Findings


def pytest_generate_tests(metafunc):
    tested = metafunc.cls
    if tested is None or not issubclass(tested, Findings):
        return
    if "claim" in metafunc.fixturenames:
        metafunc.parametrize("claim", tested.STUDY.findings, ids=lambda claim: claim.id)
    if "plant" in metafunc.fixturenames:
        parts = (("table", tested.PLANTS), ("curve", tested.CURVES))
        wrong = [(id, plant, p) for p, of in parts for id, plants in of.items() for plant in plants]
        metafunc.parametrize("id, plant, part", wrong)
