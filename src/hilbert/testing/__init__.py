"""The test kit, shipped as users of the library need it too: fakes, a clock, tiny models, a stand-in hub.

Production code never imports it.
"""
