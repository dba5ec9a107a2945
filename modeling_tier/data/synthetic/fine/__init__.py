# Licensed under the Apache License, Version 2.0.
"""The finer drawings (`drawings: fine`): larger pictures, more findings at known places, longer reports."""
