"""The claims and planted errors of a class of ``Verdicts`` are its parameters."""


def pytest_generate_tests(metafunc):
    plants = getattr(metafunc.cls, "PLANTS", {})
    if "plant" in metafunc.fixturenames:
        pairs = [(id, plant) for id, several in plants.items() for plant in several]
        names = [f"{id}-{plant.__name__}-{k}" for k, (id, plant) in enumerate(pairs)]
        metafunc.parametrize("id, plant", pairs, ids=names)
    elif plants and "id" in metafunc.fixturenames:
        metafunc.parametrize("id", plants)
