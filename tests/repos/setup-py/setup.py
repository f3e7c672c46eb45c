from setuptools import setup

setup(name="old-style", version="3", py_modules=["old_style"], install_requires=["six"])
