"""What holds for every test."""

from hypothesis import HealthCheck, settings

# A busy machine makes input slow to generate; that says nothing about what is tested.
settings.register_profile("muniment", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("muniment")
