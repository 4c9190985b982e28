"""Names the helper modules that pytest loads."""

pytest_plugins = [
    "tests.support.order",
    "tests.support.programs",
    "tests.support.journey",
    "tests.support.tables",
]
