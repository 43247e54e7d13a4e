from hypothesis import HealthCheck, settings

# Machines differ in speed: no deadlines, and the same examples on every one of them.
settings.register_profile(
    "alexnet",
    deadline=None,
    max_examples=50,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("alexnet")
