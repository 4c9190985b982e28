"""Names the helper modules that pytest loads, and gives generated tests all the time that they need."""

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.support.order",
    "tests.support.programs",
    "tests.support.journey",
    "tests.support.tables",
]

# A slow machine is no fault of what is tested.
settings.register_profile(
    "unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")
