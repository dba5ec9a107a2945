# Licensed under the Apache License, Version 2.0.
"""Publishing a model on the Hub: what may leave, its card, and the one commit that sends it."""
