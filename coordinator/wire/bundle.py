"""The one Flower app bundle (FAB) that a coordinator sends and a site accepts.

The bundle holds a manifest and no code, so its hash changes only with `coordinator/app`. Flower builds bundles with
sorted names, fixed dates and no compression: equal files give an equal hash on every machine.
"""

BUNDLE_SHA256 = "46e84afaa3e6a17f8a95472497424d17c97e8ffeef5e74a4f471af3b7234a990"
"""SHA-256, in hex, of what `flwr build` makes of `coordinator/app`; a site's policy lists it."""
